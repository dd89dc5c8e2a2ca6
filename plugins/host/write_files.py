"""Write several files: what the action of the same name runs on the host, with Debian's Python and its library alone.

Reads {"files": [...], "check": false} from stdin; prints {"changed", "written", "diff"} or {"failed", "msg"}, as JSON.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class InvalidError(Exception):
    """A new file is not valid; the message says which, and why."""


def read(path: Path) -> str | None:
    """The text of a file, or None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def rights_of(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"mode": found.st_mode & 0o7777, "owner": found.st_uid, "group": found.st_gid}


def wanted_rights(file: dict[str, Any]) -> dict[str, int]:
    """Of mode, owner and group what was asked for, as numbers. Raises KeyError for somebody who is not there."""
    rights = {}
    if file.get("mode"):
        rights["mode"] = int(str(file["mode"]), 8)
    if file.get("owner"):
        rights["owner"] = pwd.getpwnam(file["owner"]).pw_uid
    if file.get("group"):
        rights["group"] = grp.getgrnam(file["group"]).gr_gid
    return rights


def set_rights(path: Path, rights: dict[str, int]) -> None:
    os.chown(path, rights["owner"], rights["group"])
    path.chmod(rights["mode"])


def replace(path: Path, file: dict[str, Any], rights: dict[str, int]) -> None:
    """Put the new text in the file's place in one step, once it is found valid. Nobody but root sees it before.

    Raises InvalidError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(file["content"])
        if file.get("validate"):
            done = subprocess.run(shlex.split(file["validate"] % name), capture_output=True, text=True)
            if done.returncode != 0:
                said = f"{done.stdout}{done.stderr}".strip()
                raise InvalidError(f"{path} was not replaced, the new one is not valid: {said}")
        set_rights(new, rights)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write(path: Path, file: dict[str, Any], check: bool) -> tuple[bool, dict[str, str]]:
    """Bring one file to its text and rights. Returns whether anything was different, and the difference."""
    before, wanted = read(path), {}
    changed = before != file["content"]
    # Under --check, its owner may be somebody whom the run would make.
    if before is not None or not check:
        wanted = wanted_rights(file)
        found = rights_of(path) if before is not None else {"mode": 0o644, "owner": os.geteuid(), "group": os.getegid()}
        rights = found | wanted
        if changed and not check:
            replace(path, file, rights)
        elif before is not None and found != rights:
            changed = True
            if not check:
                set_rights(path, rights)
    names = {"before_header": str(path), "after_header": str(path)}
    return changed, {"before": before or "", "after": file["content"], **names}


def place_link(place: Path, wanted: str | None, check: bool) -> tuple[bool, dict[str, str]]:
    """Have a link, or nothing, in the file's place. Returns whether anything was different, and the difference."""
    before = str(place.readlink()) if place.is_symlink() else "a file" if place.exists() else None
    if before != wanted and not check:
        if wanted is None:
            place.unlink()
        else:
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = place.with_name(f"{place.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(wanted)
            new.replace(place)
    names = {"before_header": str(place), "after_header": str(place)}
    return before != wanted, {"before": f"{before or 'nothing'}\n", "after": f"{wanted or 'nothing'}\n", **names}


def main() -> dict[str, Any]:
    asked = json.load(sys.stdin)
    written, differences = [], []
    for file in asked["files"]:
        path = Path(file["dest"])
        try:
            if "content" in file:
                changed, difference = write(path, file, asked["check"])
            else:
                changed, difference = place_link(path, file.get("link"), asked["check"])
        except (InvalidError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        except KeyError as error:
            return {"failed": True, "msg": f"{path}: {error.args[0]}"}
        if changed:
            written.append(str(path))
            differences.append(difference)
    return {"changed": bool(written), "written": written, "diff": differences}


if __name__ == "__main__":
    print(json.dumps(main()))
