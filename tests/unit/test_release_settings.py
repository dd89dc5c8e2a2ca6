"""A deployment is refused, before it changes the host, if the host does not have the settings of the release."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT, Run, run_playbook

HERE = ["environment-hash", "processes-hash"]


def prepare(folder: Path, answer: str | None, *options: str) -> Run:
    """Run the preparation of a deployment on a host whose program prints an answer; None: it has no program."""
    program = folder / "shopctl"
    if answer is not None:
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n{'exit 1' if 'error' in answer else ''}")
        program.chmod(0o755)
    (folder / "app").mkdir()
    (folder / "app/manage.py").write_text("")
    task = {"name": "Prepare", "ansible.builtin.import_role": {"name": "release", "tasks_from": "prepare"}}
    marker = {"name": "Change the host", "ansible.builtin.debug": {"msg": "{{ __release_id }}"}}
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [task, marker]}]))
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"vars": local, "hosts": {"first": {}}}}))
    given = {
        "__release_program": str(program),
        "release_source": str(folder / "app"),
        "release_cache": str(folder / "cache"),
        "release_configuration": "0123456789",
        "release_configuration_here": HERE,
    }
    options = ("-e", json.dumps(given), *options)
    config = str(ROOT / "ansible.cfg")
    return run_playbook(folder / "play.yml", folder / "hosts.yml", *options, one_process=True, ANSIBLE_CONFIG=config)


def status(environment: str, processes: str) -> str:
    return json.dumps({"current": "", "configuration": {"environment": environment, "processes": processes}})


def test_the_settings_of_the_host_are_those_of_the_release(tmp_path: Path) -> None:
    assert prepare(tmp_path, status(*HERE)).status == 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status("older", HERE[1]), "has changed"),
        (status(HERE[0], "older"), "has changed"),
        (status("", ""), "has changed"),
        (None, "not installed"),
        (json.dumps({"error": "hostctl.json is damaged", "status": 1}), "hostctl.json is damaged"),
    ],
    ids=["environment", "processes", "unprovisioned", "earlier-version", "broken"],
)
def test_other_settings_are_refused(tmp_path: Path, answer: str | None, says: str) -> None:
    found = prepare(tmp_path, answer)
    assert found.status != 0
    [failed] = [result for result in found.results() if result.get("failed")]
    assert says in failed["msg"]
    assert "site.yml" in failed["msg"]


def test_check_mode_shows_what_a_run_would_do(tmp_path: Path) -> None:
    """site.yml --check on a host that has nothing yet."""
    assert prepare(tmp_path, None, "--check").status == 0
