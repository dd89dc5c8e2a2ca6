"""Who applied the settings of this host, from which clone of the repository, and whose settings they replaced.

The record is written by plugins/host/settings_record.py, which says what is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.record import Record, began_at, history
from ..settings import utc
from .finding import Context

FOLDER = Path("/var/lib/seedbed")
# Seconds for which settings that another clone has replaced are told; after which a run that has not ended has failed,
# unless its deployment has failed before.
REPLACED_SECONDS, RUN_SECONDS = 7 * 86400, 1800
# How many settings a line names.
NAMED = 4
APPLY = "ansible-playbook -i INVENTORY site.yml"
Run = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A sentence for the line `settings`, and what to type."""

    text: str
    remedy: str


def read_record(context: Context) -> dict[str, Any]:
    """Return the record; {} without one, or if it is damaged: the next site.yml writes it again."""
    try:
        record = json.loads((FOLDER / f"settings-{context.configuration.name}.json").read_text())
        bytes.fromhex(record["key"])
        for run in (*(record[name] for name in ("last", "begun") if name in record), *record.get("partial", [])):
            # All that is read of a run.
            origin(run), run["settings"].keys()
        replaced(record, context.now)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return record


def last_run(context: Context) -> str:
    """Return when all settings were last applied, and by which user, as a part of a sentence; "" without a record."""
    record = read_record(context)
    return f"last applied {origin(record['last'])}" if "last" in record else ""


def problems(context: Context) -> list[Problem]:
    """Return what another clone, or this one, has applied or not."""
    record = read_record(context)
    if not record:
        return []
    found = [replaced(record, context.now), compared(record, context.clone_settings)]
    # A run ends with its deployment.
    if not Record(context.settings).held():
        found.append(unfinished(record, context.now, failed_at(context)))
    return [problem for problem in found if problem]


def replaced(record: dict[str, Any], now: float) -> Problem | None:
    """Return which settings of another clone the last run has changed, without having what that clone had committed."""
    last, other = record.get("last"), record.get("replaced")
    if not last or not other or now - last["at"] > REPLACED_SECONDS:
        return None
    text = f"{clone(last)} changed {some(other['names'])} at {utc(last['at'])}; {clone(other)} had other values"
    remedy = "# compare the settings of both clones; then, from the one that is right, also to end this line:"
    return Problem(text, f"{remedy}\n{APPLY}")


def failed_at(context: Context) -> float:
    """Return when the last deployment began, if it has failed; else 0. Seconds since 1970."""
    deployments = history(context.settings)
    return began_at(deployments[-1]) if deployments and deployments[-1].get("status") else 0.0


def unfinished(record: dict[str, Any], now: float, failed: float) -> Problem | None:
    """Return whose run, with other settings than the last complete one, has failed or was stopped.

    `failed` is when the last deployment began, if it has failed.
    """
    begun = record.get("begun")
    if not begun or (now - begun["at"] < RUN_SECONDS and failed < begun["at"]):
        return None
    if "last" not in record:
        return Problem(f"no run has ended yet; the last began {origin(begun)}", APPLY)
    names = differing(begun["settings"], record["last"]["settings"])
    if not names:
        return None
    text = f"a run begun {origin(begun)} has not ended, and may have changed {some(names)}"
    return Problem(text, f"# from the clone with the right settings:\n{APPLY}")


def compared(record: dict[str, Any], clone_settings: dict[str, Any] | None) -> Problem | None:
    """Return which settings the clone that asks has otherwise. Those that it has applied with --tags do not count."""
    if not clone_settings or "last" not in record:
        return None
    mine = {name: keyed(digest, record["key"]) for name, digest in clone_settings["settings"].items()}
    last = record["last"]
    parts = [run["settings"] for run in record.get("partial", [])]
    names = [
        name
        for name in differing(mine, last["settings"])
        if all(settings.get(name) != mine[name] for settings in parts)
    ]
    if not names:
        return None
    text = f"other values than in the clone that asks: {some(names)}; those here were applied {origin(last)}"
    if is_same(last, clone_settings):
        text = f"changed and not applied yet: {some(names)} (last applied {utc(last['at'])} by {last['by']})"
        return Problem(text, f"# to apply them:\n{APPLY}")
    remedy = "# get the settings of that clone, as by git pull; or, to apply those of this one:"
    return Problem(text, f"{remedy}\n{APPLY}")


def is_same(one: Run, other: Run) -> bool:
    """Return whether both are of the same clone."""
    return (one["by"], one["path"]) == (other["by"], other["path"])


def keyed(digest: str, key: str) -> str:
    """Return a hash as the record has it. (plugins/host/settings_record.py has the same.)"""
    return hmac.new(bytes.fromhex(key), digest.encode(), hashlib.sha256).hexdigest()[:16]


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names that both have and that differ: a version of Seedbed may know more settings than another."""
    return sorted(name for name in one.keys() & other if one[name] != other[name])


def clone(run: Run) -> str:
    return f"{run['by']}:{run['path']}"


def origin(run: Run) -> str:
    """Return when a run was, of which clone, and with which playbook, options and commit."""
    changes = "" if run["committed"] else ", with settings that are not in it"
    commit = f", commit {run['commit']}{changes}" if run["commit"] else ""
    tags = f" {run['tags']}" if run.get("tags") else ""
    return f"{utc(run['at'])} by {clone(run)} ({run['playbook']}{tags}{commit})"


def some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
