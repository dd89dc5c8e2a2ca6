"""A host that fails stops the whole run, so that nothing is deployed to the other hosts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from project import GROUPS, ROOT, copy_project, run_playbook

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
# What must not run on any host after a failure of the key: a role, or ROLE/FILE for one of its other task files.
CASES = {
    # A run whose secrets differ from those in use changes nothing, and generates none.
    ("site.yml", "secrets/check"): {"bootstrap", "secrets/record", "base", "runtime"},
    ("playbooks/deploy.yml", "secrets/check"): {"hostctl", "release/prepare", "release/deploy"},
    ("playbooks/rotate-secrets.yml", "secrets/check_rotation"): {"secrets", "secrets/record", "postgresql"},
    # A host in use by something else.
    ("site.yml", "bootstrap"): {"secrets/record", "base", "runtime"},
    ("site.yml", "base"): {"runtime", "services", "hostctl", "release/deploy"},
    ("site.yml", "runtime"): {"services", "release/deploy", "nginx"},
    ("site.yml", "postgresql"): {"release/deploy", "nginx"},
    ("site.yml", "nginx"): {"release/deploy"},
    ("playbooks/deploy.yml", "preflight"): {"hostctl", "release/prepare", "release/deploy"},
    # A refused deployment changes nothing on any host.
    ("playbooks/deploy.yml", "release/prepare"): {"hostctl", "release/deploy"},
    ("playbooks/deploy.yml", "hostctl"): {"release/deploy"},
    ("playbooks/rollback.yml", "connection"): {"hostctl", "release/rollback"},
    ("playbooks/rotate-secrets.yml", "connection"): {"secrets", "postgresql", "release"},
    # An earlier PostgreSQL has the databases.
    ("playbooks/rotate-secrets.yml", "postgresql/upgrade_plan"): {"secrets", "secrets/record", "postgresql"},
    ("playbooks/rotate-secrets.yml", "services"): {"release"},
    # A host that continues would write to databases that are being copied.
    ("playbooks/upgrade-postgresql.yml", "secrets/check"): {"release/status", "postgresql/upgrade_plan"},
    ("playbooks/upgrade-postgresql.yml", "release/status"): {"postgresql/upgrade_plan", "services/suspend"},
    ("playbooks/upgrade-postgresql.yml", "postgresql/upgrade_plan"): {"nginx/maintenance", "services/suspend"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project with its real playbooks, whose roles only fail where the variable `failing` says so."""
    project = copy_project(tmp_path_factory.mktemp("failed") / "project")
    for role in (project / "roles").iterdir():
        task_files = [path.stem for path in (role / "tasks").glob("*.yml")]
        shutil.rmtree(role)
        (role / "tasks").mkdir(parents=True)
        for file in task_files:
            name = role.name if file == "main" else f"{role.name}/{file}"
            task = {
                "name": f"Role {name}",
                "ansible.builtin.assert": {"that": f"[inventory_hostname, '{name}'] != failing"},
            }
            (role / f"tasks/{file}.yml").write_text(json.dumps([task]))
    # The record of a run says which step of it this is.
    step = {
        "name": "Record {{ monitoring_record_state | default('partial') }}",
        "ansible.builtin.assert": {"that": True},
    }
    (project / "roles/monitoring/tasks/record.yml").write_text(json.dumps([step]))
    hosts = {"first": {}, "second": {}}
    children = {group: {"hosts": hosts} for group in GROUPS}
    # With it, the playbooks do not read the host's memory, which takes longer than all else.
    given = LOCAL | {"services_memory_mb": 300}
    inventory = {"all": {"vars": given, "hosts": hosts, "children": children}}
    (project / "inventory/hosts.yml").write_text(json.dumps(inventory))
    return project


@pytest.mark.parametrize(("playbook", "role"), CASES)
def test_a_failed_host_stops_the_run(project: Path, playbook: str, role: str) -> None:
    found = run_playbook(
        project / playbook,
        project / "inventory/hosts.yml",
        *("-e", json.dumps({"failing": ["second", role]})),
        one_process=True,
        ANSIBLE_CONFIG=str(project / "ansible.cfg"),
    )
    assert found.status != 0
    assert {result["host"] for result in found.results() if result.get("failed")} == {"second"}
    ran = {result["task"].rpartition("Role ")[2] for result in found.results()}
    assert role in ran
    assert ran & CASES[playbook, role] == set()


@pytest.mark.parametrize(
    ("playbook", "failing", "recorded"),
    [
        ("site.yml", [], ["begin", "partial", "end"]),
        # Settings of a release that is not live are not applied.
        ("site.yml", ["second", "release/deploy"], ["begin", "partial"]),
        ("playbooks/provision.yml", [], ["begin", "end"]),
        ("playbooks/provision.yml", ["second", "monitoring"], ["begin"]),
        ("playbooks/deploy.yml", [], ["partial"]),
    ],
)
def test_a_run_is_recorded_as_ended_when_all_is_applied(
    project: Path, playbook: str, failing: list[str], recorded: list[str]
) -> None:
    found = run_playbook(
        project / playbook,
        project / "inventory/hosts.yml",
        *("-e", json.dumps({"failing": failing})),
        one_process=True,
        ANSIBLE_CONFIG=str(project / "ansible.cfg"),
    )
    assert (found.status == 0) == (not failing), found.output
    tasks = [
        result["task"].rpartition(": ")[2]
        for result in found.results()
        if result["host"] == "first" and not result.get("skipped")
    ]
    assert [task.removeprefix("Record ") for task in tasks if task.startswith("Record ")] == recorded


def test_a_rollback_installs_nothing(project: Path) -> None:
    """The control machine may have settings that the host was never given."""
    inventory, configuration = project / "inventory/hosts.yml", str(project / "ansible.cfg")
    options = ("-e", json.dumps({"failing": []}))
    found = run_playbook(
        project / "playbooks/rollback.yml", inventory, *options, one_process=True, ANSIBLE_CONFIG=configuration
    )
    ran = {result["task"].rpartition("Role ")[2] for result in found.results()}
    assert "release/rollback" in ran
    assert ran & {"hostctl", "runtime", "services"} == set()


@pytest.mark.parametrize(("role", "variable"), [("release", "release_hosts"), ("secrets", "secrets_hosts")])
def test_a_host_that_failed_earlier_is_left_out(tmp_path: Path, role: str, variable: str) -> None:
    """Also in a playbook of the user, whose plays continue without the failed host."""
    failing = {"name": "Fail", "ansible.builtin.fail": {}, "when": "inventory_hostname == 'second'"}
    checking = {"name": "Check", "ansible.builtin.import_role": {"name": role, "tasks_from": "hosts.yml"}}
    plays = [{"hosts": "all", "gather_facts": False, "tasks": [task]} for task in (failing, checking)]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
    hosts = {"all": {"vars": LOCAL, "hosts": {"first": {}, "second": {}}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(hosts))
    given = {variable: ["first", "second"], f"{role}_leader": "first"}
    options = ("-e", json.dumps(given))
    found = run_playbook(
        tmp_path / "play.yml",
        tmp_path / "hosts.yml",
        *options,
        one_process=True,
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
    )
    assert ": second would " in found.messages()["first"]
