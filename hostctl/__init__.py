"""Rolls out releases of one application on this host, as a transaction that a person can watch.

    cli          what can be asked, and the way out
    rollout      the steps of a rollout and of a rollback, and what puts things back
    build        a release's folder, its Python environment, the room that it takes
    application  asking the release's own code: checks, migrations, workers
    database     snapshot and migrations
    health       a release's own pages
    host         what is here: releases, which one is current
    processes    the processes, whichever manager runs them: systemd or supervisor
    record       the lock, the state of a rollout, the history
    detach       a rollout outlives the connection that began it
    settings     what Ansible wrote to /etc/APP/hostctl.json

Standard library only; runs under the server's own Python.
"""

__version__ = "0.1.0"
