"""The processes of the application's releases as programs of Supervisor, through its XML-RPC."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..settings import ReleaseError, Settings, tail
from .state import ProcessState

SOCKET = Path("/var/run/supervisor.sock")
PROGRAMS = Path("/etc/supervisor/conf.d")
UNITS = Path("/etc/systemd/system")
LOGS = Path("/var/log")
# Seconds in which supervisord answers after its start.
PATIENCE = 30
# In the template that Ansible wrote, this stands for a release's ID.
PLACEHOLDER = "@RELEASE@"

# Numbers of Supervisor's, from its states.py and xmlrpc.py.
STOPPED, STOPPING, FATAL, UNKNOWN = 0, 40, 200, 1000
STARTING, RUNNING = 10, 20
# In the words of systemd; everything else is about to be started again.
STATES = {STARTING: "activating", RUNNING: "active", STOPPING: "deactivating"}
BAD_NAME, ALREADY_STARTED, NOT_RUNNING, ALREADY_ADDED, STILL_RUNNING = 10, 60, 70, 90, 91


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(SOCKET))


class Transport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> Connection:
        return Connection("localhost")


class Supervisor:
    """Starts, stops and looks at programs, with the names that units have: APP-web@ID, APP-worker-NAME@ID, APP-beat.

    Those of a release are a group, APP@ID. No program starts with supervisord: APP.service starts the current ones.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.beat = f"{settings.name}-beat"
        # The process IDs that programs had when they were started here.
        self.started: dict[str, int] = {}

    # -- what there is

    def alive(self) -> dict[str, str]:
        """Every program of every release that is running, starting, stopping or about to be started again."""
        prefix = f"{self.settings.name}@"
        return {
            name: process["group"].removeprefix(prefix)
            for name, process in self.processes().items()
            if process["group"].startswith(prefix) and not has_ended(process)
        }

    def process_states(self) -> list[ProcessState]:
        processes = self.processes()
        return [
            ProcessState(unit, STATES.get(processes[unit]["state"], "activating"), None)
            for unit in sorted(self.alive())
            if unit in processes
        ]

    def failed(self, units: list[str]) -> list[str]:
        """Those of the programs that have ended or had to be started again."""
        processes = self.processes() if units else {}
        return [unit for unit in units if unit not in processes or self.has_failed(processes[unit])]

    def has_failed(self, process: dict[str, Any]) -> bool:
        started = self.started.get(process["name"], process["pid"])
        return process["state"] not in (STARTING, RUNNING) or process["pid"] != started

    def beat_runs(self) -> bool:
        process = self.processes().get(self.beat)
        return process is not None and not has_ended(process)

    def last_words(self, units: list[str], lines: int = 25) -> str:
        """The last log lines of the programs."""
        logs = [self.log(unit) for unit in units]
        return "\n".join(tail(log.read_text(errors="replace"), lines) for log in logs if log.exists())

    # -- starting and stopping

    def prepare(self, release: str) -> None:
        """Make a release's programs known; what runs stays as it is."""
        self.load(f"{self.settings.name}@{release}", "release.conf", release)

    def forget(self, release: str) -> None:
        """A release is gone: its programs and their logs go too."""
        self.unload(f"{self.settings.name}@{release}")
        for log in self.log("").parent.glob(f"*@{release}.log*"):
            log.unlink()

    def start(self, units: list[str], *, wait: bool = True) -> None:
        """Start programs. Whether they stay is for `failed` to say, with `wait` or without."""
        if not units:
            return
        self.await_supervisor()
        # What was told to stop cannot be started before it has ended.
        self.stop([unit for unit in units if self.processes().get(unit, {}).get("state") == STOPPING])
        self.load_unknown(units)
        for unit in units:
            self.call("startProcess", self.full_name(unit), False, but=ALREADY_STARTED)
        processes = self.processes()
        self.started |= {unit: processes[unit]["pid"] for unit in units}

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        """Tell programs to stop; Supervisor kills each when its own time to stop is over."""
        while units:
            for unit in units:
                self.call("stopProcess", self.full_name(unit), False, but=NOT_RUNNING)
            processes = self.processes() if wait else {}
            # Told again until it has ended: one that ended by itself just now would be started again.
            units = [unit for unit in units if unit in processes and not has_ended(processes[unit])]
            time.sleep(0.05 if units else 0)

    def take_up(self) -> None:
        """Let systemd know that the application as a whole is up, and wait: what it starts runs already."""
        systemctl("start", f"{self.settings.name}.service")

    def restart_beat(self) -> None:
        self.stop_beat()
        self.load(self.beat, "beat.conf")
        self.start([self.beat])

    def stop_beat(self) -> None:
        if self.beat_runs():
            self.stop([self.beat])

    # -- leaving nothing behind

    def tidy(self) -> None:
        """Remove the programs of what this host no longer runs."""
        name, current = self.settings.name, self.settings.current
        wanted = {f"{name}@{release}" for release in self.alive().values()}
        wanted |= {f"{name}@{current.readlink().name}"} if current.is_symlink() else set()
        wanted |= {self.beat} if self.settings.beat else set()
        for group in self.loaded() - wanted:
            self.unload(group)

    def leave(self) -> None:
        """Another manager has taken over: nothing of this one stays. Does nothing while something runs."""
        templates = self.settings.etc / "supervisor"
        if not templates.exists() or self.alive() or self.beat_runs():
            return
        for group in self.loaded():
            self.unload(group)
        # Before supervisord stops, or it would take APP.service with it.
        for service in ("supervisor", self.settings.name):
            file = UNITS / f"{service}.service.d" / f"{self.settings.name}-supervisor.conf"
            file.unlink(missing_ok=True)
            if file.parent.exists() and not list(file.parent.iterdir()):
                file.parent.rmdir()
        systemctl("daemon-reload")
        if not list(PROGRAMS.glob("*.conf")):
            # Nobody else uses it.
            systemctl("disable", "--quiet", "--now", "supervisor.service")
        (self.settings.library / "run_with_environment").unlink(missing_ok=True)
        shutil.rmtree(self.log("").parent, ignore_errors=True)
        # The last: as long as it is there, all of this is done again.
        shutil.rmtree(templates)

    # -- groups of programs

    def group(self, unit: str) -> str:
        name, at, release = unit.partition("@")
        return f"{self.settings.name}@{release}" if at else name

    def full_name(self, unit: str) -> str:
        return f"{self.group(unit)}:{unit}"

    def loaded(self) -> set[str]:
        """The groups of this application that have a file."""
        name = self.settings.name
        return {file.stem for pattern in (f"{name}@*.conf", f"{self.beat}.conf") for file in PROGRAMS.glob(pattern)}

    def load(self, group: str, template: str, release: str = "") -> None:
        """Write a group's file and have supervisord take it up, unless one of its programs runs."""
        text = (self.settings.etc / "supervisor" / template).read_text().replace(PLACEHOLDER, release)
        (PROGRAMS / f"{group}.conf").write_text(text)
        self.log("").parent.mkdir(mode=0o750, exist_ok=True)
        self.await_supervisor()
        self.call("reloadConfig")
        self.call("removeProcessGroup", group, but=(BAD_NAME, STILL_RUNNING))
        self.call("addProcessGroup", group, but=ALREADY_ADDED)

    def load_unknown(self, units: list[str]) -> None:
        """Load what supervisord does not know, as after a change of the manager."""
        for group in {self.group(unit) for unit in units if unit not in self.processes()}:
            if group == self.beat:
                self.load(group, "beat.conf")
            else:
                self.load(group, "release.conf", group.partition("@")[2])

    def unload(self, group: str) -> None:
        (PROGRAMS / f"{group}.conf").unlink(missing_ok=True)
        if answers():
            self.call("removeProcessGroup", group, but=BAD_NAME)

    def log(self, unit: str) -> Path:
        return LOGS / self.settings.name / f"{unit}.log"

    # -- supervisord

    def processes(self) -> dict[str, dict[str, Any]]:
        """What supervisord knows, by program; {} where it does not run."""
        return {one["name"]: one for one in self.call("getAllProcessInfo")} if answers() else {}

    def await_supervisor(self) -> None:
        if not wait_for(answers, PATIENCE):
            raise ReleaseError(f"supervisord does not answer at {SOCKET}: see `systemctl status supervisor`.")

    def call(self, method: str, *arguments: Any, but: int | tuple[int, ...] = ()) -> Any:
        """Call a method of Supervisor's, content with the faults in `but`.

        Raises ReleaseError with what supervisord says.
        """
        try:
            return getattr(proxy().supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in (but if isinstance(but, tuple) else (but,)):
                return None
            raise ReleaseError(f"Supervisor's {method}{arguments}: {fault.faultString}") from None
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise ReleaseError(f"supervisord does not answer at {SOCKET}: {error}") from None


def proxy() -> xmlrpc.client.ServerProxy:
    return xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=Transport())


def answers() -> bool:
    """Is supervisord there, and not about to end?"""
    try:
        return proxy().supervisor.getState()["statecode"] == 1
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return False


def has_ended(process: dict[str, Any]) -> bool:
    """For good, that is: one that has EXITED is started again in a moment."""
    return process["state"] in (STOPPED, FATAL, UNKNOWN)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
