"""The releases on this host, which one is current, and which processes they have."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from .processes import Processes
from .processes.cron import Cron
from .processes.state import release_of
from .settings import RELEASE_FILE, Settings, Worker, read_environment

# The virtual environment of a release, and the one that a new one takes the place of.
VENV, FORMER_VENV = ".venv", ".venv.former"


class Host:
    """The releases of one application on this host.

    `settings` are those of the release that the command is about.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.manager = Processes(settings)
        self.cron = Cron(settings)

    def about(self, release: str) -> Host:
        """Return this host with the settings of a release."""
        settings = self.settings.of(release)
        return self if settings == self.settings else Host(settings)

    # -- releases

    def path(self, release: str) -> Path:
        return self.settings.releases / release

    def current_release(self) -> str:
        """Return the release that `current` points to, or ""."""
        try:
            return self.settings.current.readlink().name
        except FileNotFoundError:
            return ""

    def built(self) -> list[str]:
        """Return every completely built release, newest first.

        A build cut short by a power failure does not count, nor does a release whose Python is gone.
        """
        marks = self.settings.releases.glob("*/build.json")
        names = [mark.parent.name for mark in sorted(marks, key=lambda mark: mark.stat().st_mtime, reverse=True)]
        return [name for name in names if self.facts(name) and not self.lacks_python(name)]

    def lacks_python(self, release: str) -> bool:
        """Return whether the Python that a release's .venv was made with is gone, as after an upgrade of Debian.

        Its link may dangle, or lead to another version, which does not find the packages.
        """
        venv = self.path(release) / VENV
        if (self.path(release) / FORMER_VENV).exists():
            # A new one was begun.
            return True
        if not (venv / "bin/python").is_symlink():
            return False
        try:
            python = (venv / "bin/python").resolve(strict=True)
        except (OSError, RuntimeError):
            return True
        version = re.fullmatch(r"python(3\.\d+)", python.name)
        return bool(version) and not (venv / "lib" / python.name).is_dir()

    def facts(self, release: str) -> dict[str, Any]:
        """Return what was recorded when the release was built; {} when it is missing or unreadable."""
        try:
            return json.loads((self.path(release) / "build.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}

    def switch(self, release: str) -> None:
        """Rename `current` onto the release: traffic and code move in one step."""
        link = self.settings.home / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(release).relative_to(self.settings.home))
        link.rename(self.settings.current)

    def remove(self, release: str) -> None:
        if self.path(release).exists():
            shutil.rmtree(self.path(release))
        self.manager.forget(release)
        if (own := self.settings.configurations / release).exists():
            shutil.rmtree(own)

    def prune(self, previous: str = "") -> list[str]:
        """Remove old releases and name them. The current one, and those with a running process or timer, stay.

        `previous`, the release to roll back to, counts as the second newest.
        """
        built = self.built()
        order = dict.fromkeys([*built[:1], *(release for release in built if release == previous), *built])
        used = {self.current_release(), *self.manager.alive().values(), *self.cron.running_releases()}
        keep = used | set(list(order)[: self.settings.keep_releases])
        # A configuration without its release was left by a kill, and holds credentials.
        places = [place for place in (self.settings.releases, self.settings.configurations) if place.exists()]
        removed = sorted({path.name for place in places for path in place.iterdir()} - keep)
        for release in removed:
            self.remove(release)
        return removed

    def domains(self) -> list[str]:
        """Return the names of the site in every release on this host, those of the current one first.

        Each release may become live again. To clients without a name in TLS, nginx shows the first address.
        """
        releases = [*filter(None, [self.current_release()]), *sorted(self.built())]
        return list(dict.fromkeys(name for release in releases for name in self.domains_of(release)))

    def domains_of(self, release: str) -> list[str]:
        settings = self.settings.of(release)
        if settings.domains:
            return settings.domains
        # An earlier version recorded the first name only.
        environment = read_environment(settings.configuration(release) / "app.env")
        return [settings.domain, *filter(None, environment.get("ALLOWED_HOSTS", "").split(","))]

    # -- units

    def web_units(self, release: str) -> list[str]:
        return [unit for unit in self.units(release) if self.is_web(unit)]

    def worker_units(self, release: str) -> list[str]:
        return [unit for unit in self.units(release) if self.is_worker(unit)]

    def process_units(self, release: str, *, single: bool) -> list[str]:
        """Return the units of further processes: those of which only one may run, or the others."""
        processes = self.settings.of(release).processes
        return [f"{self.settings.name}-process-{one.name}@{release}" for one in processes if one.single == single]

    def side_by_side(self, release: str) -> list[str]:
        """Return the units that may run beside those of another release."""
        alone = self.process_units(release, single=True)
        return [unit for unit in self.units(release) if unit not in alone]

    def units(self, release: str) -> list[str]:
        """Return every unit that a release has on this host."""
        return self.settings.of(release).units(release)

    def running_units(self, release: str) -> list[str]:
        return [unit for unit, of in self.manager.alive().items() if of == release]

    def other_units(self, release: str) -> list[str]:
        """Return the running units of all other releases."""
        return [unit for unit, of in self.manager.alive().items() if of != release]

    def stopping_units(self) -> set[str]:
        """Return the units that were told to stop and have not ended yet."""
        return {state.unit for state in self.manager.states() if state.state == "deactivating"}

    def is_web(self, unit: str) -> bool:
        return unit.startswith(f"{self.settings.name}-web@")

    def is_worker(self, unit: str) -> bool:
        return unit.startswith(f"{self.settings.name}-worker-")

    def worker_name(self, unit: str) -> str:
        return unit.partition("@")[0].removeprefix(f"{self.settings.name}-worker-")

    def process_name(self, unit: str) -> str:
        """Return web, worker-NAME or process-NAME."""
        return unit.partition("@")[0].removeprefix(f"{self.settings.name}-")

    def stop_timeout(self, unit: str) -> int:
        """Return the seconds that a unit may take to end, as its release was configured."""
        settings, process = self.settings.of(release_of(unit)), self.process_name(unit)
        limits = {f"worker-{one.name}": one.stop_timeout for one in settings.workers}
        limits |= {f"process-{one.name}": one.stop_timeout for one in settings.processes}
        return limits.get(process, Worker.stop_timeout)

    def node(self, unit: str) -> str:
        """Return Celery's node name of a worker unit."""
        return f"{self.worker_name(unit)}.{release_of(unit)}@{socket.gethostname()}"

    def queues(self, unit: str) -> list[str]:
        """Return the queues of a worker unit, as recorded when its release was built."""
        release, name = release_of(unit), self.worker_name(unit)
        found = {worker.name: worker.queues for worker in self.settings.of(release).workers}
        if not (self.settings.configurations / release / RELEASE_FILE).exists():
            # A release of an earlier version that runs under today's settings: they may have workers that it has not.
            found |= self.facts(release).get("workers", {})
        return found.get(name, [])

    def socket(self, release: str) -> Path:
        """Return the socket of a release's web process."""
        return self.path(release) / "run/web.sock"

    # -- all processes at once

    def boot(self) -> None:
        """Start the processes of the current release, without waiting for them."""
        current = self.current_release()
        self.manager.prepare(current)
        self.manager.start(self.units(current), wait=False)
        if self.settings.of(current).beat:
            self.manager.start_beat(current, wait=False)
        self.cron.start(current, wait=False)

    def halt(self) -> None:
        """Stop every process of the application; each has its own time limit."""
        self.manager.stop_beat()
        alive = list(self.manager.alive())
        # Pages stay until the slowest worker has finished.
        self.manager.stop([unit for unit in alive if not self.is_web(unit)])
        self.manager.stop([unit for unit in alive if self.is_web(unit)])
