"""Projects of users on one host: their sources, and runs of Seedbed for them.

A project is a folder of tests/projects, laid over `plain`. Its settings are those that `make init` writes for it; a
test adds what no inspection can know.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from deployments import ROOT, Deployments, Run
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host
from websocket import WebSocket

PROJECTS = ROOT / "tests/projects"
# The name of the environment that `make init` is asked for.
ENVIRONMENT = "production"
# Roles to which a project makes no difference; the host has run them before.
SAME_FOR_ALL = "base,access,redis"
# What tools/init.py consists of.
INIT = ("tools", "plugins", "hostctl")

# Removes the project: processes, releases, databases, data, messages and the history.
REMOVE = """
set -eu
name={name}
systemctl stop "$name-*.timer" "$name-*.service"
systemctl reset-failed "$name-*"
find "/srv/$name" -mindepth 1 -maxdepth 1 ! -name shared -exec rm -rf {{}} +
find "/srv/$name/shared" -mindepth 2 -delete
rm -rf "/etc/$name/releases" /var/backups/"$name"/*
cd /
databases="SELECT datname FROM pg_database WHERE datname = '$name' OR starts_with(datname, '$name' || '_')"
runuser -u postgres -- psql --no-psqlrc -tA -c "$databases" |
    xargs --no-run-if-empty --max-args=1 runuser -u postgres -- dropdb --force
. "/etc/$name/next/app.env"
for url in "$CELERY_BROKER_URL" "$CACHE_URL"; do
    command="redis-cli --no-auth-warning -e -u $url"
    # The application may not flush the broker, but delete each key.
    $command --scan | xargs --no-run-if-empty --delimiter='\\n' $command unlink
    [ "$($command dbsize)" = 0 ]
done
"""


@dataclass
class Project:
    """One project on the host. `settings` go with every run, as a user's group_vars/ENV/app.yml does.

    `listing` is what `make init` printed.
    """

    host: Host
    app: Installation
    deployments: Deployments
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    listing: str = ""

    def source(self, *layers: str, prepare: Callable[[Path], None] | None = None) -> Path:
        """Make a folder from `plain` and these folders of tests/projects, one over another, in a git repository.

        `prepare` changes the folder before it is committed.
        """
        folder = self.folder / "-".join(("source", *layers)) / "project"
        shutil.rmtree(folder, ignore_errors=True)
        for layer in ("plain", *layers):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECTS / layer, folder, dirs_exist_ok=True, ignore=ignored)
        if prepare:
            prepare(folder)
        commands = (
            "git init --quiet",
            "git add --all",
            "git -c user.name=a -c user.email=a@b commit --quiet -m project",
        )
        for command in commands:
            subprocess.run(shlex.split(command), cwd=folder, check=True)
        return folder

    def init(self, source: Path) -> dict[str, Any]:
        """Return the settings that `make init` writes for a source, in a copy of Seedbed without any environment.

        The answers are the name and the domain that the scenario's inventory has.
        """
        clone = self.folder / "seedbed"
        shutil.rmtree(clone, ignore_errors=True)
        for name in INIT:
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        address = self.app.address
        answers = {
            "INIT_PROJECT": str(source),
            "INIT_ENV": ENVIRONMENT,
            "INIT_DOMAIN": address,
            "INIT_SERVER": f"root@{address}",
            "INIT_NAME": self.app.name,
            "INIT_REF": "",
        }
        done = subprocess.run(
            [sys.executable, str(clone / "tools/init.py")],
            env=os.environ | answers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        self.listing = done.stdout
        return yaml.safe_load((clone / f"group_vars/{ENVIRONMENT}/app.yml").read_text())

    def site(self, source: Path, *, whole: bool = False, **settings: Any) -> Run:
        """Run `make init` and site.yml for a source, to their end; unless `whole`, without the roles SAME_FOR_ALL.

        `settings` are added, as a user edits the file; app_environment is completed. Without any, no finding of
        `make init` may need the user; else site.yml stops with what they leave open. All settings stay for the runs
        that follow.
        """
        found = self.init(source)
        assert settings or "Needs you" not in self.listing, self.listing
        if environment := found.get("app_environment"):
            settings["app_environment"] = environment | settings.get("app_environment", {})
        self.settings = found | settings
        options = [] if whole else [f"--skip-tags={SAME_FOR_ALL}"]
        return self.deployments.playbook("site.yml", *options, **self.settings).wait()

    def deploy(self, source: Path) -> Run:
        """Run deploy.yml for a source to its end."""
        self.settings["app_source"] = str(source)
        return self.deployments.playbook("playbooks/deploy.yml", **self.settings).wait()

    def visitor(self) -> Visitor:
        """A new visitor from outside, who trusts the site's present certificate only."""
        return Visitor(self.app.url, self.certificate())

    def websocket(self) -> WebSocket:
        """A WebSocket that such a visitor opens."""
        return WebSocket(self.app.url, self.certificate())

    def certificate(self) -> str:
        return self.host.file(f"{self.app.certificate_folder}/fullchain.pem").content_string

    def writes_notes(self, text: str, seconds: float = 60) -> None:
        """Assert that a task that a visitor sends is run: its note appears on the first page of `plain`."""
        visitor = self.visitor()
        assert visitor.get(f"/add?text={text}").status == 200
        wait_for(lambda: text in visitor.get("/").json["notes"], seconds, f"the note {text} is written")
