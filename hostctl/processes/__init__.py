"""The application's processes: started by the configured manager, found under either one.

Changing app_process_manager is a deployment: the new release starts under the new manager, and what runs under the old
one is drained, stopped and removed as in any deployment.
"""

from __future__ import annotations

from ..settings import Settings
from .state import ProcessState
from .supervisor import Supervisor
from .systemd import Systemd

MANAGERS = {"systemd": Systemd, "supervisor": Supervisor}


class Processes:
    """Has the methods of a manager. It starts units under the chosen manager, and stops them wherever they run."""

    def __init__(self, settings: Settings) -> None:
        self.chosen = MANAGERS[settings.manager](settings)
        self.others = [manager(settings) for name, manager in MANAGERS.items() if name != settings.manager]
        self.all = [self.chosen, *self.others]
        self.prepare = self.chosen.prepare
        self.failed = self.chosen.failed
        self.recent_logs = self.chosen.recent_logs
        self.mark_active = self.chosen.mark_active

    def alive(self) -> dict[str, str]:
        """Return every unit of every release that runs, starts or stops, and its release."""
        return {unit: release for manager in self.all for unit, release in manager.alive().items()}

    def states(self) -> list[ProcessState]:
        """Return the state of every such unit, sorted by unit."""
        found = [state for manager in self.all for state in manager.process_states(sorted(manager.alive()))]
        return sorted(found, key=lambda state: state.unit)

    def states_of(self, units: list[str]) -> list[ProcessState]:
        """Return the state of each of these units, also of those that do not run."""
        found = {state.unit: state for state in self.chosen.process_states(units)}
        for manager in self.others:
            found |= {state.unit: state for state in manager.process_states(units) if state.runs}
        return list(found.values())

    def start(self, units: list[str], *, wait: bool = True) -> None:
        self.chosen.start(units, wait=wait)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        """Stop units under either manager; tell both before waiting for one."""
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

    def remove_stale(self) -> None:
        """Remove units and programs that this host no longer runs, under both managers."""
        self.chosen.remove_stale()
        for manager in self.others:
            manager.uninstall()
