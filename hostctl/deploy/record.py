"""The lock, the persisted state of a deployment, and the history."""

from __future__ import annotations

import calendar
import fcntl
import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

from ..settings import BusyError, Settings, is_locked


def caller() -> str:
    """Return the user who called this program, as far as the host knows."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


class Record:
    """The state of a deployment in /srv/APP/deployment.json, replaced at every step.

    A deployment holds /srv/APP/lock under flock, which ends with its process: a state without an outcome, whose lock is
    free, belongs to a deployment that was killed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state: dict[str, Any] = {}
        self.handle = -1

    @property
    def file(self) -> Path:
        return self.settings.home / "deployment.json"

    def read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def held(self) -> bool:
        """Return whether a deployment is running. (For followers; `hold` takes the lock.)"""
        return is_locked(self.settings.home / "lock")

    def unfinished(self) -> dict[str, Any]:
        """Return the state of a deployment that is running or was killed; {} when the last one has an outcome."""
        state = self.read()
        return state if state and "status" not in state else {}

    def refuse_second(self) -> None:
        """Raise BusyError when a deployment is running, unless it only waits for old processes to end."""
        if self.held() and not self.unfinished().get("draining"):
            raise BusyError(self.holder())

    def hold(self) -> None:
        """Take the lock for as long as this process lives.

        Raises BusyError, naming the holder, when another process has it.
        """
        self.handle = os.open(self.settings.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + 0.5
        while True:
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A follower may hold it for an instant.
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise BusyError(self.holder()) from None
            return

    def release(self) -> None:
        """Give the lock back before the end of this process."""
        os.close(self.handle)

    def holder(self) -> str:
        state = self.unfinished()
        if not state:
            # It has just begun, or `verify` starts what does not run, or `import-database` runs.
            return "Another deployment or an import is running. Wait until it has ended, then run again."
        seconds = int(time.time() - state["began"])
        name = self.settings.name
        return (
            f"Another deployment is running: {state['action']} {state['release']}, started {seconds} s ago by "
            f"{state['by']}, now at step {state['step']} (process {state['pid']}). Wait until it has ended, then run "
            f"again; on the server `{name}ctl follow` shows it, `{name}ctl cancel` stops and reverts it."
        )

    def begin(self, action: str, release: str, by: str, **more: Any) -> None:
        self.state = {"action": action, "release": release, "by": by, "pid": os.getpid(), "step": "preflight"}
        self.state |= {"since": time.strftime("%FT%TZ", time.gmtime()), "began": time.time(), "steps": {}} | more
        self.write()

    def step(self, name: str) -> None:
        self.state["step"] = name
        self.write()

    def note(self, **values: Any) -> None:
        """Persist what the next deployment must know if this one is killed."""
        self.state |= values
        self.write()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return round(time.time() - self.state["began"], 1)

    def end(self, status: int, outcome: str) -> None:
        """Record the outcome and append it to the history."""
        self.state |= {"status": status, "outcome": outcome, "seconds": self.seconds()}
        self.remember(self.state)
        self.write()

    def remember(self, state: dict[str, Any]) -> None:
        """Append a line to the history."""
        kept = ("action", "release", "previous", "by", "since", "seconds", "status", "outcome", "step", "tasks", "log")
        with history_file(self.settings).open("a") as file:
            file.write(json.dumps({name: state[name] for name in kept if name in state}) + "\n")

    def write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.state))
        new.rename(self.file)


def history_file(settings: Settings) -> Path:
    return settings.home / "history.jsonl"


def history(settings: Settings) -> list[dict[str, Any]]:
    """Return every deployment that has an outcome, oldest first."""
    try:
        lines = history_file(settings).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def began_at(entry: dict[str, Any]) -> int:
    """Return when a deployment of the history began, in seconds since 1970. Raises KeyError or ValueError without."""
    return calendar.timegm(time.strptime(entry["since"], "%Y-%m-%dT%H:%M:%SZ"))
