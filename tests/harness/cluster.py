"""Three hosts as one installation; `host` is the one with the front door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollouts import Rollouts
from testinfra.host import Host


@dataclass
class Cluster(Rollouts):
    """Rollouts on all hosts at once, and what each of them shows."""

    hosts: dict[str, Host]
    limit = "all"

    def at(self, name: str) -> Rollouts:
        """What is to be seen on one of the hosts."""
        return Rollouts(self.hosts[name], self.app, self.folder)

    @property
    def workers(self) -> list[Host]:
        return [self.hosts["front"], self.hosts["work"]]

    @property
    def database(self) -> Host:
        return self.hosts["data"]

    def everywhere(self) -> dict[str, Any]:
        """Release, processes and rollout of every host that runs the application."""
        return {name: (self.at(name).status(), self.at(name).processes()) for name in ("front", "work")}
