"""Operate one application on this host: deploy, roll back, inspect, and run its commands.

    status               current release, built releases, processes, unfinished deployment
    releases             the history: what was deployed, when, by which user, with which outcome
    deploy ID ARCHIVE    build, check, migrate, start beside the current release, switch, drain the old one
    rollback [ID]        switch to the previous release, or to another one that is still on the host
    verify               check that the current release runs; start what does not (what a deployment of it does)
    previous             the release that a rollback without ID switches to
    domains              the names of the site in every release on this host (what nginx accepts)
    receive ID           a part of an archive on stdin, before `deploy` gets the last one; without --offset, a check of
                         the disk (called by Ansible)
    follow               the output of the running deployment, or of the last one
    cancel               stop the running deployment; it reverts
    logs [PROCESS]       logs of web, worker, worker-NAME, process-NAME, cron-NAME, beat or flower; of all
                         without PROCESS
    manage [--owner] ARGS...
                         manage.py of the current release (or django-admin, where it has none), as the application; with
                         --owner, as the database's owner
    celery ARGS...       celery -A APP ARGS of the current release, as the application
    tasks parked list    messages that no worker runs: they cannot be read, or ended a process three times
    tasks parked show ID | requeue ID|--all | drop ID|--all
    import-database FILE restore a dump of another server in place of the database, under the right owner; --return NAME
                         returns to the database that an import has kept
    doctor               is this host well, and what to type where it is not; exit status 0, 1 (a warning), 2 (broken)
    watch                the same checks, with history, status page and alerts (called by a timer each minute)
    alert test           send a test message by every channel of the alerts
    backup [ACTION]      make a backup; list, restore, drill (see backup --help)
    boot                 start the processes of the current release (called by systemd)
    halt                 stop every process of the application (called by systemd)

Run it as root. Queries answer as JSON with --json, errors then as {"error": ..., "status": ...}.

Exit status: 0 success; 1 the command failed, what was live before is still live; 2 wrong usage; 3 another deployment
is running; 4 `status`: something that should run does not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID, uuid4

from . import __version__, upgrade
from .backup import commands as backup_commands
from .deploy.record import caller, history
from .doctor import commands as doctor_commands
from .host import Host
from .settings import BusyError, ReleaseError, Settings, say

if TYPE_CHECKING:
    from .application import Application

ID_FORM = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{3,63}")
FAILED, WRONG_USAGE, BUSY, NOT_RUNNING = 1, 2, 3, 4


class UsageError(Exception):
    """The command line is wrong; the message says why."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def program_name() -> str:
    return Path(sys.argv[0]).name


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises UsageError."""
    arguments, passed_on = split_passed_on(arguments)
    options = make_parser().parse_args(arguments)
    options.arguments = passed_on
    if getattr(options, "release", "") and not ID_FORM.fullmatch(options.release):
        raise UsageError(f"{options.release!r} is not a release ID: it must match ^{ID_FORM.pattern}$")
    return options


def split_passed_on(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split off everything after `manage` or `celery`, which parse their own options."""
    position = 2 if arguments[:1] == ["--settings"] else 0
    if arguments[position : position + 1] in (["manage"], ["celery"]):
        return arguments[: position + 1], arguments[position + 1 :]
    return arguments, []


def make_parser() -> Parser:
    program = program_name()
    parser = Parser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings = Path(f"/etc/{program.removesuffix('ctl')}/hostctl.json")
    parser.add_argument("--settings", type=Path, default=settings, help="default: %(default)s")
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("status", "releases", "previous", "domains"):
        commands.add_parser(name).add_argument("--json", action="store_true")
    add_deployment_commands(commands)
    log_options = commands.add_parser("logs")
    log_options.add_argument("process", metavar="PROCESS", nargs="?", default="")
    log_options.add_argument("-f", "--follow", action="store_true", help="print new lines as they come")
    log_options.add_argument("-n", "--lines", type=int, default=100, help="default: %(default)s")
    log_options.add_argument("--json", action="store_true")
    for name in ("manage", "celery", "boot", "halt"):
        commands.add_parser(name)
    add_parked_commands(commands)
    add_import_command(commands)
    backup_commands.add_commands(commands)
    doctor_commands.add_commands(commands)
    return parser


