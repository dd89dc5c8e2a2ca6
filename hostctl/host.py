"""What is on this host: releases, which one is current, which processes they have."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

from .processes import Processes
from .processes.state import ProcessState
from .settings import Settings


class Host:
    """The releases of one application on this host."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.manager = Processes(settings)

    def path(self, release: str) -> Path:
        return self.settings.releases / release

    def serving(self) -> str:
        """The release that `current` points to, or ""."""
        try:
            return self.settings.current.readlink().name
        except FileNotFoundError:
            return ""

    def built(self) -> list[str]:
        """Every release that was built to the end, the newest first; not one that a power failure cut short."""
        marks = self.settings.releases.glob("*/build.json")
        names = [mark.parent.name for mark in sorted(marks, key=lambda mark: mark.stat().st_mtime, reverse=True)]
        return [name for name in names if self.facts(name)]

    def facts(self, release: str) -> dict[str, Any]:
        """What was noted when the release was built; {} when it is not here, or cannot be read."""
        try:
            return json.loads((self.path(release) / "build.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}

    def web_units(self, release: str) -> list[str]:
        return [f"{self.settings.name}-web@{release}"] if self.settings.web else []

    def worker_units(self, release: str) -> list[str]:
        return [f"{self.settings.name}-worker-{worker.name}@{release}" for worker in self.settings.workers]

    def units(self, release: str) -> list[str]:
        """Every unit that a release runs on this host."""
        return self.web_units(release) + self.worker_units(release)

    def others(self, release: str) -> list[str]:
        """The running units of every other release."""
        return [unit for unit, other in self.manager.alive().items() if other != release]

    def is_web(self, unit: str) -> bool:
        return unit.startswith(f"{self.settings.name}-web@")

    def worker_name(self, unit: str) -> str:
        return unit.partition("@")[0].removeprefix(f"{self.settings.name}-worker-")

    def node(self, unit: str) -> str:
        """What Celery calls the worker of a unit."""
        return f"{self.worker_name(unit)}.{unit.partition('@')[2]}@{socket.gethostname()}"

    def describe(self, state: ProcessState) -> dict[str, Any]:
        """A process as `status --json` shows it."""
        process = "web" if self.is_web(state.unit) else f"worker-{self.worker_name(state.unit)}"
        return {"unit": state.unit, "process": process, "release": state.unit.partition("@")[2]} | {
            "state": state.state, "restarts": state.restarts
        }  # fmt: skip

    def configuration(self) -> dict[str, str]:
        """The hash of the environment and of the processes' definitions that Ansible last wrote to this host."""
        return {name: read_text(self.settings.etc / "configuration" / name) for name in ("environment", "processes")}

    def switch(self, release: str) -> None:
        """Rename `current` onto the release: traffic and code move in one step."""
        link = self.settings.home / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(release).relative_to(self.settings.home))
        link.rename(self.settings.current)

    def remove(self, release: str) -> None:
        if self.path(release).exists():
            shutil.rmtree(self.path(release))
        self.manager.forget(release)

    def prune(self, before: str = "") -> list[str]:
        """Remove all but the newest releases, never one that is current or has a process alive; name the removed.

        `before` is the one to roll back to, which counts as the second.
        """
        built = self.built()
        order = dict.fromkeys([*built[:1], *(release for release in built if release == before), *built])
        used = {self.serving(), *self.manager.alive().values()}
        keep = used | set(list(order)[: self.settings.keep_releases])
        removed = [path.name for path in self.settings.releases.iterdir() if path.name not in keep]
        for release in removed:
            self.remove(release)
        return removed

    def boot(self) -> None:
        """Start the processes of the current release, without waiting for them."""
        beat = [f"{self.settings.name}-beat"] if self.settings.beat else []
        self.manager.start(self.units(self.serving()) + beat, wait=False)

    def halt(self) -> None:
        """Stop every process of the application, each in its own time."""
        self.manager.stop_beat()
        self.manager.stop(list(self.manager.alive()))


def read_text(path: Path) -> str:
    """The stripped text of a file; "" where there is none."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
