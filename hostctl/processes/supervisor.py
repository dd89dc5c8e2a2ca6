"""The processes of the application's releases as programs of Supervisor, through its XML-RPC."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ..settings import ReleaseError, Settings, say, tail
from .state import PLACEHOLDER, ProcessState, install

SOCKET = Path("/var/run/supervisor.sock")
PROGRAMS = Path("/etc/supervisor/conf.d")
UNITS = Path("/etc/systemd/system")
LOGS = Path("/var/log")
# Seconds that supervisord may take to answer after its start.
PATIENCE = 30
DAEMON = Path("/usr/bin/supervisord")

# Constants of Supervisor's states.py and xmlrpc.py.
STOPPED, STOPPING, FATAL, UNKNOWN = 0, 40, 200, 1000
STARTING, RUNNING = 10, 20
# systemd's terms; all other states are about to be restarted.
STATES = {STARTING: "activating", RUNNING: "active", STOPPING: "deactivating"}
STATES |= {STOPPED: "inactive", FATAL: "failed", UNKNOWN: "failed"}
# How supervisord logs the end of a program, unexpected or on purpose. It does not count restarts itself.
END_OF_PROGRAM = re.compile(r" (exited|stopped): (\S+) \(|supervisord started with pid")
LOG_BYTES = 200_000
# The time of a line, as gunicorn and ISO 8601 write it. Without a zone it may be in that of the project.
LINE_WITH_TIME = re.compile(
    r"^\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,]\d+)? ?(Z|[+-]\d\d:?\d\d)[^\n]*", re.MULTILINE
)
BAD_NAME, NO_FILE, FAILED, ALREADY_STARTED, NOT_RUNNING, ALREADY_ADDED, STILL_RUNNING = 10, 20, 30, 60, 70, 90, 91


class Supervisor:
    """Start, stop and inspect programs, named like systemd's units: see systemd.py.

    The programs of a release are a group, APP@ID. None has autostart: APP.service starts those of the current release.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.beat = f"{settings.name}-beat"
        # Process IDs at the time of `start`; another one later means that the program failed.
        self.started: dict[str, int] = {}

    # -- state

    def alive(self) -> dict[str, str]:
        """Return every program of every release that runs, starts, stops or is about to be restarted."""
        prefix = f"{self.settings.name}@"
        return {
            name: process["group"].removeprefix(prefix)
            for name, process in self.processes().items()
            if process["group"].startswith(prefix) and not has_ended(process)
        }

    def process_states(self, units: list[str]) -> list[ProcessState]:
        processes = self.processes() if units else {}
        restarts = count_restarts(self.log_of_supervisord()) if processes else {}
        return [
            ProcessState(unit, STATES.get(process["state"], "activating"), restarts.get(unit, 0), began(process))
            if (process := processes.get(unit))
            else ProcessState(unit, "inactive", 0)
            for unit in units
        ]

    def log_of_supervisord(self) -> str:
        return self.call("readLog", -LOG_BYTES, 0, but=(NO_FILE, FAILED)) or ""

    def failed(self, units: list[str]) -> list[str]:
        """Return the programs that have ended or were restarted automatically."""
        processes = self.processes() if units else {}
        return [unit for unit in units if unit not in processes or self.has_failed(processes[unit])]

    def has_failed(self, process: dict[str, Any]) -> bool:
        started = self.started.get(process["name"], process["pid"])
        return process["state"] not in (STARTING, RUNNING) or process["pid"] != started

    def beat_runs(self) -> bool:
        process = self.processes().get(self.beat)
        return process is not None and not has_ended(process)

    def recent_logs(self, units: list[str], lines: int = 25, since: float = 0) -> str:
        """Return the last log lines of the programs; `since` is in seconds of the epoch.

        A line without a time and its zone is as old as the one before it. A file not written since is left out.
        """
        logs = [log for unit in units if (log := self.log(unit)).exists() and log.stat().st_mtime >= int(since)]
        return "\n".join(tail(text_since(log.read_text(errors="replace"), int(since)), lines) for log in logs)

    # -- starting and stopping

    def definition(self, name: str, release: str) -> Path:
        """Return a file of a release, as Ansible wrote it."""
        return self.settings.configuration(release) / "supervisor" / name

    def missing(self, release: str) -> list[str]:
        """Return the programs of a release that have no definition; all without supervisord."""
        file = self.definition("release.conf", release)
        text = file.read_text().replace(PLACEHOLDER, release) if file.exists() and DAEMON.exists() else ""
        return [unit for unit in self.settings.of(release).units(release) if f"[program:{unit}]" not in text]

    def drop_ins(self) -> dict[str, Path]:
        """Return the drop-ins that tie supervisord to boot and shutdown, by the unit that they extend."""
        services = (self.settings.name, "supervisor")
        return {name: UNITS / f"{name}.service.d" / f"{self.settings.name}-supervisor.conf" for name in services}

    def install_drop_ins(self, release: str) -> bool:
        """Install the drop-ins of a release; return whether supervisord's has changed."""
        name = self.settings.name
        changed = {
            service: install(
                self.definition(f"{'app' if service == name else service}.service.conf", release), path, release
            )
            for service, path in self.drop_ins().items()
        }
        if any(changed.values()):
            systemctl("daemon-reload")
        return changed["supervisor"]

    def prepare(self, release: str) -> None:
        """Load a release's programs into supervisord, and start that if needed; running programs are left alone."""
        if not all(path.exists() for path in self.drop_ins().values()):
            self.install_drop_ins(release)
        systemctl("enable", "--quiet", "--now", "supervisor.service")
        self.load(f"{self.settings.name}@{release}", "release.conf", release)

    def forget(self, release: str) -> None:
        """Remove the programs and logs of a removed release."""
        self.unload(f"{self.settings.name}@{release}")
        for log in self.log("").parent.glob(f"*@{release}.log*"):
            log.unlink()

    def start(self, units: list[str], *, wait: bool = True) -> None:
        """Start programs; `failed` tells whether they keep running, with `wait` or without."""
        if not units:
            return
        self.await_supervisor()
        # A stopping program cannot be started before it has ended.
        self.stop([unit for unit in units if self.processes().get(unit, {}).get("state") == STOPPING])
        self.load_unknown(units)
        for unit in units:
            self.call("startProcess", self.full_name(unit), False, but=ALREADY_STARTED)
        processes = self.processes()
        self.started |= {unit: processes[unit]["pid"] for unit in units}

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        """Stop programs; Supervisor kills each one after its own stopwaitsecs."""
        while units:
            for unit in units:
                self.call("stopProcess", self.full_name(unit), False, but=NOT_RUNNING)
            processes = self.processes() if wait else {}
            # Repeated until the program has ended: one that exited just before the call would be restarted.
            units = [unit for unit in units if unit in processes and not has_ended(processes[unit])]
            time.sleep(0.05 if units else 0)

    def mark_active(self, release: str) -> None:
        """Start APP.service, which stands for the application as a whole, and wait: its programs run already.

        supervisord, whose sandbox is one for all releases, gets that of this release.
        """
        if self.install_drop_ins(release):
            say(
                "The sandbox of supervisord has changed. It takes effect with the next `systemctl restart supervisor`, "
                "which restarts the site."
            )
        systemctl("start", f"{self.settings.name}.service")

    def start_beat(self, release: str, *, wait: bool = True) -> None:
        self.load(self.beat, "beat.conf", release)
        self.start([self.beat], wait=wait)

    def restart_beat(self, release: str) -> None:
        self.stop_beat()
        self.start_beat(release)

    def stop_beat(self) -> None:
        if self.beat_runs():
            self.stop([self.beat])

    # -- removal

    def remove_stale(self) -> None:
        """Remove the programs that this host no longer runs."""
        name, current = self.settings.name, self.settings.current
        wanted = {f"{name}@{release}" for release in self.alive().values()}
        wanted |= {f"{name}@{current.readlink().name}"} if current.is_symlink() else set()
        wanted |= {self.beat} if self.settings.beat else set()
        for group in self.loaded() - wanted:
            self.unload(group)

    def uninstall(self) -> None:
        """Remove everything of this manager: the other one has taken over. Do nothing while a program runs."""
        logs = self.log("").parent
        if not logs.exists() or self.alive() or self.beat_runs():
            return
        for group in self.loaded():
            self.unload(group)
        # Before supervisord stops: its drop-in would stop APP.service, too.
        for file in self.drop_ins().values():
            file.unlink(missing_ok=True)
            if file.parent.exists() and not list(file.parent.iterdir()):
                file.parent.rmdir()
        systemctl("daemon-reload")
        if not list(PROGRAMS.glob("*.conf")):
            # No other application uses it.
            systemctl("disable", "--quiet", "--now", "supervisor.service")
        # Last: while this folder exists, an interrupted removal is repeated.
        shutil.rmtree(logs, ignore_errors=True)

    # -- groups of programs

    def group(self, unit: str) -> str:
        name, at, release = unit.partition("@")
        return f"{self.settings.name}@{release}" if at else name

    def full_name(self, unit: str) -> str:
        return f"{self.group(unit)}:{unit}"

    def loaded(self) -> set[str]:
        """Return the groups of this application that have a file."""
        name = self.settings.name
        return {file.stem for pattern in (f"{name}@*.conf", f"{self.beat}.conf") for file in PROGRAMS.glob(pattern)}

    def load(self, group: str, template: str, release: str) -> None:
        """Write a group's file and have supervisord load it, unless one of its programs runs."""
        text = self.definition(template, release).read_text().replace(PLACEHOLDER, release)
        (PROGRAMS / f"{group}.conf").write_text(text)
        self.log("").parent.mkdir(mode=0o750, exist_ok=True)
        self.await_supervisor()
        self.call("reloadConfig")
        self.call("removeProcessGroup", group, but=(BAD_NAME, STILL_RUNNING))
        self.call("addProcessGroup", group, but=ALREADY_ADDED)

    def load_unknown(self, units: list[str]) -> None:
        """Load programs that supervisord does not know, as after a change of the manager."""
        for group in {self.group(unit) for unit in units if unit not in self.processes()} - {self.beat}:
            self.load(group, "release.conf", group.partition("@")[2])

    def unload(self, group: str) -> None:
        (PROGRAMS / f"{group}.conf").unlink(missing_ok=True)
        if answers():
            self.call("removeProcessGroup", group, but=BAD_NAME)

    def log(self, unit: str) -> Path:
        return LOGS / self.settings.name / f"{unit}.log"

    # -- supervisord

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return supervisord's processes by program; {} when it does not run."""
        return {one["name"]: one for one in self.call("getAllProcessInfo")} if answers() else {}

    def await_supervisor(self) -> None:
        if not wait_for(answers, PATIENCE):
            raise ReleaseError(f"supervisord does not answer at {SOCKET}: see `systemctl status supervisor`.")

    def call(self, method: str, *arguments: Any, but: int | tuple[int, ...] = ()) -> Any:
        """Call a method of Supervisor, ignoring the faults in `but`.

        Raises ReleaseError with supervisord's message.
        """
        from . import supervisor_rpc

        return supervisor_rpc.call(SOCKET, method, arguments, but if isinstance(but, tuple) else (but,))


