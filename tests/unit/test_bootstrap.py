"""On which hosts the role bootstrap fails before any change, and which services apt must not start."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from project import ansible_playbook

ROOT = Path(__file__).parents[2]
# The interpreter of modules. It answers for the module setup, which takes a second: no test needs its facts.
PYTHON = f"""#!/bin/sh
module=$(cat)
case $module in
*ansible.modules.setup*) echo '{{"ansible_facts": {{}}}}' ;;
*) printf '%s\\n' "$module" | exec {shlex.quote(sys.executable)} "$@" ;;
esac
"""


def run_role(folder: Path, hosts: dict[str, str], *options: str, **variables: Any) -> dict[str, dict[str, Any]]:
    """Run the role on this machine as several hosts, each with lines of shell before its commands.

    Returns the results by host and task. Each host has a variable `folder` of its own.
    """
    inventory: dict[str, Any] = {}
    for host, before in hosts.items():
        own = folder / host
        own.mkdir(exist_ok=True)
        # Replaces ssh.
        ssh = own / "ssh"
        ssh.write_text(f'#!/bin/sh\nfor command; do :; done\n{before}\neval "$command"\n')
        ssh.chmod(0o755)
        python = own / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        inventory[host] = {
            "ansible_ssh_executable": str(ssh),
            "ansible_python_interpreter": str(python),
            "folder": str(own),
        }
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": inventory}}))
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["bootstrap"]}]))
    environment = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    given = ("--extra-vars", json.dumps(variables))
    arguments = ("-i", folder / "hosts.yml", folder / "play.yml", *options, *given)
    done = ansible_playbook(*arguments, environment=os.environ | environment, one_process=True)
    found: dict[str, dict[str, Any]] = {host: {} for host in hosts}
    for task in json.loads(done.stdout)["plays"][0]["tasks"]:
        for host, result in task["hosts"].items():
            found[host][task["task"]["name"].removeprefix("bootstrap : ")] = result
    failed = [result for results in found.values() for result in results.values() if result.get("failed")]
    assert bool(done.returncode) == bool(failed), done.stdout
    return found


def refusals(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the messages of the hosts that failed."""
    return {
        host: result["msg"] for host, results in found.items() for result in results.values() if result.get("failed")
    }


def messages(folder: Path, names: dict[str, str], distinct: list[str]) -> dict[str, str]:
    """Return the messages of hosts with these hostnames."""
    uname = 'uname() {{ [ "$1" = -n ] && echo {} || command uname "$@"; }}'
    hosts = {host: uname.format(name) for host, name in names.items()}
    # In check mode, so that nothing is installed.
    return refusals(run_role(folder, hosts, "--check", bootstrap_distinct_hosts=distinct))


NAMES = {"front": "debian", "work1": "debian", "work2": "debian-2"}


def test_hosts_with_the_same_hostname_stop_every_host(tmp_path: Path) -> None:
    found = messages(tmp_path, NAMES, list(NAMES))
    assert set(found) == set(NAMES)
    for message in found.values():
        assert message.startswith("Nothing was changed: front (hostname debian) and work1 (hostname debian) must not")
        assert "hostnamectl set-hostname NAME" in message
        assert "work2" not in message


@pytest.mark.parametrize("distinct", [["front", "work2"], []])
def test_other_hosts_may_have_the_same_hostname(tmp_path: Path, distinct: list[str]) -> None:
    assert messages(tmp_path, NAMES, distinct) == {}


