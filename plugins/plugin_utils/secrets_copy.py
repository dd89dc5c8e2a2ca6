"""The copy of the generated secrets that one host of an installation keeps, readable by root only.

A machine that lacks secrets fetches them from there. The state of the copy (`CopyState`, without values) is in the
temporary folder of this run, for the comparison with the other hosts.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugin_utils.generated import LOGIN, MARK, NEXT, PREVIOUS, create, read, temporary

# A host must not choose other files of this machine.
NAME = re.compile(rf"[a-z][a-z0-9_]*({PREVIOUS}|{NEXT})?")


@dataclass(frozen=True)
class CopyState:
    """What this run knows of a host's copy."""

    host: str
    recorded_at: float
    by: str
    names: list[str]
    # Of those, the values that this machine has, too, and that differ here.
    differing: list[str]
    problem: str = ""


def is_value(name: str) -> bool:
    """Return whether a file has a value in use, instead of something that a rotation leaves until it has ended."""
    return name != MARK and not name.endswith((PREVIOUS, NEXT))


def content(secrets: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the files for the copy, by their names: none of a secret that the user has set."""
    generated = [name for name, value in secrets.items() if name == LOGIN or value == read(folder / name)]
    names = [name + suffix for name in generated for suffix in ("", PREVIOUS, NEXT)]
    return {name: read(folder / name) for name in [*names, MARK] if (folder / name).exists()}


def new_copy(files: Mapping[str, str]) -> dict[str, Any]:
    """Return the copy as a host keeps it."""
    return {"recorded_at": time.time(), "by": f"{user()}@{socket.gethostname()}", "files": files}


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # In a container, a user may have a number only.
        return f"uid {os.getuid()}"


def damage(copy: Mapping[str, Any]) -> str:
    """Return what is wrong in a copy; "" if nothing is."""
    files = copy.get("files")
    if not isinstance(files, dict) or not isinstance(copy.get("recorded_at"), int | float):
        return "it has no files or no time"
    wrong = [name for name, text in files.items() if not NAME.fullmatch(name) or not valid(name, text)]
    return f"{', '.join(map(repr, wrong))}: no file of secrets" if wrong else ""


def valid(name: str, text: Any) -> bool:
    """Return whether the text is that of a secret: one line; in the marker file, a name in each."""
    if not isinstance(text, str):
        return False
    return all(NAME.fullmatch(line) for line in text.split()) if name == MARK else text.isprintable()


def copy_state(host: str, copy: Mapping[str, Any], folder: Path) -> CopyState:
    """Return what this run must know of a host's copy."""
    if problem := damage(copy):
        return CopyState(host, 0, "", [], [], problem)
    files = copy["files"]
    names = [name for name in files if is_value(name)]
    different = [name for name in names if (folder / name).exists() and read(folder / name) != files[name]]
    return CopyState(host, copy["recorded_at"], str(copy.get("by")), names, different)


def missing_files(files: Mapping[str, str], folder: Path) -> list[str]:
    """Return what to fetch: nothing if the folder has every value, since a rotation may have ended there."""
    missing = [name for name in files if not (folder / name).exists()]
    return missing if any(is_value(name) for name in missing) else []


def fetch(files: Mapping[str, str], folder: Path, replace: bool) -> None:
    """Write the files of a copy to the temporary folder of this run, with those of the folder unless they are replaced.

    From then on they count, instead of those in the folder and those that this run has generated.
    """
    fetched = temporary("fetched", folder)
    if folder.exists() and not replace:
        shutil.copytree(folder, fetched, ignore=shutil.ignore_patterns(".*"))
    put(files, fetched)


def put(files: Mapping[str, str], folder: Path) -> None:
    """Create the files that are missing. Values come last: a run that was killed fetches the rest of them."""
    for name in sorted(files, key=is_value):
        create(folder / name, f"{files[name]}\n")


def fetched_line(folder: Path) -> str:
    """Return which secrets this run has fetched and not kept yet, as a line to print; "" if none."""
    state, fetched = read_state(folder), temporary("fetched", folder)
    if not state or not fetched.exists():
        return ""
    if different := replaced(state, folder):
        names, before = ", ".join(different), folder_before(folder)
        return f"{state.host}: Fetched the secrets, which differed here: {names}. Those of before are in {before}."
    missing = [name for name in state.names if not (folder / name).exists()]
    return f"{state.host}: Fetched the secrets that were missing here: {', '.join(missing)}."


def keep_fetched(folder: Path) -> None:
    """Move fetched files to the folder; in its place, if they replace some of its own."""
    state, fetched = read_state(folder), temporary("fetched", folder)
    if not state or not fetched.exists():
        return
    if replaced(state, folder):
        new = folder.with_name(f"{folder.name}.fetched")
        shutil.rmtree(new, ignore_errors=True)
        put({path.name: read(path) for path in fetched.iterdir()}, new)
        folder.rename(folder_before(folder))
        new.rename(folder)
    else:
        put({path.name: read(path) for path in fetched.iterdir() if not (folder / path.name).exists()}, folder)
    # From now on the files in the folder count: a rotation changes them.
    shutil.rmtree(fetched)


def replaced(state: CopyState, folder: Path) -> list[str]:
    """Return the names of values in the folder that fetched ones replace."""
    fetched = temporary("fetched", folder)
    return [name for name in state.names if (folder / name).exists() and read(folder / name) != read(fetched / name)]


def folder_before(folder: Path) -> Path:
    """Return where to keep the folder when another one takes its place."""
    # The same in all tasks of this run.
    recorded = temporary("copies", folder).stat().st_mtime
    return folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(recorded))}")


def write_state(state: CopyState, folder: Path) -> None:
    create(temporary("copies", folder), json.dumps(asdict(state)))


def read_state(folder: Path) -> CopyState | None:
    """Return what this run knows of the copy that a host keeps; None if no host that was asked keeps one."""
    text = read(temporary("copies", folder))
    return CopyState(**json.loads(text)) if text else None


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def comparison(state: CopyState, names: Iterable[str], folder: Path) -> list[str]:
    """Return which of both is newer, and how to use the copy, as lines."""
    written = max((folder / name).stat().st_mtime for name in names)
    newer = f"The copy of {state.host} is newer." if state.recorded_at > written else "The files here are newer."
    return [
        f"{state.host} keeps a copy of the secrets, recorded {utc(state.recorded_at)} by {state.by}; the files here "
        f"were written {utc(written)}. {newer}",
        f"To use the copy of {state.host}, add -e secrets_use=server: the files here are kept as {folder}.before-TIME.",
    ]
