"""Make a backup now: a base backup of the database, a snapshot of the uploads, and both off the host."""

from __future__ import annotations

import shutil
import time

from ..settings import BusyError, ReleaseError, say
from .configuration import Configuration
from .files import copy_files
from .server import Server
from .ship import send_backups, ship
from .state import State, lock
from .tools import Backup, Repository

# Days after which a base backup is a full one again. (pgBackRest keeps those of two weeks.)
FULL_DAYS = 7
BACKUP_SECONDS = 12 * 3600


def back_up(configuration: Configuration, *, full: bool = False) -> None:
    """Make a backup of everything on this host, and print what it did. Raises ReleaseError at the first problem."""
    # A base backup also expires older ones, which a drill may be reading.
    with lock(configuration, "drill", wait=600), lock(configuration, "work", wait=600):
        if configuration.version:
            back_up_database(configuration, full=full)
        if configuration.target:
            send(configuration)
        else:
            copy_log(configuration)
            if configuration.folders:
                say("Uploads are not copied: app_backup_target is not set.")


def back_up_database(configuration: Configuration, *, full: bool = False) -> Backup:
    """Make a base backup in the repository of this host, and check that the log is complete."""
    state = State(configuration, "backups")
    repository = Repository(configuration)
    with state.recorded() as values:
        Server(configuration).require_archive()
        require_room(configuration)
        kind = "full" if full or full_is_due(repository.backups()) else "diff"
        say(
            "Backing up the database "
            f"({'all of it' if kind == 'full' else 'what has changed since the last full one'})."
        )
        began = time.monotonic()
        repository.call("backup", f"--type={kind}", seconds=BACKUP_SECONDS)
        backup = repository.backups()[-1]
        if backup.failed:
            raise ReleaseError(
                f"The backup {backup.label} found damaged pages in the database's files. See journalctl -u "
                f"{configuration.service}, and restore the last good backup: {configuration.program} backup list"
            )
        values |= {"label": backup.label, "kind": backup.kind, "size": backup.size, "stopped": backup.stopped}
        if backup.kind == "full":
            values["full_at"] = time.time()
    say(f"{backup.label}: {backup.size / 1e6:.0f} MB, in {time.monotonic() - began:.1f} s.")
    return backup


def require_room(configuration: Configuration) -> None:
    """Raise ReleaseError when a base backup, a fifth to a half of the database, could fill the disk."""
    needed = Server(configuration).size() / 2 + 2**28
    if (free := shutil.disk_usage(configuration.repository).free) < needed:
        raise ReleaseError(
            f"No base backup was made, since it could fill the disk: {needed / 2**30:.1f} GiB are needed in "
            f"{configuration.repository}, and {free / 2**30:.1f} are free."
        )


def full_is_due(backups: list[Backup]) -> bool:
    full = [backup for backup in backups if backup.kind == "full" and not backup.failed]
    return not full or time.time() - full[-1].stopped > FULL_DAYS * 86400 - 3600


def copy_log(configuration: Configuration) -> None:
    """Copy the write-ahead log, and print up to where the database can be restored."""
    if not configuration.version:
        return
    try:
        done = ship(configuration)
    except BusyError:
        # It is being copied by the timer's run.
        done = State(configuration, "ship").read()
    if found := done.get("shipped" if configuration.target else "local"):
        place = configuration.target or "this host"
        say(f"The database can be restored from {place} as it was at {found['at']}.")


def send(configuration: Configuration) -> None:
    """Copy everything that is not there yet to the target."""
    if configuration.version:
        labels = send_backups(configuration)
        if labels:
            say(f"Copied to {configuration.target} and read back: {', '.join(labels)}.")
        copy_log(configuration)
    if configuration.folders:
        found = copy_files(configuration)
        say(f"Uploads: {found['count']} files, {found['bytes'] / 1e6:.1f} MB, snapshot {found['snapshot'][:8]}.")


def regular(configuration: Configuration) -> None:
    """The run every ten minutes: uploads, and base backups that the target lacks. Another one's turn is left to it."""
    try:
        with lock(configuration, "work"):
            send(configuration)
    except BusyError as error:
        say(str(error))
