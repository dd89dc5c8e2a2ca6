"""Settings of the program, its errors, and helpers for text."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# The settings of a release in its folder; in /etc/APP, those of releases that an earlier version of this program built.
RELEASE_FILE = "settings.json"
# Names of commit 7e689fa, and today's.
EARLIER_NAMES = {"directory": "project_dir", "wsgi": "wsgi_app", "celery": "celery_app"}
# What a release has of settings that the version which built it did not know: nothing of the next release.
UNRECORDED: dict[str, Any] = {
    "domains": [],
    "asgi_app": "",
    "processes": [],
    "cron": [],
    "health_status": 200,
    "databases": {},
    "process_without_queues": False,
    "read_write_paths": [],
}


class ReleaseError(Exception):
    """The command failed; the message says why and what to do.

    `output` is everything that a command or process has printed, where the message has only its end; `cause` says why,
    where that is known (see causes.py).
    """

    def __init__(self, message: str, *, output: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.output = output
        self.cause = cause


class BusyError(Exception):
    """Another deployment holds the lock; the message names it."""


def is_locked(path: Path) -> bool:
    """Return whether a process has the lock (flock) of a file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def utc(seconds: float) -> str:
    """Return a time as people read it. (JSON has seconds since 1970, or ISO 8601.)"""
    return time.strftime("%F %H:%M UTC", time.gmtime(seconds))


def say(text: str) -> None:
    """Print a line. On a full disk the line is lost: that must not prevent a revert."""
    with suppress(OSError):
        print(text, flush=True)


@dataclass(frozen=True)
class Worker:
    """A Celery worker of this host, as app_workers has it. `stop_timeout` is in seconds, `memory_mb` in MiB.

    One without queues consumes every queue that no other worker does: a deployment finds and records them.
    """

    name: str
    queues: list[str] = field(default_factory=list)
    pool: str = "prefork"
    concurrency: int = 2
    stop_timeout: int = 360
    memory_mb: int = 0


@dataclass(frozen=True)
class Process:
    """A further long-running command of this host, as app_processes has it. `stop_timeout` is in seconds."""

    name: str
    stop_timeout: int = 30
    # Only one may run in the installation: the old release's ends before the new one's starts.
    single: bool = False


