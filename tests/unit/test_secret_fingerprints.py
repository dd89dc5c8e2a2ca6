"""A run that would replace secrets in use stops before anything changes, here or on the host."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
from plugin_utils import generated
from project import ROOT, TOOLS

SECRETS = ("django_key", "database_password", "database_owner_password", "redis_password", "redis_admin_password")
ODD = 'it\'s "5" $HOME \\ é:✓'
PLACES = [
    {"secret": "django_key", "file": "app.env", "variable": "SECRET_KEY", "part": "value"},
    {"secret": "database_login", "file": "app.env", "variable": "DATABASE_URL", "part": "user"},
    {"secret": "database_password", "file": "app.env", "variable": "DATABASE_URL", "part": "password"},
    {"secret": "database_owner_password", "file": "migrate.env", "variable": "DATABASE_URL", "part": "password"},
    {"secret": "redis_password", "file": "users.acl", "user": "shop"},
    {"secret": "redis_admin_password", "file": "users.acl", "user": "operator"},
]
# What the roles runtime and redis write, with the values in braces.
FILES = {
    "app.env": 'SECRET_KEY="{django_key}"\nDATABASE_URL="postgresql://shop_2:{database_password}@127.0.0.1/shop"\n',
    "migrate.env": 'DATABASE_URL="postgresql://shop_owner:{database_owner_password}@127.0.0.1/shop"\n',
    "users.acl": "user default off\nuser shop on #{redis_password} ~*\nuser operator on #{redis_admin_password} #0f\n",
}


def written(name: str, value: str) -> str:
    """Return a value as the host's file has it."""
    if name.startswith("database"):
        return quote(value, safe="")
    if name.startswith("redis"):
        return hashlib.sha256(value.encode()).hexdigest()
    return re.sub(r'([\\"$`])', r"\\\1", value)


