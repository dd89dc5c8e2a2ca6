"""Every documented setting takes effect where the docs say to write it, group_vars/ENV, or is refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_utils.preflight.names import SET_BY_ROLES
from project import ROOT, TOOLS, Run, copy_project, environment_inventory, run_playbook, stub_ssh

SHOW = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Show
      ansible.builtin.debug:
        msg: "{{ dict(names | zip(query('ansible.builtin.vars', *names))) }}"
"""


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def specs() -> dict[str, dict[str, Any]]:
    """Return the spec of every variable of the roles, and of every setting."""
    found = {}
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        documents = yaml.safe_load(path.read_text())["argument_specs"]
        found |= {name: option for entry in documents.values() for name, option in entry.get("options", {}).items()}
    return found


def other_value(name: str, option: dict[str, Any]) -> Any:
    """Return a value of the option's type that is not its default."""
    values = {
        "int": 4242,
        "bool": option.get("default") is not True,
        "list": [f"value of {name}"],
        "dict": {f"value of {name}": 1},
    }
    return values.get(option["type"], f"value of {name}")


WIRING = load("group_vars/all/wiring.yml")
SECRETS = load("group_vars/all/secrets.yml")
GIVEN = (
    {name: other_value(name, option) for name, option in specs().items()}
    | {name: f"value of {name}" for name in SECRETS}
    | {name: f"value of {name}" for name in WIRING if not name.startswith("ansible_")}
)
# They say which hosts the run is about, and where its own files are.
del GIVEN["app_hosts"], GIVEN["preflight_project"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project whose user sets every variable in group_vars/production/app.yml."""
    project = copy_project(tmp_path_factory.mktemp("settings") / "project")
    (project / "group_vars/production").mkdir()
    (project / "group_vars/production/app.yml").write_text(yaml.safe_dump(GIVEN))
    ssh, _ = stub_ssh(project / "inventory")
    inventory = json.loads(environment_inventory("production", ssh))
    # What a host's own line sets would win.
    del inventory["production"]["hosts"]["server1"]["app_memory_mb"]
    (project / "inventory/production.yml").write_text(json.dumps(inventory))
    (project / "playbooks/show.yml").write_text(SHOW)
    return project


def run(project: Path, playbook: str, *options: str) -> Run:
    inventory, config = project / "inventory/production.yml", str(project / "ansible.cfg")
    return run_playbook(project / playbook, inventory, *options, one_process=True, ANSIBLE_CONFIG=config)


@pytest.fixture(scope="module")
def arriving(project: Path) -> dict[str, Any]:
    """The variables as a play sees them."""
    shown = run(project, "playbooks/show.yml", "-e", json.dumps({"names": sorted(GIVEN)}))
    return shown.results()[0]["msg"]


@pytest.fixture(scope="module")
def refused(project: Path) -> str:
    stopped = run(project, "site.yml")
    assert not stopped.reached
    return stopped.messages()["server1"]


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_variable_arrives_or_is_refused_by_name(name: str, arriving: dict[str, Any], refused: str) -> None:
    line = next((line for line in refused.splitlines() if f": {name} " in line), "")
    if name in WIRING:
        assert " cannot be set: it is computed from " in line
        assert line.strip().startswith("group_vars/production/app.yml")
    elif name in SET_BY_ROLES:
        assert " is set by " in line
    else:
        assert arriving[name] == GIVEN[name]
        assert " is not a setting" not in line


def test_what_plays_set_is_refused() -> None:
    """Variables of a play and of a role's entry in a play outrank group_vars."""
    playbooks = [*sorted(ROOT.glob("playbooks/*.yml")), ROOT / "site.yml"]
    plays = [play for path in playbooks for play in yaml.safe_load(path.read_text())]
    tasks = [task for play in plays for kind in ("pre_tasks", "tasks", "post_tasks") for task in play.get(kind, [])]
    roles = [role for play in plays for role in play.get("roles", []) if isinstance(role, dict)]
    names = {name for item in [*plays, *tasks] for name in item.get("vars", {})}
    names |= {name for role in roles for name in role if name not in ("role", "tags", "when")}
    assert names
    # For one run only, by -e, as its comment says; and what site.yml says to the playbook that it imports.
    assert names - set(WIRING) - set(SET_BY_ROLES) == {"preflight_inspect", "provision_continues"}


def test_renamed_variables_of_maintenance_are_reported(tmp_path: Path) -> None:
    ssh, _ = stub_ssh(tmp_path)
    inventory = tmp_path / "production.yml"
    inventory.write_text(environment_inventory("production", ssh))
    playbook, config = ROOT / "playbooks/maintenance.yml", str(ROOT / "ansible.cfg")
    found = run_playbook(playbook, inventory, "-e", "state=on", one_process=True, ANSIBLE_CONFIG=config)
    assert not found.reached
    assert found.messages()["server1"].endswith("(were state, message and retry). Type: -e maintenance_state=on")


# --- Environments --------------------------------------------------------------------------------------


def test_production_and_staging_from_one_clone(tmp_path: Path) -> None:
    """By the two `cp` commands of the example: each has values, secrets of its own choice and generated secrets."""
    project = copy_project(tmp_path / "project")
    for name in ("production", "staging"):
        text = (project / "inventory/production.example.yml").read_text()
        (project / f"inventory/{name}.yml").write_text(text.replace("\nproduction:\n", f"\n{name}:\n"))
        shutil.copytree(project / "group_vars/production.example", project / f"group_vars/{name}")
        app = project / f"group_vars/{name}/app.yml"
        app.write_text(app.read_text().replace("app_domain: shop.example.org", f"app_domain: {name}.example.org"))
        (project / f"group_vars/{name}/vault.yml").write_text(f"---\nsecret_admin_password: chosen-{name}\n")
    (project / "playbooks/show.yml").write_text(SHOW)
    names = ["app_domain", "secret_admin_password", "secret_django_key", "app_secrets", "app_keep_releases"]
    found = {}
    for name in ("production", "staging"):
        shown = run_playbook(
            project / "playbooks/show.yml",
            project / f"inventory/{name}.yml",
            *("-e", json.dumps({"names": names})),
            ANSIBLE_CONFIG=str(project / "ansible.cfg"),
        )
        found[name] = shown.results()[0]["msg"]
        assert found[name]["app_domain"] == f"{name}.example.org"
        assert found[name]["secret_admin_password"] == f"chosen-{name}"
        assert found[name]["app_secrets"] == str(project / f"inventory/.secrets/{name}")
        assert found[name]["app_keep_releases"] == 5
        assert len(found[name]["secret_django_key"]) == 50
        assert not Path(found[name]["app_secrets"]).exists(), "a host that has secrets in use has not been asked"
    assert found["production"]["secret_django_key"] != found["staging"]["secret_django_key"]


def test_no_environment_is_shipped() -> None:
    """So that `git pull` of a newer Seedbed never conflicts with a user's files; and git ignores none of them."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    shipped = {path for path in tracked if path.startswith(("group_vars/", "inventory/"))}
    assert {path for path in shipped if ".example" not in path} == {
        "group_vars/all/defaults.yml",
        "group_vars/all/secrets.yml",
        "group_vars/all/wiring.yml",
        "group_vars/demo_shop.yml",  # The workers of the demo and of the test hosts.
        "inventory/group_vars",
    }
    own = ["inventory/production.yml", "group_vars/production/app.yml", "group_vars/production/vault.yml"]
    ignored = subprocess.run(["git", "check-ignore", *own], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""


def test_the_example_settings_are_no_group() -> None:
    """Ansible reads group_vars of groups in the inventory only, and no group is named like this folder."""
    listed = subprocess.run(
        [TOOLS / "ansible-inventory", "-i", ROOT / "inventory/production.example.yml", "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shop.example.org" not in listed.stdout


# --- The place of the checkout --------------------------------------------------------------------------


def place(project: Path) -> Path:
    """Add an inventory to a copy of this project. Returns the inventory."""
    ssh, _ = stub_ssh(project / "inventory")
    inventory = project / "inventory/production.yml"
    inventory.write_text(environment_inventory("production", ssh, app_domain="shop.example.org"))
    return inventory


def typed(message: str) -> dict[str, str]:
    """Return the environment variable that a message says to export."""
    command = message.rpartition("Type: ")[2]
    assert command.startswith("export ANSIBLE_CONFIG="), message
    shown = subprocess.run(
        ["sh", "-c", f'{command}; printf %s "$ANSIBLE_CONFIG"'], capture_output=True, text=True, check=True
    )
    return {"ANSIBLE_CONFIG": shown.stdout}


@pytest.mark.parametrize("folder", ["project", "seed bed"])
def test_a_run_from_the_checkout_reaches_the_host(tmp_path: Path, folder: str) -> None:
    project = copy_project(tmp_path / folder)
    found = run_playbook(Path("site.yml"), place(project), cwd=project, one_process=True)
    assert found.reached, found.output


@pytest.mark.parametrize(
    ("where", "playbook"),
    [
        ("another_folder", "site.yml"),
        # As site.yml does, which takes longer.
        ("world_writable", "playbooks/rollback.yml"),
        ("seed bed, another_folder", "playbooks/rollback.yml"),
    ],
)
def test_a_run_without_the_configuration_says_what_to_type(tmp_path: Path, where: str, playbook: str) -> None:
    project = copy_project(tmp_path / ("seed bed" if "seed bed" in where else "project"))
    inventory = place(project)
    if where == "world_writable":
        project.chmod(0o777)
    cwd = project if where == "world_writable" else tmp_path
    found = run_playbook(project / playbook, inventory, cwd=cwd, one_process=True)
    assert not found.reached
    message = found.messages()["server1"]
    assert message.startswith("No host was contacted: Ansible uses no configuration file instead of ")
    assert run_playbook(project / playbook, inventory, cwd=cwd, one_process=True, **typed(message)).reached


def test_a_read_only_checkout_says_what_to_type(tmp_path: Path) -> None:
    """Root without its capabilities is bound by permissions like any user."""
    project = copy_project(tmp_path / "project")
    inventory = place(project)
    outside = tmp_path / "outside"
    outside.mkdir()
    ssh, _ = stub_ssh(outside)
    (outside / "production.yml").write_text(environment_inventory("production", ssh, app_domain="shop.example.org"))
    folders = [project, *(path for path in project.rglob("*") if path.is_dir() and not path.is_symlink())]
    plain: tuple[str, ...] = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
    try:
        for folder in folders:
            folder.chmod(0o555)
        found = run_playbook(Path("site.yml"), inventory, cwd=project, prefix=plain)
        assert not found.reached
        _, *problems = found.messages()["server1"].splitlines()
        assert [problem.split()[1] for problem in problems] == ["app_secrets", "release_cache"]
        # With the settings that it names, and an inventory in a folder of the user's.
        options = ("-e", f"release_cache={tmp_path}/releases")
        found = run_playbook(Path("site.yml"), outside / "production.yml", *options, cwd=project, prefix=plain)
        assert found.reached, found.output
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def words_behind(name: str) -> set[str]:
    """Return every word in the expressions from which a variable of group_vars/all is computed."""
    values = load("group_vars/all/defaults.yml") | SECRETS | WIRING
    found: set[str] = set()
    left = [name]
    while left:
        new = set(re.findall(r"\w+", json.dumps(values[left.pop()]))) - found
        found |= new
        left += new & set(values)
    return found


def test_what_preflight_evaluates_does_not_change_during_a_run() -> None:
    (task,) = [task for task in load("roles/preflight/tasks/main.yml") if "ansible.builtin.set_fact" in task]
    evaluated = {
        name: text for name, text in task["ansible.builtin.set_fact"].items() if name != "__preflight_validated"
    }
    assert len(evaluated) > 10
    for name, text in evaluated.items():
        assert text == f"{{{{ {name} }}}}"
        words = words_behind(name)
        assert words & ({"ansible_facts", "lookup", "query"} | set(SET_BY_ROLES)) == set()
        assert [word for word in words if word.startswith("secret_")] == []
