"""Projects of users on one host: their sources, and runs of Seedbed for them.

A project is a folder of tests/projects, laid over `plain`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments import ROOT, Deployments, Run
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host

PROJECTS = ROOT / "tests/projects"
# The settings of `plain`, and of what is laid over it. (app_source is the folder that `source` returns.)
PLAIN = {
    "app_settings_module": "config.settings",
    "app_wsgi_app": "config.wsgi:application",
    "app_celery_app": "config",
    "app_health_path": "/up",
    "app_health_names_release": False,
    "app_admin_user": "",
    "app_workers": [{"name": "main", "queues": ["celery"], "pool": "prefork", "concurrency": 1, "stop_timeout": 60}],
}

# Removes the project: processes, releases, data, messages and the history.
REMOVE = """
set -eu
name={name}
systemctl stop "$name-*.service"
systemctl reset-failed "$name-*"
find "/srv/$name" -mindepth 1 -maxdepth 1 ! -name shared -exec rm -rf {{}} +
find "/srv/$name/shared" -mindepth 2 -delete
rm -rf "/etc/$name/releases" /var/backups/"$name"/*
cd /
runuser -u postgres -- dropdb --if-exists --force "$name"
. "/etc/$name/next/app.env"
for url in "$CELERY_BROKER_URL" "$CACHE_URL"; do
    redis-cli --no-auth-warning -u "$url" flushdb
done
"""


@dataclass
class Project:
    """One project on the host. `settings` go with every run, as a user's group_vars/ENV/app.yml does."""

    host: Host
    app: Installation
    deployments: Deployments
    folder: Path
    settings: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))

    def source(self, *layers: str) -> Path:
        """Make a folder from `plain` and these folders of tests/projects, one over another, in a git repository."""
        folder = self.folder / "-".join(("source", *layers)) / "project"
        shutil.rmtree(folder, ignore_errors=True)
        for layer in ("plain", *layers):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECTS / layer, folder, dirs_exist_ok=True, ignore=ignored)
        commands = (
            "git init --quiet",
            "git add --all",
            "git -c user.name=a -c user.email=a@b commit --quiet -m project",
        )
        for command in commands:
            subprocess.run(shlex.split(command), cwd=folder, check=True)
        return folder

    def site(self, source: Path, **settings: Any) -> Run:
        """Run site.yml for a source to its end. `settings` stay for the runs that follow."""
        self.settings |= settings | {"app_source": str(source)}
        return self.deployments.playbook("site.yml", **self.settings).wait()

    def deploy(self, source: Path) -> Run:
        """Run deploy.yml for a source to its end."""
        self.settings["app_source"] = str(source)
        return self.deployments.playbook("playbooks/deploy.yml", **self.settings).wait()

    def rollback(self) -> Run:
        return self.deployments.playbook("playbooks/rollback.yml", **self.settings).wait()

    def visitor(self) -> Visitor:
        """A new visitor from outside, who trusts the site's present certificate only."""
        certificate = self.host.file(f"{self.app.certificate_folder}/fullchain.pem").content_string
        return Visitor(self.app.url, certificate)

    def writes_notes(self, text: str, seconds: float = 30) -> None:
        """Assert that a task that a visitor sends is run: its note appears on the first page of `plain`."""
        visitor = self.visitor()
        assert visitor.get(f"/add?text={text}").status == 200
        wait_for(lambda: text in visitor.get("/").json["notes"], seconds, f"the note {text} is written")
