"""The lock, the state of a rollout, and the history."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

from ..settings import BusyError, Settings


def who() -> str:
    """Who called this program, as far as the host knows."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


class Record:
    """The state of the rollout at work, in /srv/APP/deployment.json, written anew at every step.

    The holder keeps /srv/APP/lock open under flock, which cannot outlive it: a state that does not
    say its end, and whose lock is free, belongs to a rollout that was killed.
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
        """Is a rollout at work? (Asked by those who look on; the lock itself is taken by `hold`.)"""
        handle = os.open(self.settings.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def unfinished(self) -> dict[str, Any]:
        """The state of a rollout that is at work or was killed; {} when the last one came to an end."""
        state = self.read()
        return state if state and "status" not in state else {}

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
                # An onlooker has it for an instant.
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise BusyError(self.holder()) from None
            return

    def holder(self) -> str:
        state = self.read()
        if not state:
            return "Another rollout is at work. Wait until it has ended, then run again."
        seconds = int(time.time() - state["began"])
        name = self.settings.name
        return (
            f"Another rollout is at work: {state['action']} {state['release']}, begun {seconds} s ago by "
            f"{state['by']}, now at the step {state['step']} (process {state['pid']}). "
            f"Wait for its end, then run again; on the server `{name}ctl follow` shows it, `cancel` stops it."
        )

    def begin(self, action: str, release: str, by: str, **more: Any) -> None:
        self.state = {"action": action, "release": release, "by": by, "pid": os.getpid(), "step": "preflight"}
        self.state |= {"since": time.strftime("%FT%TZ", time.gmtime()), "began": time.time(), "steps": {}} | more
        self.write()

    def step(self, name: str) -> None:
        self.state["step"] = name
        self.write()

    def note(self, **values: Any) -> None:
        """Write down what the next run must know if this one is killed."""
        self.state |= values
        self.write()

    def seconds(self) -> float:
        """Seconds since the beginning."""
        return round(time.time() - self.state["began"], 1)

    def end(self, status: int, outcome: str) -> None:
        """Close the state and add a line to the history."""
        self.state |= {"status": status, "outcome": outcome, "seconds": self.seconds()}
        self.remember(self.state)
        self.write()

    def remember(self, state: dict[str, Any]) -> None:
        """Add a line to the history."""
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
    """Every rollout that came to an end, the oldest first."""
    try:
        lines = history_file(settings).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
