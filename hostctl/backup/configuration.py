"""What is backed up on this host, and where to; roles/backup writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..settings import ReleaseError, Settings, read_environment

# The encrypted repository of pgBackRest.
REPOSITORY = Path("/var/lib/pgbackrest")
# The name of the target in rclone's configuration, which is in environment variables.
REMOTE = "offsite"
# Where a backup is restored from.
LOCAL, OFFSITE = "this host", "the target"


@dataclass(frozen=True)
class Configuration:
    """The backup of this host. Sizes are in MiB, times in seconds."""

    name: str
    # PostgreSQL's version and data; "" where the application's database is not on this host.
    version: str = ""
    data: str = ""
    database: str = ""
    owner: str = ""
    # The role of the application, and the ones it logs in as.
    roles: list[str] = field(default_factory=list)
    # Folders of uploads.
    folders: list[str] = field(default_factory=list)
    # Where to, for people ("" is nowhere), and the folder there.
    target: str = ""
    folder: str = ""
    # SHA-256 of secrets that a restored database needs, by name.
    fingerprints: dict[str, str] = field(default_factory=dict)
    # The recovery kit on the control machine, until a person has put it elsewhere.
    kit: str = ""
    repository: Path = REPOSITORY
    config: Path = Path("/etc")
    state: Path = Path("/var/lib")

    @classmethod
    def load(cls, settings: Settings) -> Configuration:
        """Read the configuration. Raises ReleaseError where this host has no backups."""
        path = settings.etc / "backup.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise ReleaseError(
                f"This host has no backups: {path} is missing. Backups are where PostgreSQL and the uploads are; "
                "app_backup in group_vars/ENV/app.yml turns them on, and site.yml sets them up."
            ) from None
        known = {setting.name for setting in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def remote(self) -> str:
        """The folder at the target, as rclone names it."""
        return f"{REMOTE}:{self.folder}"

    @property
    def state_folder(self) -> Path:
        return self.state / f"{self.name}-backup"

    @property
    def program(self) -> str:
        return f"{self.name}ctl"

    @property
    def service(self) -> str:
        return f"postgresql@{self.version}-main.service"

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs of the server's version."""
        return Path(f"/usr/lib/postgresql/{self.version}/bin")

    def environment(self) -> dict[str, str]:
        """Return the credentials of the target, and restic's password, as environment variables."""
        try:
            return read_environment(self.config / self.name / "backup.env")
        except FileNotFoundError:
            return {}

    def require_database(self) -> None:
        """Raise ReleaseError unless the application's database is on this host."""
        if not self.version:
            raise ReleaseError("The application's database is not on this host: type this on the host that has it.")

    def require_target(self) -> None:
        if not self.target:
            raise ReleaseError(
                "Backups have no target: set app_backup_target in group_vars/ENV/app.yml and run "
                "playbooks/provision.yml."
            )
