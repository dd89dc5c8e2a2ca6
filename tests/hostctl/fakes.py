"""Stand-ins for process manager and application, and helpers that build and deploy releases."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from hostctl.deploy import deployment, record
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import ReleaseError

OLD, NEW = "old-1", "new-2"


class Manager:
    """A process manager that only remembers which units run."""

    def __init__(self, state_of_beat: Path | None = None) -> None:
        self.running: set[str] = set()
        self.ended: list[str] = []
        self.beat: list[str] = []
        # Written when beat has read its schedule.
        self.state_of_beat = state_of_beat
        self.says_of_beat = ""
        # Other states than active and inactive.
        self.state: dict[str, ProcessState] = {}

    def alive(self) -> dict[str, str]:
        return {unit: unit.partition("@")[2] for unit in self.running}

    def states(self) -> list[Any]:
        return []

    def states_of(self, units: list[str]) -> list[ProcessState]:
        return [self.state.get(unit) or ProcessState(unit, self.active(unit), 0) for unit in units]

    def active(self, unit: str) -> str:
        runs = self.beat_runs() if unit.endswith("-beat") else unit in self.running
        return "active" if runs else "inactive"

    def failed(self, units: list[str]) -> list[str]:
        return [unit for unit in units if unit in self.ended]

    def start(self, units: list[str], *, wait: bool = True) -> None:
        self.running |= set(units)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        self.running -= set(units)

    def beat_runs(self) -> bool:
        return True

    def restart_beat(self, release: str) -> None:
        self.beat.append("restart")
        if self.state_of_beat:
            self.state_of_beat.parent.mkdir(parents=True, exist_ok=True)
            self.state_of_beat.write_text(self.says_of_beat)

    def start_beat(self, release: str, *, wait: bool = True) -> None:
        self.beat.append("start")

    def stop_beat(self) -> None:
        self.beat.append("stop")

    def recent_logs(self, units: list[str], lines: int = 25, since: float = 0) -> str:
        return "the recent logs"

    def prepare(self, release: str) -> None:
        pass

    forget = prepare

    mark_active = prepare

    def missing(self, release: str) -> list[str]:
        return []

    def remove_stale(self) -> None:
        pass


# What a database with every migration of the release has.
SCHEMA: dict[str, list[Any]] = {
    name: [] for name in ("pending", "known", "unknown", "not_atomic", "concurrent", "warnings", "idle")
}


class Answers:
    """The answers of a healthy application; `override` holds what differs."""

    def __init__(self) -> None:
        self.override: dict[str, Any] = {}
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, question: str, *arguments: Any, seconds: float = 0) -> Any:
        self.asked.append((question, *arguments))
        if isinstance(self.override.get(question), BaseException):
            raise self.override[question]
        healthy = {
            "static_files": {"missing": "a test", "folders": [], "path": "", "problems": []},
            "media_files": {"path": "media", "folder": "", "fields": {}},
            "check": {"versions": {}},
            "queues": {
                "queues": {"default": ["task_queues"]},
                "default": "default",
                "without_option": ["default"],
                "broadcast": [],
                "in_code": {},
                "warnings": [],
            },
            "migrations": {"default": SCHEMA},
            "ping": {"silent": []},
            "consumed": {"silent": [], "missing": {}},
            "consumers": {"silent": []},
            "running": {},
            "smoke_test": {"silent": [], "other": {}, "busy": []},
            "requeue_unacknowledged": {"requeued": 0},
            "depths": {},
            "unconsumed": {},
            "parked": {"tasks": {}, "others": 0},
            "ended_by_messages": {"workers": []},
            "periodic": {"unknown": []},
        }
        return healthy.get(question, {}) | self.override.get(question, {})

    def resumed(self, release: str) -> bool:
        """Was the worker of a release told to consume again?"""
        return ("consumers", "core", "add", "default", node(release)) in self.asked


class Killed(BaseException):
    """The process of a deployment ends without any clean-up."""


def node(release: str) -> str:
    return f"default.{release}@{os.uname().nodename}"


def make_release(host: Host, release: str, age: int = 0) -> None:
    """Make a release's folder as a deployment leaves it; `age` in seconds."""
    folder = host.path(release)
    folder.mkdir(exist_ok=True)
    mark = folder / "build.json"
    mark.write_text(json.dumps({"id": release, "versions": {}, "workers": {"default": ["default"]}}))
    os.utime(mark, (time.time() - age, time.time() - age))


def deploy(host: Host, release: str = NEW, action: str = "deploy", **more: Any) -> int:
    """Deploy a release, or roll back to it; return the exit status."""
    book = record.Record(host.settings)
    book.hold()
    request = deployment.Request(action, release, "anna", archive=Path("archive"), **more)
    try:
        return deployment.Deployment(host, book, request).run()
    finally:
        os.close(book.handle)


def last_outcome(host: Host) -> str:
    return record.history(host.settings)[-1]["outcome"]


def unfinished(host: Host) -> dict[str, Any]:
    return record.Record(host.settings).unfinished()


def failure(question: str) -> ReleaseError:
    return ReleaseError(f"no {question}")
