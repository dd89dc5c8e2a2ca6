"""What Ansible wrote to /etc/APP/hostctl.json, the errors, and how things are said."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


class ReleaseError(Exception):
    """The release cannot go live; the message says why and what to do."""


class BusyError(Exception):
    """Another rollout holds the lock; the message names it."""


def say(text: str) -> None:
    """Print a line. Where there is no room for it, it is lost: a full disk must not keep things from being put back."""
    with suppress(OSError):
        print(text, flush=True)


@dataclass(frozen=True)
class Worker:
    """A Celery worker of this host, as app_workers has it. `stop_timeout` is in seconds, `memory_mb` in MiB."""

    name: str
    queues: list[str]
    pool: str = "prefork"
    concurrency: int = 2
    stop_timeout: int = 360
    memory_mb: int = 0


@dataclass(frozen=True)
class Settings:
    """The application on this host. All times are in seconds."""

    name: str
    domain: str
    manager: str = "systemd"
    directory: str = ""
    settings_module: str = ""
    wsgi: str = ""
    celery: str = ""
    requirements: str = "requirements.txt"
    python: str = "python3"
    health_path: str = "/healthz/"
    health_names_release: bool = True
    # Pages that are asked for before visitors come.
    warm_paths: list[str] = field(default_factory=lambda: ["/"])
    gate_timeout: int = 60
    watch: int = 3
    keep: int = 5
    web: bool = True
    workers: list[Worker] = field(default_factory=list)
    # Every queue that a worker of the installation takes, on whatever host.
    queues: list[str] = field(default_factory=list)
    beat: bool = True
    # Does this host migrate the database, for all of them?
    leader: bool = True
    # Does the control machine say when to go on, because other hosts must have come as far?
    in_step: bool = False
    admin: bool = False
    snapshot: bool = True
    # Commands of the application's: before_migrate, before_switch, after_switch.
    hooks: dict[str, list[str]] = field(default_factory=dict)
    root: Path = Path("/srv")
    config: Path = Path("/etc")
    access_log: str = ""

    @classmethod
    def load(cls, path: Path) -> Settings:
        values = json.loads(path.read_text())
        values["workers"] = [Worker(**worker) for worker in values.get("workers", [])]
        return cls(**values)

    @property
    def home(self) -> Path:
        return self.root / self.name

    @property
    def etc(self) -> Path:
        return self.config / self.name

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def current(self) -> Path:
        return self.home / "current"

    @property
    def library(self) -> Path:
        return Path("/usr/local/lib") / self.name


def read_environment(path: Path) -> dict[str, str]:
    """The variables of an environment file that Ansible wrote: NAME="value", with \\" \\\\ \\$ and \\` escaped."""
    pattern = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)
    return {name: re.sub(r'\\(["\\$`])', r"\1", value) for name, value in pattern.findall(path.read_text())}


def tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
