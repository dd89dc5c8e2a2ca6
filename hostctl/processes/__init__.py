"""The application's processes: started by the manager of their release, found under either one.

Changing app_process_manager is a deployment: the new release starts under the new manager, and what runs under the old
one is drained, stopped and removed as in any deployment. A rollback starts the older release under its own manager.
"""

from __future__ import annotations

from ..settings import Settings
from .state import ProcessState, release_of
from .supervisor import Supervisor
from .systemd import Systemd

MANAGERS = {"systemd": Systemd, "supervisor": Supervisor}


class Processes:
    """Has the methods of a manager. It starts units under their release's manager, and stops them wherever they run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.managers = {name: manager(settings) for name, manager in MANAGERS.items()}

    @property
    def all(self) -> list[Systemd | Supervisor]:
        return list(self.managers.values())

    @property
    def chosen(self) -> Systemd | Supervisor:
        """The manager of the release that the command is about."""
        return self.managers[self.settings.manager]

    def of(self, release: str) -> Systemd | Supervisor:
        return self.managers[self.settings.of(release).manager]

    def each(self, units: list[str]) -> list[tuple[Systemd | Supervisor, list[str]]]:
        """Return each manager and those of the units whose release it manages; beat has the chosen one."""
        wanted = {unit: self.of(release) if (release := release_of(unit)) else self.chosen for unit in units}
        found = [(manager, [unit for unit in units if wanted[unit] is manager]) for manager in self.all]
        return [(manager, own) for manager, own in found if own]

    def alive(self) -> dict[str, str]:
        """Return every unit of every release that runs, starts or stops, and its release."""
        return {unit: release for manager in self.all for unit, release in manager.alive().items()}

    def states(self) -> list[ProcessState]:
        """Return the state of every such unit, sorted by unit."""
        found = [state for manager in self.all for state in manager.process_states(sorted(manager.alive()))]
        return sorted(found, key=lambda state: state.unit)

    def failed(self, units: list[str]) -> list[str]:
        """Return the units that have ended or were restarted automatically."""
        return [unit for manager, own in self.each(units) for unit in manager.failed(own)]

    def recent_logs(self, units: list[str], lines: int = 25, since: float = 0) -> str:
        """Return the last log lines of the units; `since` is in seconds of the epoch."""
        return "\n".join(manager.recent_logs(own, lines, since) for manager, own in self.each(units))

    def missing(self, release: str) -> list[str]:
        """Return the units of a release that have no definition on this host."""
        return self.of(release).missing(release)

    def prepare(self, release: str) -> None:
        """Install the definitions of a release's units."""
        self.of(release).prepare(release)

    def states_of(self, units: list[str]) -> list[ProcessState]:
        """Return the state of each of these units, also of those that do not run."""
        found = {state.unit: state for manager, own in self.each(units) for state in manager.process_states(own)}
        for manager in self.all:
            found |= {state.unit: state for state in manager.process_states(units) if state.runs}
        return [found[unit] for unit in units if unit in found]

    def start(self, units: list[str], *, wait: bool = True) -> None:
        for manager, own in self.each(units):
            manager.start(own, wait=wait)

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

    def mark_active(self, release: str) -> None:
        self.of(release).mark_active(release)

    def beat_runs(self) -> bool:
        return any(manager.beat_runs() for manager in self.all)

    def restart_beat(self, release: str) -> None:
        """Stop beat, whose code and settings may be those of another release, and start that of this release."""
        self.stop_other_beat(release)
        self.of(release).restart_beat(release)

    def start_beat(self, release: str, *, wait: bool = True) -> None:
        self.of(release).start_beat(release, wait=wait)

    def stop_other_beat(self, release: str) -> None:
        for manager in self.all:
            if manager is not self.of(release) and manager.beat_runs():
                manager.stop_beat()

    def stop_beat(self) -> None:
        for manager in self.all:
            if manager.beat_runs():
                manager.stop_beat()

    def remove_stale(self) -> None:
        """Remove units and programs that this host no longer runs, under both managers."""
        self.chosen.remove_stale()
        for manager in self.all:
            if manager is not self.chosen:
                manager.uninstall()
