"""An installation as the tests see it: its settings as Ansible resolves them, and ways to ask its host."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.host import Host

# Resolved by Ansible, so that the tests never guess what a variable comes to.
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
    """One host's installation as group_vars describe it; `began` is the host's time when this run first looked."""

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
        """Every queue, and the worker that serves it."""
        return {queue: worker["name"] for worker in self.workers for queue in worker["queues"]}

    def secret(self, name: str) -> str:
        """A generated secret, from the folder beside the inventory."""
        return (Path(self.secrets) / name).read_text().strip()

    def units(self, release: str) -> list[str]:
        """The units of one release."""
        workers = [f"{self.name}-worker-{worker['name']}@{release}.service" for worker in self.workers]
        return [f"{self.name}-web@{release}.service", *workers]


# One look takes more than a second, and every module has host objects of its own.
INSPECTED: dict[str, Installation] = {}


def inspect(host: Host) -> Installation:
    """Ask Ansible and the host itself, once a run."""
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
    """What the database answers to its administrator; columns are parted by `|`."""
    psql = f"cd / && runuser -u postgres -- psql --no-psqlrc -tA -v ON_ERROR_STOP=1 -d {app.name} -c"
    return host.check_output(f"{psql} {shlex.quote(sql)}")


def run_python(host: Host, script: str, *, environment: list[str] | None = None, python: str = "python3") -> str:
    """What a script prints on the host, as root, with the variables of these files of /etc/APP."""
    files = "".join(f". {file}; " for file in environment or [])
    return host.check_output(f"set -a; {files}set +a; {python} - <<'SCRIPT'\n{script}\nSCRIPT")
