"""Record on the host who applied which settings: the host's part of the action plugin of the same name.

Needs Debian's Python and its standard library alone. Reads {"file", "state", "run", "digests", "built_on", "check"}
from stdin; prints {"changed": false, "last": {...}}, as JSON: the last complete run, {} without one. The file, for root
alone, has `key`, and of runs `by`, `path`, `commit`, `committed`, `playbook`, `tags`, `at`, and `settings`, keyed
hashes by name:

- `last`: the last run that applied all settings
- `begun`: a later one of all settings that has not ended
- `partial`: the later runs that applied a part, with other settings than those: of each clone the last one
- `replaced`: the run of another clone whose settings `last` has changed, with their `names`
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# How many clones `partial` has, since each CI job may count as one.
PARTIAL_CLONES = 5


def keyed(digest: str, key: str) -> str:
    """Return a short hash that tells nothing of a value without the key. (hostctl/doctor/applied.py has the same.)"""
    return hmac.new(bytes.fromhex(key), digest.encode(), hashlib.sha256).hexdigest()[:16]


def read(path: Path) -> Record:
    """Return the record; {} without one. A damaged one is replaced."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        bytes.fromhex(found["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    partial = found.get("partial", [])
    runs = [found[name] for name in ("last", "begun") if name in found]
    return found if isinstance(partial, list) and all(is_run(one) for one in [*runs, *partial]) else {}


def is_run(found: Any) -> bool:
    return isinstance(found, dict) and {"by", "path"} <= found.keys() and isinstance(found.get("settings"), dict)


def write(path: Path, record: Record) -> None:
    """Replace the record atomically; root alone can read it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1)
        Path(name).replace(path)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def differing(one: Record, other: Record) -> list[str]:
    """Return the settings that both runs knew and that differ."""
    mine, others = one["settings"], other["settings"]
    return sorted(name for name in mine.keys() & others if mine[name] != others[name])


def is_same_clone(one: Record, other: Record) -> bool:
    return (one["by"], one["path"]) == (other["by"], other["path"])


def updated(record: Record, run: Record, state: str, built_on: bool) -> Record:
    """Return the record after this step of a run."""
    last = record.get("last")
    if state == "end":
        new = {"key": record["key"], "last": run}
        if last and (names := differing(last, run)) and not is_same_clone(last, run) and not built_on:
            new["replaced"] = without_settings(last) | {"names": names}
        return new
    if state == "begin":
        return record | {"begun": run}
    partial = record.get("partial", [])
    # A part of the settings that another run has applied, or has begun to apply, tells nothing new.
    if any(one and not differing(one, run) for one in (last, record.get("begun"), *partial)):
        return record
    of_others = [one for one in partial if not is_same_clone(one, run)]
    return record | {"partial": [*of_others, run][-PARTIAL_CLONES:]}


def without_settings(run: Record) -> Record:
    return {name: value for name, value in run.items() if name != "settings"}


def main() -> dict[str, Any]:
    os.umask(0o022)
    request = json.load(sys.stdin)
    path = Path(request["file"])
    record = read(path)
    last = without_settings(record.get("last", {}))
    if request["state"] != "read" and not request["check"]:
        record.setdefault("key", secrets.token_hex(16))
        settings = {name: keyed(digest, record["key"]) for name, digest in request["digests"].items()}
        run = request["run"] | {"at": time.time(), "settings": settings}
        new = updated(record, run, request["state"], request["built_on"])
        if new is not record:
            # A run does not fail for the record.
            with suppress(OSError):
                write(path, new)
    return {"changed": False, "last": last}


if __name__ == "__main__":
    print(json.dumps(main()))