# Settings of a release: recorded when it is built, so that changed ones have no effect on it. Others are the server's.
OF_RELEASE = (
    "domain", "domains", "manager", "project_dir", "wsgi_app", "asgi_app", "celery_app", "requirements", "python",
    "health_status", "health_path", "health_names_release", "health_check_timeout", "warmup_paths", "hooks", "queues",
    "external_queues", "process_without_queues", "web", "workers", "processes", "cron", "beat", "has_beat",
    "beat_scheduler", "settings_overlay", "connections", "extra_requirements", "build_commands", "databases",
    "read_write_paths",
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
    # The folder with manage.py, or that Django's commands run in without one; relative to the release's.
    project_dir: str = ""
    wsgi_app: str = ""
    # Served instead of wsgi_app, unless it is empty.
    asgi_app: str = ""
    celery_app: str = ""
    # Take from the environment what the project's settings hard-code: auto, always or never.
    settings_overlay: str = "auto"
    requirements: str = "requirements.txt"
    python: str = "python3"
    # Requirements beside those of the project, and commands that build more, such as JavaScript.
    extra_requirements: list[str] = field(default_factory=list)
    build_commands: list[str] = field(default_factory=list)
    # Further databases that are migrated: the environment variable with the URL of each, by its name in DATABASES.
    databases: dict[str, str] = field(default_factory=dict)
    # Debian packages of the application on this host.
    system_packages: list[str] = field(default_factory=list)
    # "": a new release's is detected, and recorded with it.
    health_path: str = "/healthz/"
    # 404 for a project without any page.
    health_status: int = 200
    # Must the health page name the release? "auto": if that of the new release does.
    health_names_release: bool | str = True
    health_check_timeout: int = 60
    # Pages requested from a new release before it gets traffic.
    warmup_paths: list[str] = field(default_factory=lambda: ["/"])
    # How long the new release is watched after the switch.
    bake: int = 3
    keep_releases: int = 5
    dump_before_migrate: bool = True
    # How long requests and tasks may wait behind a migration before it is aborted; 0 is no limit.
    migration_block_seconds: int = 5
    # Commands of the application: before_migrate, after_migrate, before_switch, after_switch.
    hooks: dict[str, list[str]] = field(default_factory=dict)
    # Every queue that a worker of the installation consumes, on any host.
    queues: list[str] = field(default_factory=list)
    # Queues that the application publishes to, and workers elsewhere consume.
    external_queues: list[str] = field(default_factory=list)
    # Does a Celery worker among the further processes name no queues? Then a deployment adds what it consumes to those.
    process_without_queues: bool = False
    # Environment variables with passwords or the addresses of data: a rollback keeps those of the live release.
    connections: list[str] = field(default_factory=list)
    # Folders that the sandbox of its processes lets them write to, beside those in /srv/APP/shared.
    read_write_paths: list[str] = field(default_factory=list)
    # PGOPTIONS of `manage` and of hooks.
    manage_options: str = ""
    access_log: str = ""
    # Paths at which nginx serves the status page and Flower, such as /status/; "" where it does not.
    status_path: str = ""
    flower_path: str = ""
    # Paths whose POST requests nginx limits as attempts to log in; * at the beginning stands for anything.
    login_paths: list[str] = field(default_factory=list)
    # Create the first administrator: ensure_admin of the project, or createsuperuser.
    create_admin: bool = False
    web: bool = True
    workers: list[Worker] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    # Names of the commands on a timer on this host.
    cron: list[str] = field(default_factory=list)
    beat: bool = True
    # http_proxy, https_proxy and no_proxy of builds, where the host needs a proxy.
    proxy_environment: dict[str, str] = field(default_factory=dict)
    # Does beat run on any host of the installation?
    has_beat: bool = True
    # Beat's scheduler; "" is the one that the project means (in_app/schedule.py).
    beat_scheduler: str = ""
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
        return cls(**with_objects({name: value for name, value in values.items() if name in known}))

    # -- the settings of a release

    def of(self, release: str) -> Settings:
        """Return the settings with those of a release that was built on this host; otherwise, of the next release."""
        try:
            values = json.loads((self.configuration(release) / RELEASE_FILE).read_text()) if release else {}
        except FileNotFoundError:
            return self
        values = UNRECORDED | values if values else values
        values |= {name: values[old] for old, name in EARLIER_NAMES.items() if old in values}
        return replace(self, **with_objects({name: values[name] for name in OF_RELEASE if name in values}))

    def record(self, release: str) -> None:
        """Write the settings of a release."""
        values = {name: getattr(self, name) for name in OF_RELEASE}
        values |= {name: [asdict(one) for one in values[name]] for name in OBJECTS}
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
        """Return every unit of a release with these settings on this host: web, workers, further processes."""
        names = ["web"] if self.web else []
        names += [f"worker-{worker.name}" for worker in self.workers]
        names += [f"process-{process.name}" for process in self.processes]
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


# Settings that are lists of objects.
OBJECTS = {"workers": Worker, "processes": Process}


def with_objects(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings from JSON with workers and processes as objects, without keys that another version gave them."""
    return values | {
        name: [as_object(kind, one) for one in values[name]] for name, kind in OBJECTS.items() if name in values
    }


def as_object(kind: type, values: dict[str, Any]) -> Any:
    known = {setting.name for setting in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


# A variable of an environment file: NAME="value", with \" \\ \$ and \` escaped. The value may have several lines.
ASSIGNMENT = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)


def read_environment(path: Path) -> dict[str, str]:
    """Read the variables of an environment file."""
    with path.open(newline="") as file:
        return {name: re.sub(r'\\(["\\$`])', r"\1", value) for name, value in ASSIGNMENT.findall(file.read())}


def read_file(path: Path, most: int = 2**20) -> str:
    """Return the text of a file that the application writes, without waiting for one that is a named pipe.

    Raises OSError for what is no regular file, or has more bytes than `most`.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size > most:
            raise OSError(errno.EINVAL, "not a regular file, or too large", str(path))
        return file.read(most).decode(errors="replace")


def tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
