"""What the last run of each kind did, as files that other programs read; and locks."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..settings import BusyError, ReleaseError, is_locked, say
from .configuration import Configuration


class ForeignError(ReleaseError):
    """The target has backups of another database."""


class State:
    """/var/lib/APP-backup/NAME.json, replaced as a whole. Times in it are seconds since 1970."""

    def __init__(self, configuration: Configuration, name: str) -> None:
        self.path = configuration.state_folder / f"{name}.json"

    def read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write(self, **values: Any) -> None:
        """Replace the state by the present one with these values."""
        self.replace(self.read() | values)

    def replace(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(values, indent=1) + "\n")
        new.rename(self.path)

    @contextmanager
    def recorded(self) -> Iterator[dict[str, Any]]:
        """Record how a run ended: `ok_at` and what the run adds to the yielded values, or `failed_at` and `problem`.

        `foreign` says whether the problem is a target of another server.

        Call it with the lock: `running_since` without a holder of that is of a run that was killed.
        """
        values: dict[str, Any] = {"started_at": time.time()}
        if since := self.read().get("running_since"):
            say(f"The run before, which began at {time.strftime('%FT%TZ', time.gmtime(since))}, was killed.")
        self.write(running_since=values["started_at"])
        try:
            yield values
        except BusyError:
            # It gave way to another one, and has found nothing.
            self.write(running_since=0)
            raise
        except BaseException as error:
            text = str(error) or type(error).__name__
            is_foreign = isinstance(error, ForeignError)
            self.write(failed_at=time.time(), problem=text, foreign=is_foreign, running_since=0)
            raise
        # What a run has found counts as from its beginning.
        ended = {"ended_at": time.time(), "problem": "", "foreign": False, "running_since": 0}
        self.write(ok_at=values["started_at"], **ended, **values)


@contextmanager
def lock(configuration: Configuration, name: str, *, wait: float = 0) -> Iterator[None]:
    """Hold one of the locks. It ends with this process.

    `ship` is for copies of the log, `work` for everything else that changes the repository or the target. A drill, a
    base backup and a restore take `drill` before `work`, so that a drill which only reads excludes them alone.
    Waits up to `wait` seconds, and says so, but not for `ship`, which is short. Raises BusyError, naming the holder.
    """
    path = configuration.state_folder / f"{name}.lock"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # `is_held` may have it for an instant.
        began, is_told = time.monotonic(), name == "ship"
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited, busy = time.monotonic() - began, f"A backup, restore or drill is running ({holder(path)})."
                # A drill reads for hours. What it has done until it is stopped is removed, or done again.
                remedy = (
                    f" To stop a drill: systemctl stop {configuration.name}-backup-drill" if name == "drill" else ""
                )
                if waited >= max(wait, 0.5):
                    raise BusyError(f"{busy}{remedy}") from None
                if waited >= 0.5 and not is_told:
                    is_told = True
                    say(f"{busy} Waiting for it, up to {wait:.0f} s.{remedy}")
                time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def is_held(configuration: Configuration, name: str) -> bool:
    """Return whether a process has one of the locks."""
    return is_locked(configuration.state_folder / f"{name}.lock")


def holder(path: Path) -> str:
    try:
        number = path.read_text().strip()
    except OSError:
        number = ""
    return f"process {number or 'unknown'}"
