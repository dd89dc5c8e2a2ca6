"""Several hosts as one installation; `host` is the one that serves the site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deployments import Deployments
from testinfra.host import Host


@dataclass
class Cluster(Deployments):
    """Deployments to all hosts at once, and what can be observed of each host."""

    hosts: dict[str, Host]
    limit = "all"

    def at(self, name: str) -> Deployments:
        """Return one of the hosts, alone."""
        return Deployments(self.hosts[name], self.app, self.folder)

    @property
    def workers(self) -> list[Host]:
        return [self.hosts["front"], self.hosts["work"]]

    @property
    def database(self) -> Host:
        return self.hosts["data"]

    def everywhere(self) -> dict[str, Any]:
        """Return status and processes of every host that runs the application."""
        return {name: (self.at(name).status(), self.at(name).processes()) for name in ("front", "work")}
