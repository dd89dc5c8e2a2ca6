"""Playbooks that must work although a setting is invalid make only some of the checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import Run, copy_project, environment_inventory, run_playbook, stub_ssh

PLAYBOOKS = {"maintenance": ("-e", "maintenance_state=on"), "releases": (), "rollback": ()}
PLAYBOOKS |= {"import-database": ("-e", f"dump={__file__}")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project with an invalid setting."""
    project = copy_project(tmp_path_factory.mktemp("partial") / "project")
    (project / "group_vars/production").mkdir()
    (project / "group_vars/production/app.yml").write_text("---\napp_health_path: up\n")
    return project


def play(project: Path, name: str, *options: str, **variables: str) -> Run:
    """Run a playbook. The stub of ssh is beside the inventory."""
    (project / "inventory/reached").unlink(missing_ok=True)
    ssh, _ = stub_ssh(project / "inventory")
    inventory = project / "inventory/production.yml"
    inventory.write_text(environment_inventory("production", ssh, **variables))
    return run_playbook(
        project / f"playbooks/{name}.yml", inventory, *options, ANSIBLE_CONFIG=str(project / "ansible.cfg")
    )


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_an_invalid_setting_does_not_stop_them(project: Path, name: str) -> None:
    assert play(project, name, *PLAYBOOKS[name]).reached


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_a_misplaced_file_stops_them(project: Path, name: str) -> None:
    """Settings in group_vars/all are overridden by Seedbed's: app_name would be another application's."""
    misplaced = project / "group_vars/all/app.yml"
    misplaced.write_text("---\napp_name: old\n")
    found = play(project, name, *PLAYBOOKS[name])
    misplaced.unlink()
    assert not found.reached
    assert "mv group_vars/all/app.yml group_vars/production/app.yml" in found.messages()["server1"]


@pytest.mark.parametrize("given", [(), ("-e", "dump=missing.dump")], ids=["none", "missing"])
def test_an_import_without_a_dump_is_refused(project: Path, given: tuple[str, ...]) -> None:
    found = play(project, "import-database", *given)
    assert "Type: -e dump=PATH" in found.messages()["server1"]


def test_earlier_variables_of_the_maintenance_playbook_are_refused(project: Path) -> None:
    found = play(project, "maintenance", "-e", "state=on")
    assert not found.reached
    assert "-e maintenance_state=on" in found.messages()["server1"]


def test_variables_of_the_inventory_may_have_the_earlier_names(project: Path) -> None:
    given = ("-e", "maintenance_state=on")
    assert play(project, "maintenance", *given, message="for another playbook", state="mine", retry="3").reached