def add_import_command(commands: Any) -> None:
    command = commands.add_parser("import-database")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "file", type=Path, metavar="FILE", nargs="?", help="of pg_dump: plain SQL, .sql.gz, custom or tar"
    )
    which.add_argument("--return", dest="kept", metavar="NAME", default="", help="a database that an import has kept")
    command.add_argument("--replace", action="store_true", help="even if the present database has rows; it is kept")


def add_parked_commands(commands: Any) -> None:
    parked = commands.add_parser("tasks").add_subparsers(required=True, metavar="parked").add_parser("parked")
    actions = parked.add_subparsers(dest="action", required=True, metavar="list|show|requeue|drop")
    listing = actions.add_parser("list", help="the parked messages, oldest first, and why each was parked")
    show = actions.add_parser("show", help="everything about one: headers, properties, body")
    requeue = actions.add_parser(
        "requeue", help="put it behind the others in its queue; its earlier returns no longer count"
    )
    drop = actions.add_parser("drop", help="delete it")
    show.add_argument("id", metavar="ID")
    for action in (requeue, drop):
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument("id", metavar="ID", nargs="?", default="", help="the ID of its task, as `list` prints it")
        which.add_argument("--all", action="store_true", help="every parked message")
    drop.add_argument("--yes", action="store_true", help="do not ask")
    for action in (listing, show, requeue, drop):
        action.add_argument("--json", action="store_true")


def add_deployment_commands(commands: Any) -> None:
    deploy = commands.add_parser("deploy")
    deploy.add_argument("release", metavar="ID")
    deploy.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .tar.gz of the project; - reads stdin")
    receive = commands.add_parser("receive")
    receive.add_argument("release", metavar="ID")
    for command in (deploy, receive):
        command.add_argument("--bytes", type=int, help="the length of the archive")
        command.add_argument("--unpacked", type=int, help="its length without compression")
        help_text = "stdin is the part of the archive from this byte on, and earlier parts were received before"
        command.add_argument("--offset", type=int, help=help_text)
    rollback = commands.add_parser("rollback")
    rollback.add_argument("release", metavar="ID", nargs="?", default="")
    help_text = "idempotency key (a UUID): a repeated call follows the deployment that the first one started"
    for command in (deploy, rollback, receive):
        command.add_argument("--key", type=UUID, default=uuid4(), help=help_text)
    for command in (deploy, rollback):
        command.add_argument("--by", default=caller(), help="recorded as the user who deploys")
        command.add_argument("--force", action="store_true", help="even if the database is ahead of the release")
        # Used by the unit that runs the deployment.
        command.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
        command.add_argument("--log", default="", help=argparse.SUPPRESS)
    follow = commands.add_parser("follow")
    follow.add_argument("--log", default="", help="default: that of the running deployment, or of the last one")
    follow.add_argument("--from", dest="offset", type=int, default=0, help="skip so many bytes of the log")
    follow.add_argument("--until", type=barrier, default="", help="all hosts have reached this barrier, or end")
    verify = commands.add_parser("verify")
    for command in (deploy, rollback, follow, receive, verify):
        command.add_argument("--seconds", type=float, help="follow for so long; default: to the end")
        command.add_argument("--json", action="store_true")
    cancel = commands.add_parser("cancel")
    cancel.add_argument("--log", default="", help="only the deployment that writes this log")
    cancel.add_argument("--json", action="store_true")


def barrier(text: str) -> str:
    """Return the name of a barrier, or "end". Raises ArgumentTypeError."""
    from .deploy.steps import BARRIERS

    if text and text not in (names := [*BARRIERS, "end"]):
        raise argparse.ArgumentTypeError(f"it must be one of {', '.join(names)}")
    return text


def main(arguments: list[str]) -> int:
    """Run a command and return the exit status."""
    as_json = "--json" in split_passed_on(arguments)[0]
    # Files have the same modes whatever the umask of the login.
    os.umask(0o022)
    try:
        options = parse(arguments)
        if os.geteuid() != 0:
            raise UsageError(f"run it as root: sudo {shlex.join([program_name(), *arguments])}")
        settings = Settings.load(options.settings)
        upgrade.upgrade(settings)
        host = Host(settings)
        if options.command not in ("deploy", "rollback"):
            host = host.about(host.current_release())
        return COMMANDS[options.command](host, options, arguments)
    except UsageError as error:
        return report_error(as_json, WRONG_USAGE, str(error))
    except BusyError as error:
        return report_error(as_json, BUSY, str(error))
    except ReleaseError as error:
        return report_error(as_json, FAILED, str(error))