def test_an_unsupported_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('VERSION_CODENAME=jammy\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
    before = f'command=$(printf %s "$command" | sed "s|/etc/os-release|{tmp_path}/os-release|")'
    found = run_role(tmp_path, {"front": before}, "--check", bootstrap_systems={"trixie": "Debian 13"})
    expected = "Nothing was changed: front runs Ubuntu 22.04.5 LTS; supported are Debian 13."
    assert refusals(found)["front"].startswith(expected)


def test_a_host_that_left_the_groups_but_runs_its_services_is_refused(tmp_path: Path) -> None:
    """Its beat would run beside the new one."""
    place = tmp_path / "wants"
    place.mkdir()
    (place / "shop.service").touch()
    before = f'command=$(printf %s "$command" | sed "s|/etc/systemd/system/multi-user.target.wants|{place}|")'
    hosts = {"data": before, "front": before, "new": ""}
    given = {"bootstrap_application": "shop", "bootstrap_application_hosts": ["front", "new"]}
    found = refusals(run_role(tmp_path, hosts, "--check", **given))
    assert set(found) == {"data"}
    assert "systemctl disable --now shop" in found["data"]


# Replace apt and dpkg. The installation asks the policy, as a package does before it starts its service.
TOOLS = {
    "apt-get": """#!/bin/sh
case "$*" in *" install "*) for name in nginx nginx@main sudo; do
    if [ -e FOLDER/policy ]; then FOLDER/policy $name start; echo $name $?; fi >>FOLDER/answers
done; touch FOLDER/installed ;; esac
""",
    "dpkg-query": """#!/bin/sh
echo installed sudo; [ ! -e FOLDER/installed ] || echo installed nginx
""",
}
OURS = "#!/bin/sh\n[ -e FOLDER/lock ] || exit 0\nexit 101\n"
ANOTHERS = "#!/bin/sh\nexit 104\n"
WAIT = "nginx 101\nnginx@main 101\nsudo 0\n"


def test_apt_does_not_start_services_of_other_roles(tmp_path: Path) -> None:
    # By host: the present policy, whether apt has run, what the policy answers, and the policy afterwards.
    cases = {
        "bare": ("", False, WAIT, ""),
        "killed": (OURS, False, WAIT, ""),
        "killed-late": (OURS, True, "", ""),
        "anothers": (ANOTHERS, False, "nginx 104\nnginx@main 104\nsudo 104\n", ANOTHERS),
    }
    for name, (policy, installed, _, _) in cases.items():
        files = TOOLS | ({"policy": policy} if policy else {}) | ({"installed": ""} if installed else {})
        own = tmp_path / name
        own.mkdir()
        for file, text in (files | {"answers": ""}).items():
            (own / file).write_text(text.replace("FOLDER", str(own)))
            (own / file).chmod(0o755)
    hosts = {name: f"PATH={tmp_path / name}:$PATH" for name in cases}
    variables: dict[str, Any] = {"bootstrap_packages": ["sudo", "nginx"], "bootstrap_start_later": ["nginx", "sudo"]}
    variables |= {"__bootstrap_policy": "{{ folder }}/policy", "__bootstrap_lock": "{{ folder }}/lock"}
    task = "Install the packages"
    first = run_role(tmp_path, hosts, **variables)
    assert {name: results[task]["changed"] for name, results in first.items()} == dict.fromkeys(cases, True)
    for name, (_, _, answers, left) in cases.items():
        policy = tmp_path / name / "policy"
        assert (tmp_path / name / "answers").read_text() == answers, name
        assert (policy.read_text() if policy.exists() else "") == left, name
    again = run_role(tmp_path, hosts, **variables)
    assert {name: results[task]["changed"] for name, results in again.items()} == dict.fromkeys(cases, False)


@pytest.mark.parametrize("file", ["hostctl.json", "release.json"])
def test_a_host_of_another_application_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / file).touch()
    # The role finds the file in this folder in place of /etc.
    before = f'command=$(printf %s "$command" | sed "s|/etc/[*]|{tmp_path}/*|g")'
    before += f'; ls() {{ command ls "$@" | sed "s|{tmp_path}|/etc|"; }}'
    found = refusals(run_role(tmp_path, {"front": before}, "--check", bootstrap_application="shop"))
    assert found["front"].startswith("Nothing was changed: front runs notes, and one host runs one application.")
