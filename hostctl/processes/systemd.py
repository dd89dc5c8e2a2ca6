"""The processes of the application's releases as systemd units."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..settings import ReleaseError, Settings
from .state import ProcessState, install, release_of

UNITS = Path("/etc/systemd/system")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Systemd:
    """Start, stop and inspect units.

    Their names lack `.service`: APP-web@ID, APP-worker-NAME@ID, APP-process-NAME@ID, APP-beat.
    """

    settings: Settings
    # NRestarts of units at the time of `start`; a higher number later means that the unit failed.
    restarts: dict[str, str] = field(default_factory=dict)

    def alive(self) -> dict[str, str]:
        """Return every unit of every release that runs, starts or stops, and its release."""
        name = self.settings.name
        patterns = [f"{name}-web@*", f"{name}-worker-*@*", f"{name}-process-*@*"]
        states = "--state=active,activating,deactivating,reloading"
        output = systemctl("list-units", "--plain", "--no-legend", states, *patterns)
        units = [line.split()[0].removesuffix(".service") for line in output.splitlines() if line.strip()]
        return {unit: release_of(unit) for unit in units}

    def failed(self, units: list[str]) -> list[str]:
        """Return the units that have ended or were restarted automatically."""
        return [
            unit
            for unit, state in self.states(units).items()
            if state["ActiveState"] not in ("active", "activating")
            # It has ended, and is restarted in two seconds.
            or state.get("SubState") == "auto-restart"
            or state["NRestarts"] != self.restarts.get(unit, "0")
        ]

    def states(self, units: list[str]) -> dict[str, dict[str, str]]:
        """Return ActiveState, SubState, NRestarts, StateChangeTimestamp (@SECONDS) and ControlGroup of units."""
        if not units:
            return {}
        properties = "--property=Id,ActiveState,SubState,NRestarts,StateChangeTimestamp,ControlGroup"
        output = systemctl("show", "--timestamp=unix", properties, *services(units))
        states = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.strip().split("\n\n")]
        return {state["Id"].removesuffix(".service"): state for state in states}

    def process_states(self, units: list[str]) -> list[ProcessState]:
        return [
            ProcessState(
                unit,
                state["ActiveState"],
                int(state["NRestarts"]),
                seconds(state["StateChangeTimestamp"]),
                memory_kills(state.get("ControlGroup", "")),
            )
            for unit, state in self.states(units).items()
        ]

    def definition(self, file: str, release: str) -> Path:
        """Return the file from which a unit file of a release is installed, as Ansible wrote it."""
        name, at, _ = file.partition("@")
        return self.settings.configuration(release) / "systemd" / (f"{name}@.service" if at else file)

    def missing(self, release: str) -> list[str]:
        """Return the units of a release that have no definition. Earlier versions had one template for all releases."""
        units = self.settings.of(release).units(release)
        templates = {unit: UNITS / f"{unit.partition('@')[0]}@.service" for unit in units}
        shared = self.settings.configuration(release) == self.settings.etc
        return [unit for unit in units if not (templates[unit] if shared else self.definition(unit, release)).exists()]

    def prepare(self, release: str) -> None:
        """Install the release's own unit files, beside those of other releases."""
        units = self.settings.of(release).units(release)
        self.install([*services(units), f"{self.settings.name}-stop-order.target"], release)

    def install(self, files: list[str], release: str) -> None:
        changed = [install(self.definition(file, release), UNITS / file, release) for file in files]
        if any(changed):
            systemctl("daemon-reload")

    def forget(self, release: str) -> None:
        """Remove the unit files of a removed release, and clear the failed state of its units."""
        pattern = f"{self.settings.name}-*@{release}.service"
        files = list(UNITS.glob(pattern))
        for file in files:
            file.unlink()
        if files:
            systemctl("daemon-reload")
        subprocess.run(["systemctl", "reset-failed", pattern], capture_output=True, check=False)

    def start(self, units: list[str], *, wait: bool = True) -> None:
        if units:
            running = {unit: state for unit, state in self.states(units).items() if state["ActiveState"] == "active"}
            self.restarts.update({unit: state["NRestarts"] for unit, state in running.items()})
            systemctl("start", *([] if wait else ["--no-block"]), *services(units))

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        if units:
            systemctl("stop", *([] if wait else ["--no-block"]), *services(units))

    def mark_active(self, release: str) -> None:
        """Start APP.service, which stands for the application as a whole."""
        systemctl("start", "--no-block", f"{self.settings.name}.service")

    def beat_runs(self) -> bool:
        return (
            subprocess.run(["systemctl", "is-active", "--quiet", f"{self.settings.name}-beat"], check=False).returncode
            == 0
        )

    def start_beat(self, release: str, *, wait: bool = True) -> None:
        beat = f"{self.settings.name}-beat"
        self.install(services([beat]), release)
        self.start([beat], wait=wait)

    def restart_beat(self, release: str) -> None:
        beat = f"{self.settings.name}-beat"
        self.install(services([beat]), release)
        # All releases share this unit: restarts of an earlier one, which may have failed again and again, do not count.
        subprocess.run(["systemctl", "reset-failed", *services([beat])], capture_output=True, check=False)
        systemctl("restart", *services([beat]))
        self.restarts.update({unit: state["NRestarts"] for unit, state in self.states([beat]).items()})

    def stop_beat(self) -> None:
        systemctl("stop", f"{self.settings.name}-beat.service")

    def remove_stale(self) -> None:
        """Remove unit files of other releases than the current one, and templates of earlier versions.

        Only after the processes have ended: without its unit file a process loses its TimeoutStopSec.
        """
        settings = self.settings
        built = [mark.parent.name for mark in settings.releases.glob("*/build.json")]
        current = settings.current.readlink().name if settings.current.is_symlink() else ""
        wanted = {f"{unit}.service" for unit in settings.of(current).units(current) if current}
        wanted |= {f"{settings.name}-beat.service"} if settings.beat else set()
        if any(settings.configuration(release) == settings.etc for release in built):
            wanted |= {file.name for file in UNITS.glob(f"{settings.name}-*@.service")}
        wanted |= {f"{settings.name}-stop-order.target"}
        self.remove_unwanted(wanted)

    def uninstall(self) -> None:
        """Remove every unit file without a running unit: the other manager has taken over."""
        self.remove_unwanted(set())

    def remove_unwanted(self, wanted: set[str]) -> None:
        own = {unit: f"{unit}.service" for unit in self.alive()}
        used = {file if (UNITS / file).exists() else f"{unit.partition('@')[0]}@.service" for unit, file in own.items()}
        patterns = ("web@*.service", "worker-*@*.service", "process-*@*.service", "beat.service", "stop-order.target")
        files = [file for pattern in patterns for file in UNITS.glob(f"{self.settings.name}-{pattern}")]
        unwanted = [file for file in files if file.name not in wanted | used]
        for file in unwanted:
            file.unlink()
        if unwanted:
            systemctl("daemon-reload")

    def recent_logs(self, units: list[str], lines: int = 25, since: float = 0) -> str:
        """Return the last log lines of the units, including one that has just died; `since` seconds of the epoch."""
        subprocess.run(["journalctl", "--sync"], capture_output=True, check=False)
        selected = [argument for unit in services(units) for argument in ("--unit", unit)]
        command = ["journalctl", "--no-pager", "--output=cat", f"--lines={lines}", f"--since=@{int(since)}", *selected]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.rstrip()


def seconds(timestamp: str) -> int:
    """Return the seconds since the epoch of a timestamp like @1764381600; 0 for an empty one."""
    return int(timestamp.lstrip("@") or 0)


def memory_kills(cgroup: str) -> int:
    """Return how many processes of a control group the kernel has killed at its memory limit.

    0 without version 2 of control groups, as in some containers.
    """
    try:
        events = (CGROUPS / cgroup.lstrip("/") / "memory.events").read_text() if cgroup else ""
    except OSError:
        return 0
    return int(dict(line.split() for line in events.splitlines()).get("oom_kill", 0))


def services(units: Iterable[str]) -> list[str]:
    return [f"{unit}.service" for unit in units]


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
