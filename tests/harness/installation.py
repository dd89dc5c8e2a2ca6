"""An installation: its settings as Ansible resolves them, and functions that query its host."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.host import Host

# Resolved by Ansible.
SETTINGS = {
    "name": "app_name",
    "url": "app_url",
    "address": "ansible_host",
    "groups": "group_names",
    "workers": "app_workers",
    "admin": "app_admin_user",
    "flower_user": "flower_user",
    "secrets": "app_secrets",
    "certificate_folder": "certificate_directory",
}


@dataclass(frozen=True)
class Installation:
    """One host's installation; `began` is the host's time at this run's first look."""

    name: str
    url: str
    address: str
    groups: list[str]
    workers: list[dict[str, Any]]
    admin: str
    flower_user: str
    secrets: str
    certificate_folder: str
    certificate: str
    hostname: str
    began: str

    @property
    def queues(self) -> dict[str, str]:
        """Every queue, and the name of its worker."""
        return {queue: worker["name"] for worker in self.workers for queue in worker.get("queues", [])}

    def secret(self, name: str) -> str:
        """Return a generated secret, from the folder beside the inventory."""
        return (Path(self.secrets) / name).read_text().strip()

    def units(self, release: str) -> list[str]:
        """Return the units of one release."""
        workers = [f"{self.name}-worker-{worker['name']}@{release}.service" for worker in self.workers]
        return [f"{self.name}-web@{release}.service", *workers]


# An inspection takes more than a second, and every module has its own host objects.
INSPECTED: dict[str, Installation] = {}


def inspect(host: Host) -> Installation:
    """Query Ansible and the host, once a run."""
    place = host.backend.get_pytest_id()
    if place not in INSPECTED:
        wanted = ", ".join(f"'{key}': {expression}" for key, expression in SETTINGS.items())
        found = host.ansible("debug", f'msg="{{{{ {{{wanted}}} }}}}"', check=False)["msg"]
        INSPECTED[place] = Installation(
            **found,
            certificate=host.file(f"{found['certificate_folder']}/fullchain.pem").content_string,
            hostname=host.check_output("hostname"),
            began=host.check_output("date --iso-8601=seconds"),
        )
    return INSPECTED[place]


def query(host: Host, app: Installation, sql: str) -> str:
    """Return the database's answer to its superuser; columns are separated by `|`."""
    psql = f"cd / && runuser -u postgres -- psql --no-psqlrc -tA -v ON_ERROR_STOP=1 -d {app.name} -c"
    return host.check_output(f"{psql} {shlex.quote(sql)}")


def run_python(host: Host, script: str, *, environment: list[str] | None = None, python: str = "python3") -> str:
    """Run a Python script on the host as root, with the variables of these environment files; return its output."""
    files = "".join(f". {file}; " for file in environment or [])
    return host.check_output(f"set -a; {files}set +a; {python} - <<'SCRIPT'\n{script}\nSCRIPT")
