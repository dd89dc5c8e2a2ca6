"""Settings of the program, its errors, and helpers for text."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# The settings of a release in its folder; in /etc/APP, those of releases that an earlier version of this program built.
RELEASE_FILE = "settings.json"
# Names of commit 7e689fa, and today's.
EARLIER_NAMES = {"directory": "project_dir", "wsgi": "wsgi_app", "celery": "celery_app"}


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


# Settings of a release: recorded when it is built, so that changed ones have no effect on it. Others are the server's.
OF_RELEASE = (
    "domain", "domains", "manager", "project_dir", "wsgi_app", "celery_app", "requirements", "python", "health_path",
    "health_names_release", "health_check_timeout", "warmup_paths", "hooks", "queues", "web", "workers", "beat",
    "connections",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The application on this host, as roles/hostctl writes it. All times are in seconds.

    What the file says of a release (OF_RELEASE) holds for the next one; `of` returns the settings of another.
    """

    name: str
    # The Host header of health checks, and every name of the site.
    domain: str
    domains: list[str] = field(default_factory=list)
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
    # How long requests and tasks may wait behind a migration before it is aborted; 0 is no limit.
    migration_block_seconds: int = 5
    # Commands of the application: before_migrate, before_switch, after_switch.
    hooks: dict[str, list[str]] = field(default_factory=dict)
    # Every queue that a worker of the installation consumes, on any host.
    queues: list[str] = field(default_factory=list)
    # Environment variables with passwords or the addresses of data: a rollback keeps those of the live release.
    connections: list[str] = field(default_factory=list)
    access_log: str = ""
    # Paths whose POST requests nginx limits as attempts to log in; * at the beginning stands for anything.
    login_paths: list[str] = field(default_factory=list)
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
        known = {setting.name for setting in fields(cls)}
        return cls(**with_workers({name: value for name, value in values.items() if name in known}))

    # -- the settings of a release

    def of(self, release: str) -> Settings:
        """Return the settings with those of a release that was built on this host; otherwise, of the next release."""
        try:
            values = json.loads((self.configuration(release) / RELEASE_FILE).read_text()) if release else {}
        except FileNotFoundError:
            return self
        # An earlier version recorded the first name only.
        values = {"domains": []} | values if values else values
        values |= {name: values[old] for old, name in EARLIER_NAMES.items() if old in values}
        return replace(self, **with_workers({name: values[name] for name in OF_RELEASE if name in values}))

    def record(self, release: str) -> None:
        """Write the settings of a release."""
        values = {name: getattr(self, name) for name in OF_RELEASE}
        values["workers"] = [asdict(worker) for worker in self.workers]
        (self.configuration(release) / RELEASE_FILE).write_text(json.dumps(values, indent=4))

    def configuration(self, release: str) -> Path:
        """Return the folder with the environment, the process definitions and the settings of a release.

        A release that an earlier version of this program built has none of its own: it runs with the files of that
        version, which nothing writes any more.
        """
        own = self.configurations / release
        earlier = self.etc / RELEASE_FILE
        is_built = (self.releases / release / "build.json").exists()
        return self.etc if is_built and earlier.exists() and not own.exists() else own

    def units(self, release: str) -> list[str]:
        """Return every unit that a release with these settings has on this host: its web process, then its workers."""
        names = (["web"] if self.web else []) + [f"worker-{worker.name}" for worker in self.workers]
        return [f"{self.name}-{name}@{release}" for name in names]

    @property
    def next_configuration(self) -> Path:
        """Folder that Ansible writes: what the next release that is deployed gets."""
        return self.etc / "next"

    @property
    def configurations(self) -> Path:
        return self.etc / "releases"

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


def with_workers(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings from JSON with workers as objects, without keys that another version gave them."""
    if "workers" not in values:
        return values
    known = {setting.name for setting in fields(Worker)}
    workers = [{name: value for name, value in worker.items() if name in known} for worker in values["workers"]]
    return values | {"workers": [Worker(**worker) for worker in workers]}


def read_environment(path: Path) -> dict[str, str]:
    """Read the variables of an environment file: NAME="value" lines with \\" \\\\ \\$ and \\` escaped."""
    pattern = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)
    return {name: re.sub(r'\\(["\\$`])', r"\1", value) for name, value in pattern.findall(path.read_text())}


def tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
