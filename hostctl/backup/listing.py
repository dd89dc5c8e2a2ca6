"""What can be restored: from the repository of this host, or from the target."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..settings import ReleaseError
from .configuration import OFFSITE, Configuration
from .ship import RECORD, of_timeline, shipped
from .state import State
from .tools import ACCOUNT, Backup, Repository, Target, lsn_number


class GivenUpError(ReleaseError):
    """A restore gave up what was written at the moment, in every copy of the backups."""


class TooLateError(ReleaseError):
    """The moment is after the newest state that can be restored."""


@dataclass(frozen=True)
class Point:
    """A state of the database that can be restored."""

    source: str
    backup: Backup
    # Options of pgBackRest.
    target: list[str]
    # The moment in seconds since 1970, and for people.
    seconds: float
    at: str
    # Is it the newest state, in which the canary has exactly this time?
    is_newest: bool
    # What the source says of its newest state.
    record: dict[str, Any]


def choose(
    configuration: Configuration, repository: Repository, source: str, record: dict[str, Any], moment: float | None
) -> Point:
    """Return the point for a moment, or the newest one. Raises ReleaseError when the backups do not have it."""
    backups = [backup for backup in repository.backups() if not backup.failed]
    if not backups:
        raise ReleaseError(f"There is no backup of the database at {source}.")
    if not record.get("lsn"):
        missing = f"{RECORD} is missing there" if source == OFFSITE else f"type {configuration.program} backup ship"
        raise ReleaseError(f"It is not known up to where the backups at {source} can be restored: {missing}.")
    backups = of_timeline(backups, record["segment"], record.get("gaps", []))
    options = ["--type=lsn", f"--target={record['lsn']}"]
    position, newest = lsn_number(record["lsn"]), moment is None
    if moment is not None:
        if moment > record["seconds"]:
            raise TooLateError(
                f"{iso(moment)} is after the newest state that can be restored from {source}: {record['at']}."
            )
        options = ["--type=time", f"--target={postgresql_time(moment)}"]
        # It is known to the second.
        usable = [backup for backup in backups if backup.stopped + 1 <= moment]
        for begin, end in record.get("gaps", []):
            if begin < moment < end:
                raise GivenUpError(
                    f"{iso(moment)} cannot be restored: an earlier restore gave up what was written between "
                    f"{iso(begin)} and {iso(end)}. Choose a moment before or after that, or return to the database "
                    f"that it replaced: {configuration.program} backup restore --undo"
                )
    else:
        moment = record["seconds"]
        usable = [backup for backup in backups if backup.lsn_stop <= position]
    if not usable:
        oldest = f"ended at {iso(backups[0].stopped)}" if backups else "is of a state that was given up"
        raise ReleaseError(f"The oldest backup at {source} {oldest}: {iso(moment)} is before that.")
    options.append(f"--target-timeline={int(record['segment'][:8], 16)}")
    return Point(source, usable[-1], options, moment, iso(moment), newest, record)


def parse_moment(text: str) -> float:
    """Return a moment such as 2026-11-28 18:59:30+00 in seconds since 1970. Raises ReleaseError without a time zone."""
    hint = "Write it as 2026-11-28T18:59:30+00:00, with the time zone (Z is UTC)."
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ReleaseError(f"{text!r} is not a date with a time. {hint}") from None
    if found.tzinfo is None:
        raise ReleaseError(f"{text!r} has no time zone. {hint}")
    return found.timestamp()


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def postgresql_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")


# --- The copy off the host -----------------------------------------------------------------------------------------


@contextmanager
def offsite_index(configuration: Configuration) -> Iterator[Repository]:
    """Yield a repository with the files only that name the backups at the target."""
    folder = configuration.state_folder / "index"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        names = [
            f"--include=/{part}/{configuration.name}/{part}.info{end}"
            for part in ("archive", "backup")
            for end in ("", ".copy")
        ]
        Target(configuration).fetch("", folder, *names, seconds=300)
        give_to_postgresql(folder)
        yield Repository(configuration, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch_repository(configuration: Configuration, folder: Path, backup: Backup | None = None) -> Repository:
    """Copy the repository from the target into a folder; with `backup` what that one needs only."""
    filters = ["--include=/archive/**", "--include=/backup/**"]
    if backup:
        name = configuration.name
        labels = [backup.label, *backup.needs]
        filters = [f"--include=/backup/{name}/{label}/**" for label in labels]
        filters += [f"--include=/backup/{name}/backup.info*", f"--include=/archive/{name}/archive.info*"]
        # Segments are in folders by the first 16 of their 24 digits.
        first = backup.wal_start[8:16]
        filters += [f"--include=/archive/{name}/*/*.history*"]
        filters += [f"--include=/archive/{name}/*/????????{later}/**" for later in from_digits(first)]
    Target(configuration).fetch("", folder, *filters, seconds=24 * 3600)
    give_to_postgresql(folder)
    return Repository(configuration, folder)


def from_digits(first: str) -> list[str]:
    """Return patterns for all strings of hexadecimal digits of the same length that are not smaller."""
    digits = "0123456789ABCDEF"
    patterns = [first]
    for at, digit in enumerate(first):
        if larger := digits[digits.index(digit) + 1 :]:
            patterns.append(f"{first[:at]}[{larger}]{'?' * (len(first) - at - 1)}")
    return patterns


def give_to_postgresql(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, ACCOUNT, ACCOUNT)


# --- What there is -------------------------------------------------------------------------------------------------


def overview(configuration: Configuration) -> dict[str, Any]:
    """Return what exists, and what the last runs did; a target that does not answer is a `problem`."""
    found: dict[str, Any] = {"target": configuration.target, "database": bool(configuration.version)}
    if configuration.version:
        try:
            found["backups"] = [vars(backup) for backup in Repository(configuration).backups()]
        except ReleaseError as error:
            found |= {"backups": [], "problem": str(error)}
    data = Path(configuration.data)
    found["kept"] = (
        [str(path) for path in sorted(data.parent.glob(f"{data.name}.before-*"))] if configuration.data else []
    )
    names = ("ship", "backups", "files", "drill")
    found |= {name: State(configuration, name).read() for name in names if name != "backups"}
    found["sent"] = State(configuration, "backups").read().get("sent", [])
    found["last_backup"] = State(configuration, "backups").read()
    if configuration.target and configuration.version:
        try:
            found["offsite"] = shipped(Target(configuration))
        except ReleaseError as error:
            found["problem"] = str(error)
    return found


def describe(found: dict[str, Any]) -> str:
    """Return the overview for people."""
    lines: list[str] = []
    if found["database"]:
        lines += [f"Base backups of the database on this host ({len(found['backups'])}):"]
        for backup in found["backups"]:
            there = ", off the host" if backup["label"] in found["sent"] else ""
            wrong = ", DAMAGED PAGES" if backup["failed"] else ""
            lines.append(
                f"  {backup['label']:<34} {backup['kind']:<5} {iso(backup['stopped'])} "
                f"{backup['size'] / 1e6:8.1f} MB{there}{wrong}"
            )
        local = found["ship"].get("local", {})
        if found["backups"] and local:
            first = found["backups"][0]["stopped"]
            lost = [f"{iso(begin)} to {iso(end)}" for begin, end in local.get("gaps", []) if end > first]
            but = f", except {' and '.join(lost)} (given up by a restore)" if lost else ""
            span = f"{iso(first)} to {local['at']} ({ago(local['seconds'])})"
            lines.append(f"Restorable on this host: any moment from {span}{but}.")
        if offsite := found.get("offsite"):
            lines.append(f"Restorable from {found['target']}: up to {offsite['at']} ({ago(offsite['seconds'])}).")
    if not found["target"]:
        lines.append(
            "There is no copy off this host (app_backup_target): this server's death would lose everything above."
        )
    elif files := found["files"]:
        lines.append(f"Uploads: {files.get('count', 0)} files, copied {ago(files.get('ok_at', 0))}.")
    if drill := found["drill"]:
        lines.append(
            f"Last drill: {drill.get('problem') or 'restored'}, "
            f"{ago(drill.get('ended_at') or drill.get('failed_at', 0))}."
        )
    for name in ("ship", "last_backup", "files"):
        if problem := found.get(name, {}).get("problem"):
            lines.append(f"Failed: {problem}")
    lines += [f"Replaced by a restore, and kept: {path} (to remove it: rm -r {path})" for path in found["kept"]]
    if found.get("problem"):
        lines.append(f"Problem: {found['problem']}")
    return "\n".join(lines)


def ago(seconds: float) -> str:
    """Return how long ago a moment was."""
    age = max(0, round(time.time() - seconds))
    if seconds <= 0:
        return "never"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * length:
            return f"{age // length} {unit} ago"
    return f"{age} s ago"
