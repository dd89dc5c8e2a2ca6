"""What the doctor must know of this host; roles/monitoring writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..settings import ReleaseError, Settings, read_environment


@dataclass(frozen=True)
class Configuration:
    """/etc/APP/monitoring.json. Without it, the doctor knows the application's processes alone."""

    name: str
    # The host's name in the inventory, and all groups that it is in.
    host: str = ""
    groups: list[str] = field(default_factory=list)
    # The inventory's file or folder in the clone that ran site.yml, for remedies; "" if elsewhere, or for several.
    inventory: str = ""
    # The site as visitors reach it; "" on hosts without nginx.
    url: str = ""
    # The certificate that nginx serves.
    certificate: str = ""
    # PostgreSQL's version; "" where the application's database is not on this host.
    postgresql: str = ""
    # Port of each Redis on this host, by name: broker, cache.
    redis: dict[str, int] = field(default_factory=dict)
    # Flower's address and port, as seen from this host; "" without Flower.
    flower: str = ""
    # What the firewall accepts: port, and who may connect (world or installation).
    ports: dict[str, str] = field(default_factory=dict)
    # Email addresses that get alerts, and their sender.
    emails: list[str] = field(default_factory=list)
    sender: str = ""
    # How long a new release is watched after its deployment, in minutes.
    watch_minutes: int = 10
    etc: Path = Path("/etc")
    state: Path = Path("/var/lib")
    web: Path = Path("/var/www")
    run: Path = Path("/run")

    @classmethod
    def load(cls, settings: Settings) -> Configuration:
        """Read the configuration. Raises ReleaseError where site.yml has not written one."""
        path = settings.etc / "monitoring.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise ReleaseError(f"{path} is missing: run site.yml, which writes it.") from None
        known = {setting.name for setting in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def state_folder(self) -> Path:
        return self.state / f"{self.name}-watch"

    @property
    def memory_files(self) -> list[Path]:
        """Where the watch keeps its memory; the second, when the disk takes nothing. The newest counts."""
        return [self.state_folder / "memory.json", self.run / f"{self.name}-watch.json"]

    @property
    def page(self) -> Path:
        """The status page."""
        return self.web / self.name / "status/index.html"

    def secrets(self) -> dict[str, str]:
        """Return what may hold a password: MAIL_URL, WEBHOOK_URL, NTFY_URL, HEARTBEAT_URL, BROKER_URL, CACHE_URL.

        The last two are for the user of Redis that may look and not publish. What is not set, is "".
        """
        names = ("MAIL_URL", "WEBHOOK_URL", "NTFY_URL", "HEARTBEAT_URL", "BROKER_URL", "CACHE_URL")
        try:
            found = read_environment(self.etc / self.name / "monitoring.env")
        except FileNotFoundError:
            found = {}
        return {name: found.get(name, "") for name in names}
