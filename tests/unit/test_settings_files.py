"""Files of variables: read as Ansible reads them; an error names the file and the line, and quotes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import ROOT, Run, run_playbook

SETTINGS = "group_vars/staging/app.yml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with an environment and a link to its settings beside the inventory, as Seedbed has it."""
    (tmp_path / "group_vars/staging").mkdir(parents=True)
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/group_vars").symlink_to("../group_vars")
    (tmp_path / "inventory/staging.yml").write_text("staging: {hosts: {server1: {ansible_connection: local}}}\n")
    (tmp_path / "play.yml").write_text(
        "- hosts: staging\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.debug: {msg: '{{ app_name }} {{ app_domain }} {{ app_web }}'}\n"
    )
    return tmp_path


def run(folder: Path, **given: str) -> Run:
    inventory, config = folder / "inventory/staging.yml", str(ROOT / "ansible.cfg")
    return run_playbook(folder / "play.yml", inventory, cwd=folder, ANSIBLE_CONFIG=config, **given)


def test_group_vars_and_host_vars_are_read(folder: Path) -> None:
    (folder / "group_vars/all.yml").write_text("app_name: all\napp_domain: all\napp_web: all\n")
    (folder / SETTINGS).write_text("app_domain: group\napp_web: group\n")
    (folder / "inventory/host_vars").mkdir()
    (folder / "inventory/host_vars/server1.yml").write_text("app_web: host\n")
    assert [result["msg"] for result in run(folder).results()] == ["all group host"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("app_name: x\napp_environment:\n\tKEY: hunter2\n", 3, "Tabs are usually invalid"),
        ("app_environment:\n  KEY: {{ hunter2 }}\n", 2, "missing quotes around a template"),
        ("app_environment:\n  KEY: 1\n PASSWORD: hunter2\n", 3, "did not find expected key"),
    ],
)
def test_an_error_names_the_line_and_no_value(folder: Path, text: str, line: int, says: str) -> None:
    (folder / SETTINGS).write_text(text)
    found = run(folder, ANSIBLE_STDOUT_CALLBACK="ansible.builtin.minimal")
    assert found.status != 0
    assert f"{SETTINGS}:{line}:" in found.output
    assert says in found.output
    assert "hunter2" not in found.output


@pytest.mark.parametrize("text", ["app_name", "- app_name\n", "$ANSIBLE_VAULT;1.1;AES256\n3161\n"])
def test_other_errors_name_the_file(folder: Path, text: str) -> None:
    """Text or a list in place of settings; a vault without its password."""
    (folder / SETTINGS).write_text(text)
    found = run(folder, ANSIBLE_STDOUT_CALLBACK="ansible.builtin.minimal")
    assert found.status != 0
    assert f"{SETTINGS}: " in found.output
