"""Copies of this project, and runs of ansible-playbook without a host: a program that records its call replaces ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
GROUPS = ("web", "worker", "scheduler", "database", "broker")


@dataclass(frozen=True)
class Run:
    """The result of a run of ansible-playbook."""

    status: int
    output: str
    reached: bool
    inventory: Path

    def results(self) -> list[dict[str, Any]]:
        """Return the results of every task, each with the name of its host and its task."""
        assert self.output.startswith("{"), self.output
        tasks = [task for play in json.loads(self.output)["plays"] for task in play["tasks"]]
        return [
            result | {"host": host, "task": task["task"]["name"]}
            for task in tasks
            for host, result in task["hosts"].items()
        ]

    def messages(self) -> dict[str, str]:
        """Return the message of every host that failed."""
        return {result["host"]: result["msg"] for result in self.results() if result.get("failed")}


def copy_project(folder: Path) -> Path:
    """Copy what ansible-playbook reads. The application's source is a link."""
    folder.mkdir()
    for name in ("group_vars", "hostctl", "inventory", "playbooks", "plugins", "roles"):
        ignored = shutil.ignore_patterns("__pycache__", ".secrets", "demo.yml")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("ansible.cfg", "site.yml"):
        shutil.copy(ROOT / name, folder)
    (folder / "app_src").symlink_to(ROOT / "app_src")
    return folder


def stub_ssh(folder: Path) -> tuple[Path, Path]:
    """Write the program that replaces ssh. Returns it, and the file that exists after its first call."""
    ssh, reached = folder / "ssh", folder / "reached"
    ssh.write_text(f"#!/bin/sh\ntouch '{reached}'\nexit 255\n")
    ssh.chmod(0o755)
    return ssh, reached


def environment_inventory(environment: str, ssh: Path, **variables: Any) -> str:
    """Return an inventory as inventory/production.example.yml is: one host in every group, in JSON."""
    host = {"ansible_host": "192.0.2.1", "ansible_ssh_executable": str(ssh), "app_memory_mb": 1024} | variables
    children = {group: {"hosts": {"server1": {}}} for group in GROUPS}
    return json.dumps({environment: {"hosts": {"server1": host}, "children": children}})


def run_playbook(
    playbook: Path, inventory: Path, *options: str, cwd: Path | None = None, prefix: tuple[str, ...] = (), **given: str
) -> Run:
    """Run a playbook with Ansible's own environment variables from `given`. The stub of ssh is beside the inventory."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment = inherited | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_SSH_RETRIES": "0"} | given
    command = [*prefix, TOOLS / "ansible-playbook", "-i", inventory, playbook, *options]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout or done.stderr, (inventory.parent / "reached").exists(), inventory)