def answers() -> bool:
    """Return whether supervisord runs and is not shutting down."""
    if not SOCKET.exists():
        return False
    # Timers start this program every few seconds, on most hosts without Supervisor.
    from . import supervisor_rpc

    return supervisor_rpc.answers(SOCKET)


def has_ended(process: dict[str, Any]) -> bool:
    """Return whether a process has ended for good; EXITED means that it is restarted in a moment."""
    return process["state"] in (STOPPED, FATAL, UNKNOWN)


def began(process: dict[str, Any]) -> int:
    """Return when a program's state began, in seconds since the epoch."""
    return process["start"] if process["state"] in (STARTING, RUNNING, STOPPING) else process["stop"]


def count_restarts(log: str) -> dict[str, int]:
    """Return how often supervisord has restarted each program since the program was last started on purpose."""
    restarts: dict[str, int] = {}
    for match in END_OF_PROGRAM.finditer(log):
        if match[1] is None:
            restarts.clear()
        else:
            restarts[match[2]] = restarts.get(match[2], 0) + 1 if match[1] == "exited" else 0
    return restarts


def text_since(log: str, since: int) -> str:
    """Return a log without what was written before a moment, as far as its lines have a time and its zone."""
    old = [found.end() for found in LINE_WITH_TIME.finditer(log) if since and written(found) < since]
    newer = LINE_WITH_TIME.search(log, old[-1]) if old else None
    return log[newer.start() :] if newer else "" if old else log


def written(line: re.Match[str]) -> float:
    """Return when a line was written, in seconds since the epoch; infinite for an impossible time."""
    zone = "+0000" if line[3] == "Z" else line[3].replace(":", "")
    try:
        return datetime.strptime(f"{line[1]} {line[2]} {zone}", "%Y-%m-%d %H:%M:%S %z").timestamp()
    except ValueError:
        return math.inf


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
