"""Restore the newest state beside the running database, and check it: weekly, by a timer.

Alternately from the repository of this host and from the target. What was restored is removed again. A drill from this
host also reads all of the repository; each drill reads a part of the copies at the target that the newest state does
not need, so that damage in an older backup is found while there are others.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from ..settings import BusyError, ReleaseError, say
from .checks import check_canary, check_migrations, check_readable, check_rows, count_rows, migrations
from .configuration import LOCAL, OFFSITE, Configuration
from .files import seconds_of
from .listing import Point, choose, fetch_repository, offsite_index
from .scratch import Scratch, clear, own_folder
from .server import Server
from .ship import INFO, in_few_commands, newest_hole, oldest_hole, repair, require_own, send_index, shipped
from .state import State, lock
from .tools import DamagedError, Repository, Restic, Target, ToolError

# Free space that a drill leaves.
RESERVE = 2**30
# Files of uploads that are compared.
SAMPLE = 20
# The parts in which the copies at the target are read: one in each weekly drill, and a full backup lives for 3 weeks.
PARTS = 3
# As many of them at most, however slowly they are read.
MOST_PARTS = 24
# MiB a second, and seconds, in which a part is read at most.
READ_RATE, READ_SECONDS = 10, 4 * 3600
VERIFY_SECONDS = 6 * 3600


class NoRoomError(ReleaseError):
    """There is not enough space for a drill: nothing is wrong, and nothing is proven."""


def drill(configuration: Configuration, source: str = "") -> None:
    """Restore and check. Raises ReleaseError with what is wrong with the backups; the outcome is in drill.json.

    While it only reads, which may take hours, uploads and base backups are copied; `drill` keeps new ones off.
    """
    state = State(configuration, "drill")
    with lock(configuration, "drill", wait=3600), state.recorded() as values:
        source = source or next_source(configuration, state.read())
        values |= {"source": source, "ok_from": state.read().get("ok_from", {})}
        began = time.monotonic()
        with lock(configuration, "work", wait=3600):
            if configuration.version:
                values |= drill_database(configuration, source, state.read())
                check_history(configuration)
            if configuration.folders and configuration.target:
                values |= drill_files(configuration)
        if configuration.version:
            read_copies(configuration, source, values)
        # After a drill from the target nothing is known of the files of this host.
        if configuration.target and configuration.version and source == LOCAL:
            try:
                with lock(configuration, "work", wait=3600):
                    remove_expired(configuration)
            except BusyError as error:
                values["warnings"].append(f"expired backups are still at {configuration.target}: {error}")
        values["seconds"] = round(time.monotonic() - began, 1)
        values["ok_from"][source] = time.time()
    say(describe(values))


def next_source(configuration: Configuration, last: dict[str, Any]) -> str:
    if not configuration.target:
        return LOCAL
    return LOCAL if last.get("source") == OFFSITE else OFFSITE


def drill_database(configuration: Configuration, source: str, last: dict[str, Any]) -> dict[str, Any]:
    folder = configuration.state_folder / "drill"
    clear(folder)
    try:
        point = find_point(configuration, source)
        require_room(configuration, point)
        own_folder(folder)
        say(f"Restoring the database as it was at {point.at}, from {source}, beside the running one.")
        repository = Repository(configuration)
        if source == OFFSITE:
            repository = fetch_repository(configuration, folder / "repository", point.backup)
        return restore_and_check(configuration, repository, point, folder, last)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_point(configuration: Configuration, source: str) -> Point:
    if source == OFFSITE:
        record = shipped(Target(configuration))
        with offsite_index(configuration) as index:
            return choose(configuration, index, source, record, None)
    record = State(configuration, "ship").read().get("local", {})
    if record and (hole := newest_hole(configuration, record["segment"], Server(configuration).segment_bytes())):
        raise ReleaseError(hole)
    return choose(configuration, Repository(configuration), source, record, None)


def require_room(configuration: Configuration, point: Point) -> None:
    needed = round(2.2 * point.backup.size) + RESERVE
    free = shutil.disk_usage(configuration.state_folder).free
    if free < needed:
        raise NoRoomError(
            f"No drill: it needs {needed / 2**30:.1f} GiB in {configuration.state_folder}, and there are "
            f"{free / 2**30:.1f} GiB. Whether the backups can be restored is not known."
        )


def restore_and_check(
    configuration: Configuration, repository: Repository, point: Point, folder: Path, last: dict[str, Any]
) -> dict[str, Any]:
    scratch = Scratch(configuration, folder / "data", folder / "run", lasting=False)
    scratch.restore(repository, point.backup.label, point.target)
    scratch.start()
    try:
        lost = time.time() - point.seconds
        check_canary(configuration, scratch.server, point)
        restored = migrations(scratch.server, configuration.database)
        live = migrations(Server(configuration), configuration.database)
        check_migrations(restored, live, "that is live")
        if missing := [
            f"{app}.{name}"
            for (app, name), at in live.items()
            if at < point.seconds - 60 and (app, name) not in restored
        ]:
            raise ReleaseError(
                f"The restored database lacks migrations that were applied before: {', '.join(missing[:5])}."
            )
        counts = count_rows(scratch.server, configuration.database)
        check_readable(configuration, scratch.server)
    finally:
        scratch.stop()
    warnings = check_rows(counts, last.get("rows", {}))
    return {
        "at": point.at,
        "lost_seconds": round(lost, 1),
        "size": point.backup.size,
        "rows": counts,
        "warnings": warnings,
    }


def check_history(configuration: Configuration) -> None:
    """Raise ReleaseError when files are missing that earlier moments need, on this host or at the target."""
    last = State(configuration, "ship").read()
    local = last.get("local")
    if local and (hole := oldest_hole(configuration, local["segment"], Server(configuration).segment_bytes())):
        raise ReleaseError(hole)
    if configuration.target:
        with lock(configuration, "ship", wait=120):
            compare_sizes(configuration)


def copied_files(configuration: Configuration) -> dict[str, list[str]]:
    """Return the files of the repository that the target has, by the part of the repository that they are in."""
    last = State(configuration, "ship").read()
    if not last.get("shipped") or last.get("target") != configuration.target:
        return {}
    sent = State(configuration, "backups").read().get("sent", [])
    archive, backup = configuration.repository / "archive", configuration.repository / "backup"
    logs = [path for path in archive.rglob("*") if is_copied(path) and path.stat().st_mtime < last["copied_from"]]
    bases = [path for label in sent for path in (backup / configuration.name / label).rglob("*") if is_copied(path)]
    return {
        "backup": [str(path.relative_to(backup)) for path in bases],
        "archive": [str(path.relative_to(archive)) for path in logs],
    }


def compare_sizes(configuration: Configuration) -> None:
    """Raise ReleaseError when the target lacks files, or has them in another size."""
    target, wrong = Target(configuration), []
    for part, files in copied_files(configuration).items():
        wrong += target.differing(configuration.repository / part, part, files)
    if wrong:
        raise ReleaseError(
            f"{target.name} lacks files of the backups, or has others: {first(wrong)}. A new backup does not need "
            f"them: {configuration.program} backup --full"
        )


def verify(configuration: Configuration) -> None:
    """Read the repository of this host. Raises ReleaseError with what is damaged."""
    try:
        Repository(configuration).verify(VERIFY_SECONDS)
    except DamagedError as error:
        places = dict.fromkeys(filter(None, (place_of(configuration, line) for line in error.files)))
        raise ReleaseError(f"{error}. {repair(configuration, list(places))}") from None


def place_of(configuration: Configuration, line: str) -> str:
    """Return what to copy for a file that `pgbackrest verify` names: of a base backup all, as files are in bundles."""
    found = re.search(r"'(\d+-\d+/[^']+|\d{8}-\d{6}F[^/']*)", line)
    if not found:
        return ""
    return f"{'archive' if '/' in found[1] else 'backup'}/{configuration.name}/{found[1]}"


def read_copies(configuration: Configuration, source: str, values: dict[str, Any]) -> None:
    """Read what the newest state does not need: the repository of this host, and a part of the copies at the target."""
    if source == LOCAL:
        verify(configuration)
    if configuration.target:
        values["part"], values["parts"] = number, parts = next_part(State(configuration, "drill").read())
        unread = read_part(configuration, number, parts, is_verified=source == LOCAL)
        values["unread"] = bool(unread)
        values["warnings"] = values["warnings"] + unread


def next_part(last: dict[str, Any]) -> tuple[int, int]:
    """Return the part that a drill reads, and how many there are.

    After a drill that failed it is the same one; after one that had not enough time, a half of it. After all of them
    were read, there are half as many again.
    """
    number, parts, is_unread = last.get("part", -1), last.get("parts", PARTS), last.get("unread")
    if is_unread and parts < MOST_PARTS:
        return number, 2 * parts
    if number + 1 < parts:
        return number + 1, parts
    return 0, parts if is_unread else max(PARTS, parts // 2)


def part_of(file: str, parts: int = PARTS) -> int:
    return zlib.crc32(file.encode()) % parts


def read_part(configuration: Configuration, number: int, parts: int = PARTS, *, is_verified: bool = False) -> list[str]:
    """Read a part of the copies at the target, and return warnings of what was not read, since that takes too long.

    Raises ReleaseError with the files that are not what was copied; which of the two is damaged is found by reading
    the repository of this host, unless it `is_verified`.
    """
    target, wrong, unread = Target(configuration), [], []
    how, copied, deadline = ("--download", f"--bwlimit={READ_RATE}M"), copied_files(configuration), time.monotonic()
    for folder, files in copied.items():
        names = [file for file in files if part_of(file, parts) == number]
        # Each has its own time: the first one must not use that of the other.
        deadline += READ_SECONDS / len(copied)
        left = max(1, deadline - time.monotonic())
        try:
            wrong += target.differing(configuration.repository / folder, folder, names, how=how, seconds=left)
        except ToolError as error:
            if error.status is not None:
                raise
            unread.append(
                f"not all of part {number + 1} of {parts} of the copies in {target.name}/{folder} was read ({error})"
                + (": the next drills read half as much each" if parts < MOST_PARTS else "")
            )
    if not wrong:
        return unread
    if not is_verified:
        verify(configuration)
    commands = [
        target.command("copyto", "--ignore-times", f"{configuration.repository}/{place}", target.path(place))
        for place in in_few_commands(wrong)
    ]
    raise ReleaseError(
        f"{target.name} does not return what was copied to it: {first(wrong)}. The files of this host are whole. To "
        f"copy again what is damaged there: {'; '.join(commands)}"
    )


def first(names: list[str]) -> str:
    """Return the first three of them, and how many others there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_copied(path: Path) -> bool:
    """Return whether a file of the repository is copied once, and stays as it is."""
    return path.is_file() and not path.is_symlink() and not path.name.endswith(".tmp") and path.name not in INFO


