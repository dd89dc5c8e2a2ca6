"""Commands on a timer (app_cron): units of systemd under both process managers.

Like beat they are of the installation, run the live release, and get its definitions after the switch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..settings import Settings
from . import systemd
from .state import install

PROCESSES = Path("/proc")
# systemd's record of a timer's last run, by which it makes up for a run that was due while the host was down.
STAMPS = Path("/var/lib/systemd/timers")


class Cron:
    """The timers of this host: APP-cron-NAME.timer, each with a service of the same name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def units(self, release: str) -> list[str]:
        """Return the units of a release on this host, without `.timer` or `.service`."""
        return [f"{self.settings.name}-cron-{name}" for name in self.settings.of(release).cron]

    def installed(self) -> list[str]:
        return sorted(file.stem for file in systemd.UNITS.glob(f"{self.settings.name}-cron-*.timer"))

    def start(self, release: str, *, wait: bool = True) -> None:
        """Install and start the timers of a release, and remove all others.

        A timer that is new or has another schedule waits for the next time: nothing is made up for.
        """
        units = self.units(release)
        self.remove([unit for unit in self.installed() if unit not in units])
        if not units:
            return
        folder = self.settings.configuration(release) / "systemd"
        changed = [install(folder / f"{unit}.service", systemd.UNITS / f"{unit}.service", release) for unit in units]
        new = [unit for unit in units if install(folder / f"{unit}.timer", systemd.UNITS / f"{unit}.timer", release)]
        if new or any(changed):
            systemd.systemctl("daemon-reload")
        if new:
            systemd.systemctl("stop", *timers(new))
            forget_last_run(new)
        systemd.systemctl("start", *([] if wait else ["--no-block"]), *timers(units))

    def stop(self) -> None:
        """Stop the timers, and what they run, until `start`."""
        if units := self.installed():
            systemd.systemctl("stop", *timers(units), *systemd.services(units))

    def remove(self, units: list[str]) -> None:
        """Stop timers and what they run, and remove their units."""
        if not units:
            return
        systemd.systemctl("stop", *timers(units), *systemd.services(units))
        for name in [*timers(units), *systemd.services(units)]:
            (systemd.UNITS / name).unlink(missing_ok=True)
        forget_last_run(units)
        systemd.systemctl("daemon-reload")

    def running_releases(self) -> set[str]:
        """Return the releases whose commands run now; after a switch, one of an earlier release may be among them.

        By the environment of the process: the unit's file may be that of another release already.
        """
        services = systemd.services(self.installed())
        if not services:
            return set()
        output = systemd.systemctl("show", "--property=MainPID", "--property=ControlPID", *services)
        numbers = [line.partition("=")[2] for line in output.splitlines()]
        found = [release_of_process(number) for number in numbers if number.strip("0")]
        return {release for release in found if release}

    def states(self, release: str) -> list[dict[str, Any]]:
        """Return {"name", "timer", "state", "result", "last"} of each; `last` is in seconds, 0 before the first run.

        `timer` and `state` are in systemd's words, `result` too: success, exit-code, timeout and others.
        """
        units = self.units(release)
        if not units:
            return []
        names = [*timers(units), *systemd.services(units)]
        properties = "--property=Id,ActiveState,Result,InactiveExitTimestamp"
        output = systemd.systemctl("show", "--timestamp=unix", properties, *names)
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.strip().split("\n\n")]
        found = {block["Id"]: block for block in blocks}
        return [
            {
                "name": unit.removeprefix(f"{self.settings.name}-"),
                "timer": found[f"{unit}.timer"]["ActiveState"],
                "state": found[f"{unit}.service"]["ActiveState"],
                "result": found[f"{unit}.service"]["Result"],
                "last": systemd.seconds(found[f"{unit}.service"]["InactiveExitTimestamp"]),
            }
            for unit in units
        ]


def release_of_process(number: str) -> str:
    """Return RELEASE_ID of a process's environment; "" without one, or when it has ended."""
    try:
        variables = (PROCESSES / number / "environ").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    return next((text.partition("=")[2] for text in variables if text.startswith("RELEASE_ID=")), "")


def timers(units: list[str]) -> list[str]:
    return [f"{unit}.timer" for unit in units]


def forget_last_run(units: list[str]) -> None:
    for unit in units:
        (STAMPS / f"stamp-{unit}.timer").unlink(missing_ok=True)
