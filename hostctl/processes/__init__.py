"""The processes of the application under the manager that was chosen, and what another one still runs.

A change of the manager is a rollout: the new release starts under the new one, and what the old one runs is drained,
stopped and tidied away as at any other rollout.
"""

from __future__ import annotations

from ..settings import Settings
from .state import ProcessState
from .supervisor import Supervisor
from .systemd import Systemd

MANAGERS = {"systemd": Systemd, "supervisor": Supervisor}


class Processes:
    """Has the methods of a manager. What is started is the chosen one's; what runs may be the other's."""

    def __init__(self, settings: Settings) -> None:
        self.chosen = MANAGERS[settings.manager](settings)
        self.others = [manager(settings) for name, manager in MANAGERS.items() if name != settings.manager]
        self.all = [self.chosen, *self.others]
        self.prepare = self.chosen.prepare
        self.failed = self.chosen.failed
        self.last_words = self.chosen.last_words
        self.take_up = self.chosen.take_up

    def alive(self) -> dict[str, str]:
        return {unit: release for manager in self.all for unit, release in manager.alive().items()}

    def states(self) -> list[ProcessState]:
        """State of every process of every release that is alive, by unit."""
        found = [state for manager in self.all for state in manager.process_states()]
        return sorted(found, key=lambda state: state.unit)

    def start(self, units: list[str], *, wait: bool = True) -> None:
        self.chosen.start(units, wait=wait)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        """Stop units wherever they run; each manager is told before any is waited for."""
        found = [(manager, sorted(set(units) & set(manager.alive()))) for manager in self.all]
        for manager, own in found:
            manager.stop(own, wait=False)
        for manager, own in found if wait else []:
            manager.stop(own)

    def forget(self, release: str) -> None:
        for manager in self.all:
            manager.forget(release)

    def beat_runs(self) -> bool:
        return any(manager.beat_runs() for manager in self.all)

    def restart_beat(self) -> None:
        for manager in self.others:
            if manager.beat_runs():
                manager.stop_beat()
        self.chosen.restart_beat()

    def stop_beat(self) -> None:
        for manager in self.all:
            if manager.beat_runs():
                manager.stop_beat()

    def tidy(self) -> None:
        self.chosen.tidy()
        for manager in self.others:
            manager.leave()
