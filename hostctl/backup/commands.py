"""The commands `APPctl backup …`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..host import Host
from ..settings import say
from .configuration import LOCAL, OFFSITE, Configuration
from .server import NotArchivingError

# The exit status while PostgreSQL has not been restarted for archiving: no failure for the units of the timers.
NOT_YET = 75
HELP = """make a backup now; or one of the commands below

    backup [--full]      base backup of the database, snapshot of the uploads, copy off the host
    backup list          what there is, and which moments can be restored
    backup restore       the newest state, or with --at a moment, in place of the present one
    backup drill         restore beside the running database and check it
    backup ship, files   what the timers call: copy the write-ahead log, copy the uploads
"""


def add_commands(commands: Any) -> None:
    command = commands.add_parser("backup", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--full", action="store_true", help="all of the database, not only what has changed")
    actions = command.add_subparsers(dest="action", metavar="[ACTION]")
    actions.add_parser("list").add_argument("--json", action="store_true")
    preparing = actions.add_parser("prepare")
    preparing.add_argument("--upgraded", action="store_true", help="the database was copied to a new cluster")
    preparing.add_argument("--json", action="store_true")
    actions.add_parser("ship")
    actions.add_parser("files")
    drill_options = actions.add_parser("drill")
    where = drill_options.add_mutually_exclusive_group()
    where.add_argument("--local", dest="source", action="store_const", const=LOCAL, default="", help="from this host")
    where.add_argument("--offsite", dest="source", action="store_const", const=OFFSITE, help="from the target")
    restoring = actions.add_parser("restore")
    restoring.add_argument("--at", default="", metavar="TIME", help="a moment with its time zone: 2026-11-28T18:59:30Z")
    restoring.add_argument("--offsite", action="store_true", help="from the target, although this host has backups")
    restoring.add_argument("--show", action="store_true", help="say what would be restored and replaced, and end")
    restoring.add_argument("--yes", action="store_true", help="do not ask")
    restoring.add_argument("--undo", action="store_true", help="return to what the last restore has replaced")
    restoring.add_argument(
        "--other-secrets", action="store_true", help="even if the backup was made with other secrets"
    )
    restoring.add_argument("--uploads", action="store_true", help="only uploads that are missing")
    # The playbook stops and starts the application of several hosts.
    restoring.add_argument("--database-only", action="store_true", help=argparse.SUPPRESS)
    restoring.add_argument("--complete", action="store_true", help=argparse.SUPPRESS)


def run(host: Host, options: argparse.Namespace) -> int:
    """Run a command, and return the exit status. Raises ReleaseError, BusyError."""
    try:
        return run_command(host, options)
    except NotArchivingError as error:
        print(error, file=sys.stderr)
        return NOT_YET


def run_command(host: Host, options: argparse.Namespace) -> int:
    """Run a command. Each imports its own modules only: a timer starts `backup ship` every few seconds."""
    configuration = Configuration.load(host.settings)
    if options.action is None:
        from .run import back_up

        back_up(configuration, full=options.full)
    elif options.action == "list":
        from .listing import describe, overview

        found = overview(configuration)
        say(json.dumps(found) if options.json else describe(found))
    elif options.action == "prepare":
        from .prepare import prepare

        say(json.dumps(prepare(host, configuration, upgraded=options.upgraded)))
    elif options.action == "ship":
        from .ship import ship

        configuration.require_database()
        ship(configuration)
    elif options.action == "files":
        from .run import regular

        configuration.require_target()
        regular(configuration)
    elif options.action == "drill":
        from .drill import drill

        if options.source == OFFSITE:
            configuration.require_target()
        drill(configuration, options.source)
    else:
        from . import restore

        return restore.run(host, configuration, options)
    return 0
