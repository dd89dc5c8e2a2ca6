"""Copies of this project, and runs of ansible-playbook without a host: a program that records its call replaces ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
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
    playbook: Path,
    inventory: Path,
    *options: str,
    cwd: Path | None = None,
    prefix: tuple[str, ...] = (),
    one_process: bool = False,
    **given: str,
) -> Run:
    """Run a playbook with Ansible's own environment variables from `given`. The stub of ssh is beside the inventory.

    With `one_process`, the tasks run in the process of the play: much cheaper for many hosts or tasks.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment = inherited | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_SSH_RETRIES": "0"} | given
    arguments = ["-i", inventory, playbook, *options]
    if prefix:
        command = [*prefix, TOOLS / "ansible-playbook", *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    else:
        done = ansible_playbook(*arguments, environment=environment, cwd=cwd, one_process=one_process)
    return Run(done.returncode, done.stdout or done.stderr, (inventory.parent / "reached").exists(), inventory)


def ansible_playbook(
    *arguments: str | Path, environment: dict[str, str], cwd: Path | None = None, one_process: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook, by a server that is kept for the next run with the same environment.

    Without ANSIBLE_CONFIG in it, the configuration is that of the folder.
    """
    # pytest names the test in a variable.
    same = frozenset((name, value) for name, value in environment.items() if name != "PYTEST_CURRENT_TEST")
    folder = cwd or Path.cwd()
    kept = server(same, ROOT if "ANSIBLE_CONFIG" in environment else folder)
    return kept.run(arguments, folder, one_process)


class Server:
    """A process that has imported Ansible in an environment; see playbook_server.py."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.lock = threading.Lock()
        program = [sys.executable, Path(__file__).with_name("playbook_server.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(program, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, arguments: tuple[str | Path, ...], cwd: Path, one_process: bool) -> subprocess.CompletedProcess[str]:
        output, errors = (Path(self.folder.name) / name for name in ("output", "errors"))
        request = {"arguments": [str(argument) for argument in arguments], "one_process": one_process, "cwd": str(cwd)}
        request |= {"output": str(output), "errors": str(errors)}
        with self.lock:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            status = self.process.stdout.readline()
            assert status, "playbook_server.py has ended; its error is above"
            return subprocess.CompletedProcess(arguments, int(status), output.read_text(), errors.read_text())

    def __del__(self) -> None:
        self.process.communicate()


@lru_cache(maxsize=2)
def server(environment: frozenset[tuple[str, str]], cwd: Path) -> Server:
    return Server(dict(environment), cwd)