def report_error(as_json: bool, status: int, text: str) -> int:
    if as_json:
        say(json.dumps({"error": text, "status": status}))
    else:
        print(text, file=sys.stderr)
    return status


# --- Commands: each gets the host, its options, and all arguments. Each imports its own modules only: timers start this
# program every few seconds.


def show_status(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .status import describe, status

    found = status(host)
    say(json.dumps(found) if options.json else describe(found))
    return NOT_RUNNING if found["problems"] else 0


def verify(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .deploy import control

    options.release = host.current_release()
    return control.already_live(host, options)


def show_releases(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .status import table

    entries = history(host.settings)
    say(json.dumps(entries) if options.json else table(entries))
    return 0


def show_previous(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .status import previous_release

    release = previous_release(host)
    say(json.dumps({"release": release}) if options.json else release)
    return 0


def show_domains(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    names = host.domains()
    say(json.dumps(names) if options.json else "\n".join(names))
    return 0


def deploy(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .deploy import control

    if options.here:
        return control.run_deployment(host, options)
    return control.start(host, options, arguments, sys.stdin.buffer)


def receive(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .deploy import archive

    try:
        archive.receive(host, options, sys.stdin.buffer)
    except BaseException:
        if options.offset is not None:
            archive.skip(sys.stdin.buffer)
        raise
    if options.json:
        say(json.dumps({"running": False, "status": 0}))
    return 0


def follow(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .deploy import control

    return control.follow(host, options)


def cancel(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from .deploy import control

    return control.cancel(host.settings, options.log, as_json=options.json)


def show_logs(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from . import logs

    if not options.json:
        logs.show(host.settings, options.process, follow=options.follow, lines=options.lines)
    say(json.dumps(logs.entries(host.settings, options.process, options.lines)))
    return 0


def manage(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    owner = options.arguments[:1] == ["--owner"]
    words = options.arguments[1:] if owner else options.arguments
    application = current_application(host)
    application.replace_process(*application.django, *words, owner=owner)


def celery(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    if not host.settings.celery_app:
        raise ReleaseError("The application has no Celery: app_celery_app is empty.")
    words = ["-m", "celery", "-A", host.settings.celery_app, *options.arguments]
    current_application(host).replace_process(*words)


def tasks(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    if not host.settings.celery_app:
        raise ReleaseError("The application has no Celery: app_celery_app is empty.")
    from . import parked

    application = current_application(host)
    try:
        return parked.run(application, options)
    finally:
        application.close()


def current_application(host: Host) -> Application:
    if not (release := host.current_release()):
        raise ReleaseError("No release is live: deploy one first.")
    from .application import Application

    return Application(host, release)


def import_dump(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    from . import import_database

    return import_database.run(host, options)


def backup(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    return backup_commands.run(host, options)


def doctor(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    return doctor_commands.run_doctor(host, options)


def watch(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    doctor_commands.run_watch(host, options)
    # What it finds is told elsewhere: its unit fails when the watch itself does.
    return 0


def alert_test(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    return doctor_commands.run_alert_test(host, options)


def boot(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    host.boot()
    return 0


def halt(host: Host, options: argparse.Namespace, arguments: list[str]) -> int:
    host.halt()
    return 0


COMMANDS = {
    "status": show_status,
    "verify": verify,
    "releases": show_releases,
    "previous": show_previous,
    "domains": show_domains,
    "deploy": deploy,
    "rollback": deploy,
    "receive": receive,
    "follow": follow,
    "cancel": cancel,
    "logs": show_logs,
    "manage": manage,
    "celery": celery,
    "tasks": tasks,
    "import-database": import_dump,
    "backup": backup,
    "doctor": doctor,
    "watch": watch,
    "alert": alert_test,
    "boot": boot,
    "halt": halt,
}
