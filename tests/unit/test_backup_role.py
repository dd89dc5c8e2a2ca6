"""What a run says when a server's repository, or the target, cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT, run_playbook


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("""echo '{"error": "The target is of another.", "status": 1}'; exit 1""", "The target is of another."),
        ("""echo '{"status": 1}'; exit 1""", '{"status": 1}'),
        ("echo Traceback >&2; exit 1", "Traceback"),
        ("""echo '{"changed": true}'""", ""),
    ],
)
def test_the_last_message_is_that_of_the_program(tmp_path: Path, command: str, says: str) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/main.yml").read_text())
    (first,) = [index for index, task in enumerate(tasks) if task.get("register") == "__backup_prepared"]
    variables = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "backup_enabled": True,
        "__backup_program": str(program),
    }  # fmt: skip
    play = {"hosts": "one", "gather_facts": False, "vars": variables, "tasks": tasks[first : first + 2]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "hosts.yml").write_text('{"all": {"hosts": {"one": {}}}}')
    found = run_playbook(
        tmp_path / "play.yml", tmp_path / "hosts.yml", one_process=True, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")
    )
    assert (found.status != 0) == bool(says), found.output
    assert found.messages() == ({"one": says} if says else {})
