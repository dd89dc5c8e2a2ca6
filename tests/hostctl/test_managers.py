"""Two process managers on one host, while the application moves from one to the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hostctl import processes
from hostctl.processes.state import ProcessState
from hostctl.settings import Settings

OLD, NEW = "old-1", "new-2"
WEB = f"shop-web@{NEW}"


class Remembers:
    """A manager that only remembers what it was told."""

    def __init__(self, *running: str) -> None:
        self.running = set(running)
        self.told: list[tuple[str, Any]] = []

    def alive(self) -> dict[str, str]:
        return {unit: unit.partition("@")[2] for unit in self.running if "@" in unit}

    def process_states(self, units: list[str]) -> list[ProcessState]:
        return [ProcessState(unit, "active" if unit in self.running else "inactive", 0) for unit in units]

    def beat_runs(self) -> bool:
        return "shop-beat" in self.running

    def stop_beat(self) -> None:
        self.told.append(("stop_beat", None))

    def restart_beat(self, release: str) -> None:
        self.told.append(("restart_beat", None))

    def start(self, units: list[str], *, wait: bool = True) -> None:
        self.told.append(("start", units))

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        self.told.append(("stop", units))

    def remove_stale(self) -> None:
        self.told.append(("remove_stale", None))

    def uninstall(self) -> None:
        self.told.append(("uninstall", None))

    def forget(self, release: str) -> None:
        self.told.append(("forget", release))


@pytest.fixture
def both(settings: Settings) -> processes.Processes:
    """systemd is chosen; OLD was built under Supervisor."""
    both = processes.Processes(settings)
    both.managers = {"systemd": Remembers(WEB), "supervisor": Remembers(f"shop-web@{OLD}", "shop-beat")}
    (settings.configurations / OLD).mkdir(parents=True)
    dataclasses.replace(settings, manager="supervisor").record(OLD)
    return both


def test_processes_of_the_other_manager_are_found(both: processes.Processes) -> None:
    assert both.alive() == {WEB: NEW, f"shop-web@{OLD}": OLD}
    assert both.beat_runs()


def test_a_process_under_the_other_manager_runs(both: processes.Processes) -> None:
    """The current release, while a new one starts under the chosen manager, or after that has failed."""
    units = [WEB, f"shop-web@{OLD}", "shop-beat", f"shop-worker-default@{NEW}"]
    assert [(one.unit, one.runs) for one in both.states_of(units)] == [
        *((unit, True) for unit in units[:3]),
        (units[3], False),
    ]


def test_each_manager_stops_its_own(both: processes.Processes) -> None:
    both.stop([f"shop-web@{OLD}", WEB], wait=False)
    assert (both.chosen.told, both.managers["supervisor"].told) == ([("stop", [WEB])], [("stop", [f"shop-web@{OLD}"])])


def test_beat_moves_to_the_chosen_manager(both: processes.Processes) -> None:
    both.restart_beat(NEW)
    assert (both.chosen.told, both.managers["supervisor"].told) == ([("restart_beat", None)], [("stop_beat", None)])


def test_the_other_manager_is_uninstalled(both: processes.Processes) -> None:
    both.remove_stale()
    assert (both.chosen.told, both.managers["supervisor"].told) == ([("remove_stale", None)], [("uninstall", None)])


def test_a_release_starts_under_its_own_manager(both: processes.Processes) -> None:
    """Also in a rollback across a change of the manager."""
    both.start([WEB, f"shop-web@{OLD}"])
    assert both.chosen.told == [("start", [WEB])]
    assert both.managers["supervisor"].told == [("start", [f"shop-web@{OLD}"])]
    both.restart_beat(OLD)
    assert both.managers["supervisor"].told[-1] == ("restart_beat", None)
