"""Copy the write-ahead log off the host and read it back: every few seconds, by a timer.

A run sets the canary, waits until the segment with it is in the repository of this host, copies the new segments to
the target as they are (encrypted), reads them back, and says in `shipped.json` at the target up to where it can be
restored. A target that is away changes nothing on this host; the run after it copies what is missing.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..settings import BusyError, ReleaseError
from . import history
from .configuration import Configuration
from .server import Canary, Server
from .state import ForeignError, State, lock
from .tools import ACCOUNT, WRITE_SECRETS, Backup, Repository, Target, move_away

RECORD = "shipped.json"
# An earlier record. Over SFTP a file is written in place: when the host dies meanwhile, the first one is half of one.
RECORD_COPY = "shipped.json.copy"
# Seconds after which this host makes sure again that the target is its own, and copies the record there: with the time
# between two runs, a restore from the copy must lose at most a minute.
OWNER_SECONDS = 40
# Bound of one run, in seconds: the first one after an outage has much to copy.
RUN_SECONDS = 1800
# Files that change in place, by their names.
INFO = ("archive.info", "archive.info.copy")
PASSPHRASES = ("backup_files_key", "backup_key")
# Commands in a message, for one damaged file each.
MOST_COMMANDS = 5


class UnreadableError(ReleaseError):
    """What the target says of itself is not whole."""


def ship(configuration: Configuration) -> dict[str, Any]:
    """Make the present state of the database restorable, off this host too if there is a target; return what is.

    While segments are missing, the later ones are copied, and no later state counts as restorable.
    """
    state = State(configuration, "ship")
    with lock(configuration, "ship", wait=5), state.recorded() as values:
        began = time.time()
        server = Server(configuration)
        server.require_archive()
        canary = server.write_canary()
        server.wait_archived(canary.segment)
        now = record(configuration, canary)
        hole = newest_hole(configuration, now["segment"], server.segment_bytes())
        if not hole:
            state.write(local=now)
        if configuration.target:
            send(configuration, sent_before(configuration, state), now, restorable=not hole)
            # What is added to the repository from now on belongs to the next run.
            state.write(copied_from=began, target=configuration.target)
        if hole:
            raise ReleaseError(hole)
        if configuration.target:
            values["shipped"] = now
    return state.read()


def sent_before(configuration: Configuration, state: State) -> dict[str, Any]:
    """Return a state if it is about the present target; another one has nothing yet."""
    found = state.read()
    return found if found.get("target") == configuration.target else {}


def record(configuration: Configuration, canary: Canary) -> dict[str, Any]:
    """Return what a restore needs to know of a restorable state."""
    return {
        "at": canary.at, "seconds": canary.seconds, "lsn": canary.lsn, "segment": canary.segment,
        "system_id": canary.system_id, "version": configuration.version, "host": socket.gethostname(),
        "fingerprints": configuration.fingerprints, "owner": owner(configuration), "gaps": gaps(configuration),
    }  # fmt: skip


def owner(configuration: Configuration) -> str:
    """Return what tells this server from a copy of it, which has the same database; made once, and by a restore."""
    state = State(configuration, "owner")
    if not (found := state.read().get("owner")):
        found = new_owner()
        state.write(owner=found)
    return found


def new_owner() -> str:
    # The module secrets loads OpenSSL, in each run of the timer.
    return os.urandom(8).hex()


def take_over(configuration: Configuration, record: dict[str, Any]) -> None:
    """Continue the copies of the server that made a record; that server is refused from then on."""
    State(configuration, "owner").replace({"owner": new_owner(), "former": record.get("owner", "")})


def gaps(configuration: Configuration) -> list[list[float]]:
    """Return the spans of time that restores gave up, in seconds since 1970: no moment in them can be restored."""
    return State(configuration, "gaps").read().get("gaps", [])


def send(configuration: Configuration, last: dict[str, Any], now: dict[str, Any], *, restorable: bool) -> None:
    """Copy new segments to the target; if `now` is restorable, say there up to where it can be restored.

    Raises ForeignError when the target belongs to another server, ToolError when it does not take them.
    """
    target = Target(configuration)
    found, is_checked = last.get("shipped"), False
    if time.time() - last.get("checked_at", 0) > OWNER_SECONDS or last.get("problem"):
        found, is_checked = require_own(configuration, target), True
        if last.get("shipped") and not found:
            # It was emptied: everything is new to it.
            last = {}
            State(configuration, "backups").write(sent=[])
        if found:
            target.write(RECORD_COPY, to_text(found))
    archive = configuration.repository / "archive"
    files = new_files(archive, last.get("copied_from", 0), last.get("shipped", {}).get("segment", ""))
    target.copy(archive, "archive", files, RUN_SECONDS)
    state = State(configuration, "ship")
    if is_checked and not found:
        state.write(claimed=configuration.target)
    if restorable:
        target.write(RECORD, to_text(now))
        if not found:
            target.write(RECORD_COPY, to_text(now))
    # The first record has its copy before another one is written over it.
    if is_checked and (found or restorable):
        state.write(checked_at=time.time(), claimed="")


def new_files(archive: Path, since: float, after: str = "") -> Iterator[str]:
    """Yield the files that were added to the archive since a time, a little of overlap included.

    Also segments that follow `after`, whatever the clock says. Those up to `after` were read back, and are not copied
    again: what is damaged here later stays whole there, and no copy is half of one when this host dies meanwhile.
    """
    folders = segment_folders(archive)
    # Of an upgraded server, each version has a folder with names of its own.
    newest = max(
        (folder.parent for folder in folders), key=lambda path: int(path.name.rpartition("-")[2]), default=None
    )
    for folder in folders:
        is_later = bool(after) and folder.parent == newest and folder.name >= after[:16]
        try:
            if not is_later and folder.stat().st_mtime <= since - 2:
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:  # Expired meanwhile.
            continue
        is_present = folder.parent == newest and folder.name[:8] == after[:8]
        for entry in entries:
            if is_present and entry.name[24:25] == "-" and entry.name[:24] <= after:
                continue
            with suppress(FileNotFoundError):
                is_new = entry.stat().st_mtime > since - 2 or (is_later and entry.name[:24] > after)
                if is_new and entry.is_file(follow_symlinks=False) and not entry.name.endswith(".tmp"):
                    yield str(Path(entry.path).relative_to(archive))
    for path in sorted(archive.glob("*/*/*.history*")):
        yield str(path.relative_to(archive))


def segment_folders(archive: Path) -> list[Path]:
    """Return the folders with segments: each of the first 16 digits of their names, in one for each version."""
    return [path for path in sorted(archive.glob("*/*/" + "[0-9A-F]" * 16)) if path.is_dir()]


def require_own(configuration: Configuration, target: Target) -> dict[str, Any]:
    """Return what the target says of itself. Raises ForeignError when it has the backups of another server."""
    try:
        found = shipped(target)
    except UnreadableError:
        # It was empty, and the first record of this server is half written: the run was killed.
        if State(configuration, "ship").read().get("claimed") != configuration.target:
            raise
        found = {}
    state = State(configuration, "owner").read()
    is_own = not found.get("owner") or found["owner"] in (state.get("owner"), state.get("former"))
    if found and not (is_own and found.get("system_id") in Repository(configuration).system_ids()):
        lines = [
            f"{configuration.target} has the backups of another database or server: that of {found.get('host')}, up "
            f"to {found.get('at')}. They stay as they are, and this database is not copied off the host.",
            *how_to_restore(configuration, found),
            "To keep this database: set another folder in app_backup_target, then run site.yml.",
        ]
        raise ForeignError("\n".join(lines))
    return found


def how_to_restore(configuration: Configuration, record: dict[str, Any]) -> list[str]:
    """Return lines that say how a server with backups of its own restores those of which the target has this record."""
    playbook = "ansible-playbook -i INVENTORY playbooks/restore.yml -e restore_offsite=true"
    if not (other := other_passphrases(configuration, record)):
        return [f"To restore them here: {playbook}"]
    steps = [f"{WRITE_SECRETS[0].upper()}{WRITE_SECRETS[1:]}."]
    if "backup_key" in other:
        # The passphrase of the target does not open the repository of this host, where site.yml would stop.
        steps.append(f"As root on this server: {move_away(configuration.repository)}")
    steps += ["ansible-playbook -i INVENTORY site.yml -e secrets_replace=true", playbook]
    return [
        f"The passphrases here do not open them ({', '.join(other)}). To restore them here:",
        *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
    ]


def other_passphrases(configuration: Configuration, record: dict[str, Any]) -> list[str]:
    """Return the names of the passphrases here that do not open the backups of which the target has this record."""
    there, here = record.get("fingerprints", {}), configuration.fingerprints
    return [name for name in PASSPHRASES if name in there and there[name] != here.get(name)]


def shipped(target: Target) -> dict[str, Any]:
    """Return what the target says of itself, {} when it is empty.

    Raises ToolError when it does not answer, UnreadableError when a record is damaged that has no copy.
    """
    # A file without a byte is half of one, too.
    texts = {name: text for name in (RECORD, RECORD_COPY) if (text := target.read(name)) is not None}
    for text in texts.values():
        with suppress(json.JSONDecodeError):
            return json.loads(text)
    if not texts:
        return {}
    deletion = "; ".join(target.command("deletefile", target.path(name)) for name in texts)
    raise UnreadableError(
        f"{' and '.join(texts)} at {target.name} cannot be read: {next(iter(texts.values()))[:100]!r}. Whose backups "
        f"are there is not known. If they are those of this server: {deletion} and the next copy writes new ones. If "
        "not, choose another folder in app_backup_target."
    )


def to_text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


# --- Continuity ----------------------------------------------------------------------------------------------------


def holes(configuration: Configuration, backup: Backup, last: str, segment_bytes: int) -> list[str]:
    """Return the segments that are missing in the repository of this host, from a backup on."""
    archive = configuration.repository / "archive"
    first = backup.wal_start[8:16]
    folders = [folder for folder in segment_folders(archive) if folder.name[8:16] >= first]
    found = history.segments(entry.name for folder in folders for entry in os.scandir(folder))
    # PostgreSQL keeps it beside the segments that it writes; the first timeline has none.
    file = Path(configuration.data) / "pg_wal" / f"{last[:8]}.history"
    text = file.read_text() if file.exists() else ""
    return history.missing(found, backup.wal_start, last, segment_bytes, text)


def newest_hole(configuration: Configuration, last: str, segment_bytes: int) -> str:
    """Return why the newest state cannot be restored, "" if it can be (or there is no backup yet)."""
    backups = of_timeline(Repository(configuration).backups(), last, gaps(configuration))
    names = holes(configuration, backups[-1], last, segment_bytes) if backups else []
    if not names:
        return ""
    return (
        f"Segments of the write-ahead log are missing in {configuration.repository}: {history.describe(names)}. No "
        f"state after them can be restored. Begin a new history: {configuration.program} backup"
    )


def oldest_hole(configuration: Configuration, last: str, segment_bytes: int) -> str:
    """Return which moments cannot be restored although a backup is older, "" without such."""
    backups = of_timeline(Repository(configuration).backups(), last, gaps(configuration))
    names = holes(configuration, backups[0], last, segment_bytes) if backups else []
    if not names:
        return ""
    return (
        f"Segments of the write-ahead log are missing in {configuration.repository}: {history.describe(names)}. "
        f"Moments from there up to the next base backup ({configuration.program} backup list) cannot be restored. "
        f"{repair(configuration, [f'archive/{configuration.name}'], '--ignore-existing')}"
    )


def repair(configuration: Configuration, places: list[str], option: str = "--ignore-times") -> str:
    """Return what to do about files or folders of the repository that are damaged or lost: their copies come first."""
    if not configuration.target or not places:
        return only_from_now_on(configuration)
    target, commands = Target(configuration), []
    for place in in_few_commands(places):
        here = f"{configuration.repository}/{place}"
        copy = target.command("copyto", option, target.path(place), here)
        commands.append(f"{copy} && chown -R {ACCOUNT}: {shlex.quote(here)}")
    return (
        f"Copy back from {configuration.target} what is not whole here: {'; '.join(commands)}. Then see whether all is "
        f"well: {configuration.program} backup drill --local. Only if {configuration.target} does not have it whole, "
        f"give up everything older than a new backup, there too. {only_from_now_on(configuration)}"
    )


def in_few_commands(files: list[str]) -> list[str]:
    """Return the files of the repository, or where they are too many the folders of the log and of base backups."""
    if len(files) <= MOST_COMMANDS:
        return files
    return list(dict.fromkeys("/".join(file.split("/")[: 2 if file.startswith("archive/") else 3]) for file in files))


def only_from_now_on(configuration: Configuration) -> str:
    """Return the commands that remove everything older than a new backup, such as damaged files."""
    return (
        f"To have only backups from now on: {configuration.program} backup --full, then runuser -u postgres -- "
        f"pgbackrest --stanza={configuration.name} --repo1-retention-full-type=count --repo1-retention-full=1 expire"
    )


def of_timeline(backups: list[Backup], segment: str, spans: Iterable[Iterable[float]]) -> list[Backup]:
    """Return the backups that a segment can follow: not those of a state that a restore gave up."""
    return [
        backup for backup in backups
        if backup.wal_start[:8] <= segment[:8] and not any(begin < backup.stopped < end for begin, end in spans)
    ]  # fmt: skip


# --- Base backups --------------------------------------------------------------------------------------------------


def send_backups(configuration: Configuration) -> list[str]:
    """Copy the base backups that the target lacks, read them back, and return their labels.

    Last come the files that name them, so that the target never names what it does not have.
    """
    state = State(configuration, "backups")
    repository, target = Repository(configuration), Target(configuration)
    info = repository.info()
    labels = [backup.label for backup in repository.backups(info)]
    missing = [label for label in labels if label not in sent_before(configuration, state).get("sent", [])]
    if not missing:
        return []
    require_own(configuration, target)
    folder = configuration.repository / "backup"
    for label in missing:
        place = folder / configuration.name / label
        files = [str(path.relative_to(folder)) for path in sorted(place.rglob("*")) if path.is_file()]
        target.copy(folder, "backup", files, 6 * 3600)
    send_index(configuration)
    state.write(sent=labels, sent_at=time.time(), target=configuration.target)
    return missing


def send_index(configuration: Configuration) -> None:
    """Copy the files that name the backups.

    Raises ReleaseError when the write-ahead log is being copied for too long.
    """
    target, name = Target(configuration), configuration.name
    target.copy(configuration.repository / "backup", "backup", [f"{name}/backup.info", f"{name}/backup.info.copy"], 300)
    try:
        with lock(configuration, "ship", wait=120):
            target.copy(configuration.repository / "archive", "archive", [f"{name}/{file}" for file in INFO], 300)
    except BusyError:
        raise ReleaseError("The copy of the write-ahead log did not end within 2 minutes: type it again.") from None