def drill_files(configuration: Configuration) -> dict[str, Any]:
    """Check a part of the repository, and compare a sample of files with those of this host."""
    restic = Restic(configuration)
    if not restic.exists() or not (snapshots := restic.snapshots()):
        raise ReleaseError("There is no snapshot of the uploads at the target.")
    restic.call("unlock", "--quiet", seconds=300)
    restic.call("check", f"--read-data-subset={time.localtime().tm_yday // 7 % 12 + 1}/12", seconds=6 * 3600)
    newest = snapshots[-1]
    lines = restic.call("ls", "--json", newest["id"], seconds=600).splitlines()
    entries = [
        entry for entry in map(json.loads, lines) if entry.get("type") == "file" and entry.get("size", 0) < 2**26
    ]
    sample = random.sample(entries, min(SAMPLE, len(entries)))
    compared = 0
    with tempfile.TemporaryDirectory(dir=configuration.state_folder) as folder:
        if sample:
            patterns = [f"--include={literal(entry['path'])}" for entry in sample]
            restic.call("restore", newest["id"], f"--target={folder}", *patterns, seconds=3600)
        for entry in sample:
            restored, live = Path(folder) / entry["path"].lstrip("/"), Path(entry["path"])
            if not restored.is_file():
                raise ReleaseError(f"The copy of {live} cannot be restored from the target.")
            if live.is_file() and abs(live.stat().st_mtime - seconds_of(entry["mtime"])) < 1:
                compared += 1
                if digest(live) != digest(restored):
                    raise ReleaseError(f"The copy of {live} at the target differs from the file.")
    return {"files": len(entries), "files_restored": len(sample), "files_compared": compared}


