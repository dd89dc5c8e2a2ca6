"""Back up the database and the uploads of this host, copy both off it, and restore them.

    configuration  what to back up, and where to
    tools          pgBackRest, rclone and restic
    server         PostgreSQL: the canary, the archive, roles
    state          what the last run of each kind did, and locks
    ship           copy write-ahead log and backups off the host, and read them back
    files          copy the folders of uploads
    run            make a backup now
    listing        what exists, and what it can restore
    scratch        a PostgreSQL beside the running one
    drill          restore beside the running database, and check
    restore        restore in place of the database

pgBackRest keeps base backups and every write-ahead log segment in an encrypted repository on this host. rclone copies
it to the target as it is; restic copies uploads. What PostgreSQL calls never talks to the network, so that a target
which is away cannot stop the database.
"""
