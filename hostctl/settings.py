"""Settings of the program, its errors, and helpers for text."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path


class ReleaseError(Exception):
    """The command failed; the message says why and what to do."""


class BusyError(Exception):
    """Another deployment holds the lock; the message names it."""


def say(text: str) -> None:
    """Print a line. On a full disk the line is lost: that must not prevent a revert."""
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
    """The application on this host, as roles/hostctl writes it. All times are in seconds."""

    name: str
    domain: str
    manager: str = "systemd"
    # The folder with manage.py, relative to the release's.
    project_dir: str = ""
    wsgi_app: str = ""
    celery_app: str = ""
    requirements: str = "requirements.txt"
    python: str = "python3"
    health_path: str = "/healthz/"
    # Must the health page name the release?
    health_names_release: bool = True
    health_check_timeout: int = 60
    # Pages requested from a new release before it gets traffic.
    warmup_paths: list[str] = field(default_factory=lambda: ["/"])
    # How long the new release is watched after the switch.
    bake: int = 3
    keep_releases: int = 5
    dump_before_migrate: bool = True
    # How long requests and tasks may wait behind a migration before it is aborted; 0: for ever.
    migration_block_seconds: int = 5
    # Commands of the application: before_migrate, before_switch, after_switch.
    hooks: dict[str, list[str]] = field(default_factory=dict)
    # Every queue that a worker of the installation consumes, on any host.
    queues: list[str] = field(default_factory=list)
    access_log: str = ""
    # Create the first administrator with manage.py ensure_admin.
    create_admin: bool = False
    web: bool = True
    workers: list[Worker] = field(default_factory=list)
    beat: bool = True
    # The leader migrates the database for all hosts.
    leader: bool = True
    # Several hosts: wait at each barrier until all hosts have reached it.
    barriers: bool = False
    root: Path = Path("/srv")
    config: Path = Path("/etc")

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the file, ignoring keys of another version. Raises ReleaseError when there is none.

        When a run is killed between installing the program and writing this file, the host must still boot.
        """
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise ReleaseError(f"{path} is missing: run site.yml, which writes it.") from None
        values["workers"] = [Worker(**worker) for worker in values.get("workers", [])]
        known = {setting.name for setting in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

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
        """Folder of this package and of helper scripts."""
        return Path("/usr/local/lib") / self.name


def read_environment(path: Path) -> dict[str, str]:
    """Read the variables of an environment file: NAME="value" lines with \\" \\\\ \\$ and \\` escaped."""
    pattern = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)
    return {name: re.sub(r'\\(["\\$`])', r"\1", value) for name, value in pattern.findall(path.read_text())}


def tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