def literal(path: str) -> str:
    """Return a pattern of restic that matches this path only."""
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in path)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_expired(configuration: Configuration) -> None:
    """Remove from the target what the repository of this host does not have any more, as it has expired.

    Only after a drill that has read that repository: what was lost here would be removed there, too. Nothing there is
    overwritten.
    """
    target = Target(configuration)
    require_own(configuration, target)
    # What is copied meanwhile would be missing in the list of what is here, and be removed.
    with lock(configuration, "ship", wait=120):
        for part in ("backup", "archive"):
            options = ["--ignore-existing", "--max-delete=100000", "--filter=- *.tmp"]
            target.call("sync", str(configuration.repository / part), target.path(part), *options, seconds=6 * 3600)
    send_index(configuration)


def describe(values: dict[str, Any]) -> str:
    lines = []
    if "at" in values:
        lines.append(
            f"Restored and checked: the database as it was at {values['at']} ({values['size'] / 1e6:.0f} MB, "
            f"{sum(values['rows'].values()):,} rows in its largest tables)."
        )
    if "files" in values:
        lines.append(
            f"Uploads: {values['files_restored']} of {values['files']} files restored, "
            f"{values['files_compared']} compared."
        )
    lines += [f"Warning: {line}." for line in values.get("warnings", [])]
    return "\n".join([*lines, f"The drill took {values['seconds']} s."])
