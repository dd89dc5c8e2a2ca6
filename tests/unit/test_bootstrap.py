"""Hosts of one installation that have the same hostname are refused before anything changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def messages(folder: Path, names: dict[str, str], distinct: list[str]) -> dict[str, str]:
    """Run the role's checks on this machine as several hosts, each with a hostname; what those that failed say."""
    hosts: dict[str, Any] = {}
    for host, name in names.items():
        ssh = folder / f"ssh-{host}"
        # In place of ssh: runs the command here, under that name.
        uname = f'uname() {{ [ "$1" = -n ] && echo {name} || command uname "$@"; }}'
        ssh.write_text(f'#!/bin/sh\n{uname}\nfor command; do :; done\neval "$command"\n')
        ssh.chmod(0o755)
        hosts[host] = {"ansible_ssh_executable": str(ssh), "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    role = {"role": "bootstrap", "bootstrap_distinct_hosts": distinct}
    play = {"hosts": "all", "gather_facts": False, "roles": [role]}
    (folder / "play.yml").write_text(json.dumps([play]))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.yml", folder / "play.yml"]
    environment = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    # Whatever the outcome, nothing is installed.
    done = subprocess.run([*command, "--check"], env=os.environ | environment, capture_output=True, text=True)
    results = [result for task in json.loads(done.stdout)["plays"][0]["tasks"] for result in task["hosts"].items()]
    found = {host: result["msg"] for host, result in results if result.get("failed")}
    assert bool(done.returncode) == bool(found)
    return found


NAMES = {"front": "debian", "work1": "debian", "work2": "debian-2"}


def test_hosts_of_the_same_name_stop_every_host(tmp_path: Path) -> None:
    found = messages(tmp_path, NAMES, list(NAMES))
    assert set(found) == set(NAMES)
    for message in found.values():
        assert message.startswith("Nothing was changed: front (hostname debian) and work1 (hostname debian) must not")
        assert "hostnamectl set-hostname NAME" in message
        assert "work2" not in message


@pytest.mark.parametrize("distinct", [["front", "work2"], []])
def test_others_may_have_the_same_name(tmp_path: Path, distinct: list[str]) -> None:
    assert messages(tmp_path, NAMES, distinct) == {}
