"""Write several files and links: the host's part of the action plugin of the same name.

Needs Debian's Python and its standard library alone. Reads {"files": [...], "check": false} from stdin; prints
{"changed", "written", "effective", "diff"} or {"failed", "msg"}, as JSON.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

Diff = dict[str, str]
COMMENTS = ("#", ";", "//")
# The SHA-256 of each file as it was written: `doctor` names those that were edited since. Not of temporary files.
RECORD = Path("/var/lib/seedbed/files.json")
TEMPORARY = ("/tmp/", "/run/", "/var/tmp/")


class InvalidFileError(Exception):
    """The validation command rejected the new file; the message includes its output."""


def read(path: Path) -> str | None:
    """Return the text of a file, or None if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def permissions_of(path: Path) -> dict[str, int]:
    """Return mode, owner and group of a file, as numbers."""
    found = path.stat()
    return {"mode": found.st_mode & 0o7777, "owner": found.st_uid, "group": found.st_gid}


def requested_permissions(file: dict[str, Any]) -> dict[str, int]:
    """Return the requested mode, owner and group as numbers. Raises KeyError for an unknown user or group."""
    permissions = {}
    if file.get("mode"):
        permissions["mode"] = int(str(file["mode"]), 8)
    if file.get("owner"):
        permissions["owner"] = pwd.getpwnam(file["owner"]).pw_uid
    if file.get("group"):
        permissions["group"] = grp.getgrnam(file["group"]).gr_gid
    return permissions


def set_permissions(path: Path, permissions: dict[str, int]) -> None:
    os.chown(path, permissions["owner"], permissions["group"])
    path.chmod(permissions["mode"])


def validate(path: Path, command: str, new: str) -> None:
    """Run the validation command on the new file. Raises InvalidFileError."""
    done = subprocess.run(shlex.split(command % new), capture_output=True, text=True)
    if done.returncode != 0:
        output = f"{done.stdout}{done.stderr}".strip()
        raise InvalidFileError(f"{path} was not replaced: validation of the new file failed: {output}")


def replace(path: Path, file: dict[str, Any], permissions: dict[str, int]) -> None:
    """Validate the new text and replace the file atomically; the temporary file is readable by root only.

    Raises InvalidFileError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(file["content"])
        if file.get("validate"):
            validate(path, file["validate"], name)
        set_permissions(new, permissions)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def diff(path: Path, before: str, after: str) -> Diff:
    """Return the difference as Ansible's --diff shows it."""
    return {"before": before, "after": after, "before_header": str(path), "after_header": str(path)}


def write(path: Path, file: dict[str, Any], check: bool) -> tuple[bool, Diff]:
    """Give one file its text and permissions. Returns whether anything changed, and the difference."""
    before, requested = read(path), {}
    changed = before != file["content"]
    # In check mode, an earlier task of the run may not have created the owner.
    if before is not None or not check:
        requested = requested_permissions(file)
        new_file = {"mode": 0o644, "owner": os.geteuid(), "group": os.getegid()}
        current = permissions_of(path) if before is not None else new_file
        permissions = current | requested
        if changed and not check:
            replace(path, file, permissions)
        elif before is not None and current != permissions:
            changed = True
            if not check:
                set_permissions(path, permissions)
    return changed, diff(path, before or "", file["content"])


def current_target(path: Path) -> str | None:
    """Return the target of a link, "a file" for anything else, or None if nothing exists."""
    if path.is_symlink():
        return str(path.readlink())
    return "a file" if path.exists() else None


def set_link(path: Path, target: str | None, check: bool) -> tuple[bool, Diff]:
    """Create a link, or remove the path if `target` is None. Returns whether anything changed, and the difference."""
    before = current_target(path)
    if before != target and not check:
        if target is None:
            path.unlink()
        else:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(path)
    return before != target, diff(path, f"{before or 'absent'}\n", f"{target or 'absent'}\n")


def directives(text: str) -> list[str]:
    """Return the lines of a configuration file without comments and blank lines; the interpreter of a script counts."""
    return [line for line in text.splitlines() if line.strip() and not is_comment(line)]


def is_comment(line: str) -> bool:
    return line.lstrip().startswith(COMMENTS) and not line.startswith("#!")


def is_effective(difference: Diff) -> bool:
    """Return whether more than comments and blank lines differ."""
    return directives(difference["before"]) != directives(difference["after"])


def record(files: list[dict[str, Any]]) -> None:
    """Note what was written, and remove links and absent files from the record. A run does not fail for the record."""
    try:
        known = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        known = {}
    new = dict(known)
    for file in files:
        new.pop(file["dest"], None)
        if "content" in file and not file["dest"].startswith(TEMPORARY):
            text = file["content"].encode("utf-8", errors="surrogateescape")
            new[file["dest"]] = hashlib.sha256(text).hexdigest()
    if new == known:
        return
    with suppress(OSError):
        RECORD.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Readable by root alone.
        handle, name = tempfile.mkstemp(prefix=f".{RECORD.name}.", dir=RECORD.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(new, stream, indent=1, sort_keys=True)
        Path(name).replace(RECORD)


def write_all(request: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the files, and add each that is as requested to `done`. Returns the result for Ansible."""
    written, diffs = [], []
    for file in request["files"]:
        path = Path(file["dest"])
        try:
            if "content" in file:
                changed, difference = write(path, file, request["check"])
            else:
                changed, difference = set_link(path, file.get("link"), request["check"])
        except (InvalidFileError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        except KeyError as error:
            return {"failed": True, "msg": f"{path}: {error.args[0]}"}
        done.append(file)
        if changed:
            written.append(str(path))
            diffs.append(difference)
    effective = [path for path, difference in zip(written, diffs, strict=True) if is_effective(difference)]
    return {"changed": bool(written), "written": written, "effective": effective, "diff": diffs}


def main() -> dict[str, Any]:
    # Missing directories get mode 0755, also where logins have a stricter umask.
    os.umask(0o022)
    request = json.load(sys.stdin)
    done: list[dict[str, Any]] = []
    result = write_all(request, done)
    if not request["check"]:
        record(done)
    return result


if __name__ == "__main__":
    print(json.dumps(main()))
