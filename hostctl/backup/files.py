"""Copy the folders of uploads to the target with restic: every ten minutes, by a timer."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from ..settings import ReleaseError
from .configuration import Configuration
from .state import State
from .tools import Restic

# Snapshots that are kept.
KEEP = ("--keep-within=2d", "--keep-daily=14", "--keep-weekly=8")
PRUNE_SECONDS = 24 * 3600
RUN_SECONDS = 6 * 3600


def copy_files(configuration: Configuration) -> dict[str, Any]:
    """Make a snapshot of the folders. Raises ReleaseError when there is none, or when it lacks files."""
    state = State(configuration, "files")
    folders = [folder for folder in configuration.folders if Path(folder).is_dir()]
    with state.recorded() as values:
        if gone := [
            folder
            for folder in state.read().get("folders", [])
            if folder in configuration.folders and folder not in folders
        ]:
            raise ReleaseError(
                f"{', '.join(gone)} is not there any more, and was copied before: mount or restore it. Nothing was "
                "copied, so that its copies are kept."
            )
        values["folders"] = folders
        restic = Restic(configuration)
        if not restic.exists():
            restic.call("init", seconds=300)
        # Removes locks of processes that have ended, only.
        restic.call("unlock", "--quiet", seconds=300)
        values |= summary(restic.call("backup", "--json", f"--host={restic.host}", *folders, seconds=RUN_SECONDS))
        if time.time() - state.read().get("pruned_at", 0) > PRUNE_SECONDS:
            restic.call("forget", f"--host={restic.host}", "--group-by=host", "--prune", *KEEP, seconds=RUN_SECONDS)
            values["pruned_at"] = time.time()
    return values


def summary(output: str) -> dict[str, Any]:
    """Return the snapshot and its numbers from restic's lines of JSON. Raises ReleaseError when it names none."""
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if found.get("message_type") == "summary" and found.get("snapshot_id"):
            return {
                "snapshot": found["snapshot_id"], "count": found["total_files_processed"],
                "bytes": found["total_bytes_processed"],
            }  # fmt: skip
    raise ReleaseError(f"restic made no snapshot: {output[-300:]}")


def snapshot_for(configuration: Configuration, moment: float) -> dict[str, Any] | None:
    """Return the newest snapshot up to a minute after a moment, else the oldest; None without any."""
    found = Restic(configuration).snapshots()
    older = [one for one in found if seconds_of(one["time"]) <= moment + 60]
    return older[-1] if older else found[0] if found else None


def seconds_of(text: str) -> float:
    """Return a time of restic, in seconds since 1970."""
    # It has nanoseconds, which Python 3.11 does not read.
    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789")
    return datetime.fromisoformat(whole + zone.replace("Z", "+00:00")).timestamp()