def load(path: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"{Path(path).parent.name}_fingerprints", ROOT / path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


action, host_program = load("plugins/action/secret_fingerprints.py"), load("plugins/host/secret_fingerprints.py")


class Machine:
    """A clone with its folder of secrets; the host's files are on this machine."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "production") -> None:
        self.root, self.folder, self.host = root, root / "secrets" / name, root / "host"
        self.fingerprints = self.host / "secrets.json"
        self.monkeypatch = monkeypatch
        self.runs = 0

    def clone(self, name: str) -> Machine:
        return Machine(self.root, self.monkeypatch, name)

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return what the host's program prints."""
        places = [place | {"file": str(self.host / place["file"])} for place in PLACES]
        request = {"file": str(self.fingerprints), "places": places, "record": record}
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
        return host_program.main()

    def run(self, chosen: dict[str, str] | None = None, **options: Any) -> str:
        """Check and, if nothing stops the run, record. Returns why it stops."""
        self.runs += 1
        temporary = self.root / f"tmp-{self.folder.name}-{self.runs}"
        self.monkeypatch.setattr(generated.constants, "DEFAULT_LOCAL_TMP", str(temporary))
        login = generated.read(self.folder / "database_login") or "shop"
        secrets = {name: generated.secret(self.folder / name, 32) for name in SECRETS}
        secrets |= {"database_login": login} | (chosen or {})
        given = {"secrets": secrets, "folder": self.folder, "replace": False, "replace_chosen": False, "left_out": []}
        problem = action.check(given | options, self.answer({}), "server1")
        if not problem:
            generated.keep(self.folder)
            secrets = {name: generated.kept(value, name, self.folder) for name, value in secrets.items()}
            record = action.new_record(secrets, self.answer({}))
            if record:
                self.answer(record)
        return problem

    def values(self) -> dict[str, str]:
        return {file.name: file.read_text().rstrip("\n") for file in self.folder.glob("*")}

    def provisioned_by_an_earlier_version(self) -> None:
        """Write the host's files as before fingerprints were recorded."""
        values = {name: written(name, value) for name, value in self.values().items()}
        self.fingerprints.unlink()
        for name, text in FILES.items():
            (self.host / name).write_text(text.format(**values))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def provisioned(machine: Machine) -> Machine:
    assert machine.run() == ""
    return machine


def test_secrets_are_generated_once_and_their_fingerprints_recorded(provisioned: Machine) -> None:
    first, recorded = provisioned.values(), provisioned.fingerprints.read_text()
    assert set(first) == set(SECRETS)
    assert {file.stat().st_mode & 0o777 for file in (provisioned.fingerprints, *provisioned.folder.iterdir())} == {
        0o600
    }
    assert not any(value in recorded for value in first.values())
    assert provisioned.run() == ""
    assert (provisioned.values(), provisioned.fingerprints.read_text()) == (first, recorded)


def test_of_two_first_runs_at_once_the_secrets_of_one_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = generated.keep

    def keep_second(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "redis_password").write_text("of the other run\n")
        keep(folder)

    monkeypatch.setattr(generated, "keep", keep_second)
    assert machine.run() == ""
    monkeypatch.setattr(generated, "keep", keep)
    assert machine.values()["redis_password"] == "of the other run"
    assert machine.run() == "", "the recorded fingerprints are of the files"


def test_a_clone_without_secrets_is_refused(provisioned: Machine) -> None:
    clone = provisioned.clone("elsewhere/production")
    problem = clone.run()
    assert f"would replace secrets that server1 has in use: {', '.join(SECRETS)}." in problem
    assert f"{clone.folder} has no file for these." in problem
    assert f"Copy {clone.folder}/, with every file in it, from the machine that ran" in problem
    assert "-e secrets_replace=true" in problem
    assert not clone.folder.parent.exists()


def test_a_renamed_inventory_is_told_where_its_secrets_are(provisioned: Machine) -> None:
    assert f"&& mv {provisioned.folder} {provisioned.folder.with_name('live')}" in provisioned.clone("live").run()


def test_one_other_secret_is_named_alone(provisioned: Machine) -> None:
    (provisioned.folder / "redis_password").write_text("from another installation\n")
    problem = provisioned.run()
    assert "has in use: redis_password." in problem
    assert f"{provisioned.folder} has other values of these." in problem
    assert provisioned.run(replace=True) == ""
    assert provisioned.run() == ""


def test_a_missing_note_of_the_database_role_is_noticed(provisioned: Machine) -> None:
    """It is not a secret, but without it a run locks the role that the application logs in as."""
    login = provisioned.folder / "database_login"
    login.write_text("shop_2\n")
    assert provisioned.run(replace=True) == ""
    login.unlink()
    assert "has in use: database_login." in provisioned.run()


def test_a_host_of_an_earlier_version_is_protected_by_its_files(provisioned: Machine) -> None:
    for name in SECRETS:
        (provisioned.folder / name).write_text(f"{ODD} {name}\n")
    (provisioned.folder / "database_login").write_text("shop_2\n")
    provisioned.provisioned_by_an_earlier_version()
    names = ", ".join([*SECRETS, "database_login"])
    assert f"has in use: {names}." in provisioned.clone("elsewhere/production").run()
    assert provisioned.run() == ""
    assert provisioned.fingerprints.exists()


def test_a_new_host_of_an_installation_is_accepted(provisioned: Machine) -> None:
    provisioned.fingerprints.unlink()
    assert provisioned.run() == ""


def test_secrets_are_not_generated_for_a_part_of_the_hosts(machine: Machine) -> None:
    """The hosts that are left out may have secrets in use."""
    assert "this run leaves out server2, which may have secrets in use" in machine.run(left_out=["server2"])
    assert not machine.folder.exists()
    machine.folder.mkdir(parents=True)
    for name in SECRETS:
        (machine.folder / name).write_text(f"copied {name}\n")
    assert machine.run(left_out=["server2"]) == ""


# --- Rotations and secrets of the user ------------------------------------------------------------------------------


def test_a_rotation_that_was_killed_can_go_on(provisioned: Machine) -> None:
    """Before its fingerprints were recorded, the host has the previous values; afterwards only the new ones count."""
    for name in SECRETS:
        (provisioned.folder / f"{name}.previous").write_text((provisioned.folder / name).read_text())
        (provisioned.folder / name).write_text(f"rotated {name}\n")
    (provisioned.folder / "database_login").write_text("shop_2\n")
    assert provisioned.run() != ""
    (provisioned.folder / "rotation").touch()
    assert provisioned.run() == ""
    for name in SECRETS:
        (provisioned.folder / f"{name}.previous").replace(provisioned.folder / name)
    (provisioned.folder / "rotation").unlink()
    assert provisioned.run() != "", "another machine, which knows nothing of the rotation"


def test_a_secret_of_the_user_changes_by_a_rotation_only(provisioned: Machine) -> None:
    chosen = {"redis_password": "of the user"}
    problem = provisioned.run(chosen)
    assert "group_vars or the inventory set secret_redis_password" in problem
    assert "playbooks/rotate-secrets.yml" in problem
    assert provisioned.run(chosen, replace_chosen=True) == ""
    (provisioned.folder / "django_key").unlink()
    assert "has in use: django_key." in provisioned.run(chosen, replace_chosen=True)


# --- In a play -------------------------------------------------------------------------------------------------------


def play(machine: Machine, *options: str) -> tuple[bool, str]:
    """Run check.yml and record.yml on this machine as the host. Returns whether that worked, and the output."""
    given = {
        "secrets_fingerprinted": {
            name: f"{{{{ lookup('generated_secret', '{machine.folder}/{name}') }}}}" for name in SECRETS
        },
        "secrets_folder": str(machine.folder),
        "__secrets_fingerprints": str(machine.fingerprints),
    }
    roles = [
        {"ansible.builtin.import_role": {"name": "secrets", "tasks_from": name}} for name in ("check.yml", "record.yml")
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"name": "Role"} | role for role in roles]}
    (machine.root / "play.json").write_text(json.dumps([play]))
    command = [
        TOOLS / "ansible-playbook",
        "-i",
        "server1,",
        "-c",
        "local",
        "-vvv",
        machine.root / "play.json",
        *options,
    ]
    command += ["--extra-vars", json.dumps(given)]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout


def test_a_play_keeps_the_secrets_and_shows_none(machine: Machine) -> None:
    """In check mode it keeps none; a play that is refused keeps none."""
    assert play(machine, "--check")[0]
    assert not machine.folder.parent.exists()
    worked, output = play(machine)
    assert worked, output
    assert set(machine.values()) == set(SECRETS)
    assert not any(value in output for value in machine.values().values())
    clone = machine.clone("elsewhere/production")
    worked, output = play(clone)
    assert not worked
    assert f"{clone.folder} has no file for these." in output
    assert not clone.folder.parent.exists()
