"""A machine without the secrets fetches them; a run that would replace secrets in use stops before anything changes."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
from plugin_utils import generated, secrets_copy
from project import ROOT, ansible_playbook

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
rotation = load("plugins/action/rotate_secrets.py")
# Slow on purpose, and the same for the same value and salt: compute each once.
action.fingerprint = cache(action.fingerprint)


class Machine:
    """A clone with its folder of secrets; the hosts' files are on this machine."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "production") -> None:
        self.root, self.folder = root, root / "secrets" / name
        self.monkeypatch = monkeypatch
        self.runs = 0
        self.on_host("server1")

    def clone(self, name: str) -> Machine:
        return Machine(self.root, self.monkeypatch, name)

    def on_host(self, name: str) -> None:
        """Let what follows ask this host."""
        self.host = self.root / name
        self.fingerprints, self.copy = self.host / "secrets.json", self.host / "secrets-copy.json"

    def answer(self, arguments: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Return what the host's program prints."""
        places = [place | {"file": str(self.host / place["file"])} for place in PLACES]
        given = {"file": str(self.fingerprints), "copy_file": str(self.copy), "places": places}
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(action.request(arguments | given, **changes))))
        return host_program.main()

    def run(
        self,
        chosen: dict[str, str] | None = None,
        hosts: tuple[str, ...] = ("server1",),
        check_mode: bool = False,
        **options: Any,
    ) -> str:
        """Fetch, check and, if nothing stops the run, keep and record, on the leader first. Returns why it stops."""
        self.runs += 1
        self.printed, self.changed = [], []
        temporary = self.root / f"tmp-{self.folder.name}-{self.runs}"
        self.monkeypatch.setattr(generated.constants, "DEFAULT_LOCAL_TMP", str(temporary))
        self.secrets(chosen)  # as preflight does, before a host is asked
        given = {"folder": self.folder, "replace": False, "replace_chosen": False, "left_out": [], "leader": "server1"}
        given |= {"use": ""} | options
        for host in hosts if "server1" in hosts else ():
            self.on_host(host)
            action.fetched(given, host, self.answer)
        given["secrets"] = self.secrets(chosen)
        for host in hosts:
            self.on_host(host)
            if problem := action.check(given, self.answer(given), host):
                return problem
        self.printed = list(filter(None, [action.fetched_line(self.folder)]))
        if not check_mode:
            action.keep_fetched(self.folder)
        for host in hosts:
            self.on_host(host)
            copy = "keep" if host == "server1" else "remove" if "server1" in hosts else "ignore"
            if action.record(given | {"secrets": self.secrets(chosen), "copy": copy}, self.answer, check_mode):
                self.changed.append(host)
        self.on_host(hosts[0])
        return ""

    def secrets(self, chosen: dict[str, str] | None) -> dict[str, str]:
        """Return every secret that this run uses."""
        chosen = chosen or {}  # what they replace is not generated
        secrets = {name: generated.secret(self.folder / name, 32) for name in SECRETS if name not in chosen}
        login = generated.read(generated.current(self.folder) / "database_login") or "shop"
        return secrets | {"database_login": login} | chosen

    def values(self) -> dict[str, str]:
        return {file.name: file.read_text().rstrip("\n") for file in self.folder.glob("*")}

    def copied(self) -> dict[str, str]:
        """Return the files in the host's copy."""
        return json.loads(self.copy.read_text())["files"]

    def written(self, seconds: int) -> None:
        """Let the files here be this much newer than the copy."""
        recorded = json.loads(self.copy.read_text())["recorded_at"]
        for file in self.folder.iterdir():
            os.utime(file, (recorded + seconds, recorded + seconds))

    def rotate(self, then: tuple[str, ...] = ("end",)) -> None:
        """Begin a rotation, record it, and end it."""
        secrets = {name: value for name, value in self.values().items() if name in SECRETS}
        assert rotation.begin(self.folder, secrets, ("shop", "shop_2"))
        assert self.run() == ""
        if "end" in then:
            rotation.end(self.folder, ["django_key"])
            assert self.run() == ""

    def provisioned_by_an_earlier_version(self) -> None:
        """Write the host's files as before fingerprints and a copy were recorded."""
        values = {name: written(name, value) for name, value in self.values().items()}
        self.fingerprints.unlink()
        self.copy.unlink()
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
    files = (provisioned.fingerprints, provisioned.copy, *provisioned.folder.iterdir())
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert not any(value in recorded for value in first.values())
    assert provisioned.run() == ""
    assert (provisioned.values(), provisioned.fingerprints.read_text()) == (first, recorded)


def test_of_two_first_runs_at_once_the_secrets_of_one_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = action.keep

    def keep_second(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "redis_password").write_text("of the other run\n")
        keep(folder)

    monkeypatch.setattr(action, "keep", keep_second)
    assert machine.run() == ""
    monkeypatch.setattr(action, "keep", keep)
    assert machine.values()["redis_password"] == "of the other run"
    assert machine.run() == "", "the recorded fingerprints are of the files"


def test_a_clone_without_secrets_is_refused_if_the_host_has_no_copy(provisioned: Machine) -> None:
    provisioned.copy.unlink()
    clone = provisioned.clone("elsewhere/production")
    problem = clone.run()
    assert f"would replace secrets that server1 has in use: {', '.join(SECRETS)}." in problem
    assert f"{clone.folder} has no file for these." in problem
    assert f"Copy {clone.folder}/, with every file in it, from the machine that ran" in problem
    assert "-e secrets_replace=true" in problem
    assert "without --limit" not in problem
    assert not clone.folder.parent.exists()


def test_a_renamed_inventory_is_told_where_its_secrets_are(provisioned: Machine) -> None:
    provisioned.copy.unlink()
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
    assert provisioned.run() == ""
    assert provisioned.printed == ["server1: Fetched the secrets that were missing here: database_login."]
    login.unlink()
    provisioned.copy.unlink()
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
    """Also one that takes the place of the only host."""
    provisioned.fingerprints.unlink()
    provisioned.copy.unlink()
    before = provisioned.values()
    assert provisioned.run() == ""
    assert provisioned.copied() == provisioned.values() == before


def test_secrets_are_not_generated_for_a_part_of_the_hosts(machine: Machine) -> None:
    """The hosts that are left out may have secrets in use."""
    assert "this run leaves out server2, which may have secrets in use" in machine.run(left_out=["server2"])
    assert not machine.folder.exists()
    machine.folder.mkdir(parents=True)
    for name in SECRETS:
        (machine.folder / name).write_text(f"copied {name}\n")
    assert machine.run(left_out=["server2"]) == ""


# --- The copy on the leader ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["elsewhere/production", "live"])
def test_a_clone_without_secrets_fetches_them(provisioned: Machine, name: str) -> None:
    """Also one with a renamed inventory: its folder has another name."""
    (provisioned.folder / "database_login").write_text("shop_2\n")
    (provisioned.folder / "django_key.previous").write_text("the previous one\n")
    assert provisioned.run(replace=True) == ""
    copy, clone = provisioned.copy.read_text(), provisioned.clone(name)
    assert clone.run() == ""
    names = ", ".join([*SECRETS, "database_login"])
    assert clone.printed == [f"server1: Fetched the secrets that were missing here: {names}."]
    assert clone.values() == provisioned.values()
    assert {file.stat().st_mode & 0o777 for file in clone.folder.iterdir()} == {0o600}
    assert clone.run() == ""
    assert (clone.printed, clone.changed, clone.copy.read_text()) == ([], [], copy)


def test_a_clone_with_some_of_the_secrets_fetches_the_others(provisioned: Machine) -> None:
    before = provisioned.values()
    for name in SECRETS[1:3]:
        (provisioned.folder / name).unlink()
    assert provisioned.run() == ""
    assert provisioned.printed == [f"server1: Fetched the secrets that were missing here: {', '.join(SECRETS[1:3])}."]
    assert provisioned.values() == before


def test_a_fetch_that_was_killed_can_go_on(provisioned: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a rotation come first: with every value, the machine would take them for a rotation that has ended."""
    provisioned.rotate(then=())
    whole, clone, create = provisioned.values(), provisioned.clone("elsewhere/production"), secrets_copy.create
    for allowed in (1, len(whole) // 2, len(whole) - 1):
        left = iter(range(allowed))

        def killed(path: Path, text: str, left: Iterator[int] = left) -> None:
            if path.parent == clone.folder and next(left, None) is None:
                raise KeyboardInterrupt
            create(path, text)

        monkeypatch.setattr(secrets_copy, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            clone.run()
        monkeypatch.setattr(secrets_copy, "create", create)
        assert len(clone.values()) < len(whole)
        assert clone.run() == ""
        assert clone.values() == whole
        shutil.rmtree(clone.folder)


@pytest.mark.parametrize(
    ("seconds", "newer"), {60: "The files here are newer.", -60: "The copy of server1 is newer."}.items()
)
def test_of_two_that_differ_the_newer_one_is_named(provisioned: Machine, seconds: int, newer: str) -> None:
    (provisioned.folder / "redis_password").write_text("from another installation\n")
    (provisioned.folder / "django_key").unlink()
    provisioned.written(seconds)
    before = provisioned.values()
    problem = provisioned.run()
    assert "has in use: django_key, redis_password." in problem
    assert re.search(
        r"server1 keeps a copy of the secrets, recorded 20..-..-.. ..:..:.. UTC by \S+@\S+; the files", problem
    )
    assert newer in problem
    assert f"add -e secrets_use=server: the files here are kept as {provisioned.folder}.before-TIME." in problem
    assert "-e secrets_replace=true" in problem
    assert "from the machine that ran" not in problem
    assert (provisioned.values(), provisioned.printed) == (before, [])


def test_the_copy_of_the_server_is_used_and_the_files_here_are_kept(provisioned: Machine) -> None:
    right, copy = provisioned.values(), provisioned.copy.read_text()
    (provisioned.folder / "redis_password").write_text("from another installation\n")
    (provisioned.folder / "django_key").unlink()
    (provisioned.folder / "rotation").write_text("redis_password\n")
    before = provisioned.values()
    assert provisioned.run(use="server", check_mode=True) == ""
    assert provisioned.values() == before
    assert provisioned.run(use="server") == ""
    kept = next(provisioned.folder.parent.glob("production.before-*"))
    assert provisioned.printed == [
        f"server1: Fetched the secrets, which differed here: redis_password. Those of before are in {kept}."
    ]
    assert {file.name: file.read_text().rstrip("\n") for file in kept.iterdir()} == before
    assert (provisioned.values(), provisioned.copy.read_text()) == (right, copy)
    assert provisioned.run(use="server") == ""
    assert (provisioned.printed, len(list(provisioned.folder.parent.iterdir()))) == ([], 2)


@pytest.mark.parametrize("use", ["", "server"])
def test_a_run_that_is_refused_keeps_nothing_of_the_copy(provisioned: Machine, use: str) -> None:
    """Another host has another value in use than the leader's copy."""
    hosts = ("server1", "server2")
    assert provisioned.run(hosts=hosts) == ""
    recorded = provisioned.root / "server2/secrets.json"
    host = json.loads(recorded.read_text())
    host["fingerprints"]["redis_password"] = [action.fingerprint("another", host["salt"])]
    recorded.write_text(json.dumps(host))
    (provisioned.folder / "redis_password").unlink()
    if use:
        (provisioned.folder / "redis_password").write_text("from another installation\n")
    before = provisioned.values()
    problem = provisioned.run(hosts=hosts, use=use)
    assert "Nothing was changed: this run would replace secrets that server2 has in use: redis_password." in problem
    assert "The copy of server1 has other values of these." in problem
    assert (provisioned.values(), provisioned.printed) == (before, [])
    assert list(provisioned.folder.parent.iterdir()) == [provisioned.folder]


def test_files_of_others_in_the_folder_stay(provisioned: Machine) -> None:
    (provisioned.folder / "keys").mkdir()
    (provisioned.folder / "store.bin").write_bytes(b"\xff\x00")
    (provisioned.folder / "redis_password").unlink()
    assert provisioned.run() == ""
    assert (provisioned.folder / "store.bin").read_bytes() == b"\xff\x00"
    assert (provisioned.folder / "redis_password").exists()


def test_an_impossible_choice_is_refused(provisioned: Machine) -> None:
    assert "secrets_use is 'sever', and must be server or empty." in provisioned.run(use="sever")
    assert "contradict each other" in provisioned.run(use="server", replace=True)
    provisioned.copy.unlink()
    assert "needs a copy of the secrets, and no host in this run keeps one." in provisioned.run(use="server")
    problem = provisioned.run(hosts=("server2",), left_out=["server1"], use="server")
    assert "and this run leaves out server1, which may keep one." in problem


def test_nothing_is_fetched_when_secrets_are_replaced(provisioned: Machine) -> None:
    clone = provisioned.clone("elsewhere/production")
    assert clone.run(replace=True) == ""
    assert set(clone.values()) == set(SECRETS)
    assert not set(clone.values().values()) & set(provisioned.values().values())
    assert clone.copied() == clone.values()


def test_in_check_mode_the_folder_stays_as_it_is(provisioned: Machine) -> None:
    before_rotation = provisioned.fingerprints.read_text()
    provisioned.rotate(then=())
    clone, copy = provisioned.clone("elsewhere/production"), provisioned.copy.read_text()
    assert clone.run(check_mode=True) == ""
    assert len(clone.printed) == 1
    assert not clone.folder.parent.exists()
    assert clone.secrets(None).items() <= provisioned.values().items()
    assert (generated.current(clone.folder) / "rotation").exists()
    assert (clone.changed, clone.copy.read_text()) == ([], copy)
    assert clone.run(check_mode=True, left_out=["server2"]) == "", "none was generated"
    provisioned.fingerprints.write_text(before_rotation)
    assert clone.run(check_mode=True) == "", "the previous values were fetched, too"


def test_a_host_of_an_earlier_version_gets_the_copy(provisioned: Machine) -> None:
    provisioned.copy.unlink()
    recorded = provisioned.fingerprints.read_text()
    assert provisioned.run(check_mode=True) == ""
    assert provisioned.changed == ["server1"]
    assert not provisioned.copy.exists()
    assert provisioned.run() == ""
    assert (provisioned.changed, provisioned.copied()) == (["server1"], provisioned.values())
    assert provisioned.fingerprints.read_text() == recorded
    assert provisioned.run() == ""
    assert provisioned.changed == []


def test_only_the_leader_has_a_copy(provisioned: Machine) -> None:
    hosts = ("server1", "server2")
    assert provisioned.run(hosts=hosts) == ""
    provisioned.on_host("server2")
    assert provisioned.fingerprints.exists()
    assert not provisioned.copy.exists()
    clone = provisioned.clone("elsewhere/production")
    problem = clone.run(hosts=("server2",), left_out=["server1"])
    assert "Run once without --limit: they are fetched from server1, if it keeps a copy of them. Or:" in problem
    assert clone.run(hosts=hosts) == ""
    assert clone.values() == provisioned.values()


def test_a_new_leader_takes_the_copy_over(provisioned: Machine) -> None:
    """The clone has no secrets, and the copy is on the host that was the leader before."""
    assert provisioned.run(hosts=("server1", "server2")) == ""
    (provisioned.root / "server1/secrets-copy.json").rename(provisioned.root / "server2/secrets-copy.json")
    (provisioned.root / "server1/secrets.json").unlink()
    clone = provisioned.clone("elsewhere/production")
    assert provisioned.run(hosts=("server2",), left_out=["server1"]) == ""
    assert (provisioned.root / "server2/secrets-copy.json").exists(), "the leader is not in this run, and may have none"
    assert clone.run(hosts=("server1", "server2")) == ""
    assert clone.values() == clone.copied() == provisioned.values()
    assert not (provisioned.root / "server2/secrets-copy.json").exists()


def test_what_a_host_says_is_written_to_the_folder_only(provisioned: Machine) -> None:
    """And has no line breaks, which would be further lines in files of other hosts."""
    copy = json.loads(provisioned.copy.read_text())
    clone = provisioned.clone("elsewhere/production")
    for files in (
        {"../name": "x"},
        {"a/b": "x"},
        {".x": "x"},
        {"token": "a\nb"},
        {"token": 5},
        {"rotation": "../x"},
        [],
    ):
        provisioned.copy.write_text(json.dumps(copy | {"files": files}))
        assert "The copy of server1 cannot be used: " in clone.run()
        assert "cannot be used: " in clone.run(use="server")
        assert not clone.folder.parent.exists()
    provisioned.copy.write_text('{"recorded_at": 1')
    assert "has no file for these" in clone.run()
    assert provisioned.run() == ""
    assert provisioned.copied() == provisioned.values()


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
    provisioned.copy.unlink()
    assert "has in use: django_key." in provisioned.run(chosen, replace_chosen=True)


def test_a_secret_of_the_user_is_not_in_the_copy(provisioned: Machine) -> None:
    """Nor is the generated one that it has replaced."""
    chosen = {"redis_password": "of the user"}
    assert provisioned.run(chosen, replace_chosen=True) == ""
    assert set(provisioned.copied()) == set(SECRETS) - {"redis_password"}
    assert "of the user" not in provisioned.copy.read_text()
    clone = provisioned.clone("elsewhere/production")
    assert clone.run(chosen) == ""
    assert set(clone.values()) == set(SECRETS) - {"redis_password"}
    problem = provisioned.run()
    assert (
        "The copy of server1 has no redis_password: the machine that recorded it sets secret_redis_password" in problem
    )
    assert "secrets_use" not in problem


def test_a_rotation_is_completed_from_another_clone(provisioned: Machine) -> None:
    provisioned.rotate(then=())
    clone = provisioned.clone("elsewhere/production")
    assert clone.run() == ""
    assert clone.values() == provisioned.values()
    names = rotation.begin(clone.folder, {name: clone.values()[name] for name in SECRETS}, ("shop", "shop_2"))
    assert sorted(names) == sorted(SECRETS)
    assert clone.values() == provisioned.values(), "no further values are generated"
    assert {"rotation", "redis_password.previous"} <= set(clone.copied())
    rotation.end(clone.folder, ["django_key"])
    assert clone.run() == ""
    assert set(clone.copied()) == {*SECRETS, "database_login", "django_key.previous"}
    assert clone.printed == []


def test_a_rotation_that_has_ended_here_is_not_fetched_again(provisioned: Machine) -> None:
    """The run was killed before the copy was recorded."""
    provisioned.rotate(then=())
    rotation.end(provisioned.folder, ["django_key"])
    assert provisioned.run() == ""
    assert provisioned.printed == []
    assert "rotation" not in provisioned.values()
    assert "rotation" not in provisioned.copied()


def test_the_machine_that_did_not_rotate_is_told_so(provisioned: Machine) -> None:
    clone = provisioned.clone("elsewhere/production")
    assert clone.run() == ""
    clone.written(-60)
    provisioned.rotate()
    problem = clone.run()
    assert f"has in use: {', '.join([*SECRETS, 'database_login'])}." in problem
    assert "The copy of server1 is newer." in problem
    assert clone.run(use="server") == ""
    assert clone.values() == provisioned.values()


# --- In a play -------------------------------------------------------------------------------------------------------


def play(machine: Machine, *options: str, hosts: tuple[str, ...] = ("server1",)) -> tuple[bool, str]:
    """Run check.yml and record.yml with this machine as every host. Returns whether that worked, and the output."""
    given = {
        "secrets_fingerprinted": {
            name: f"{{{{ lookup('generated_secret', '{machine.folder}/{name}') }}}}" for name in SECRETS
        },
        "secrets_folder": str(machine.folder),
        "secrets_leader": "server1",
        "secrets_hosts": hosts,
        "__secrets_fingerprints": f"{machine.root}/{{{{ inventory_hostname }}}}/secrets.json",
        "__secrets_copy": f"{machine.root}/{{{{ inventory_hostname }}}}/secrets-copy.json",
    }
    roles = [
        {"ansible.builtin.import_role": {"name": "secrets", "tasks_from": name}} for name in ("check.yml", "record.yml")
    ]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        "tasks": [{"name": "Role"} | role for role in roles],
    }
    (machine.root / "play.json").write_text(json.dumps([play]))
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    arguments = ("-i", f"{','.join(hosts)},", "-c", "local", "-vvv", "--diff", machine.root / "play.json", *options)
    done = ansible_playbook(*arguments, "--extra-vars", json.dumps(given), environment=environment, one_process=True)
    return done.returncode == 0, done.stdout


def test_a_play_keeps_the_secrets_and_shows_none(machine: Machine) -> None:
    """In check mode it keeps none; a play that is refused keeps none."""
    assert play(machine, "--check")[0]
    assert not machine.folder.parent.exists()
    worked, output = play(machine)
    assert worked, output
    assert set(machine.values()) == set(SECRETS)
    outputs = [output]
    clone = machine.clone("elsewhere/production")
    worked, output = play(clone, "--check")
    assert worked, output
    assert "server1: Fetched the secrets that were missing here: django_key, " in output
    assert not clone.folder.parent.exists()
    outputs.append(output)
    worked, output = play(clone)
    assert worked, output
    assert "changed=1 " in output
    assert clone.values() == machine.values()
    outputs.append(output)
    (clone.folder / "redis_password").write_text("from-another-installation\n")
    worked, output = play(clone, "-e", "secrets_use=local")
    assert not worked
    assert "secrets_use is 'local', and must be server or empty." in output
    outputs.append(output)
    shown = [value for value in [*machine.values().values(), "from-another-installation"] if value in "".join(outputs)]
    assert shown == []


def test_a_play_fetches_from_the_leader_or_for_it(machine: Machine) -> None:
    """Without the leader, from no host. From one only, so that two copies are not mixed."""
    hosts = ("server1", "server2", "server3")
    worked, output = play(machine, hosts=hosts)
    assert worked, output
    copies = [machine.root / host / "secrets-copy.json" for host in hosts]
    assert [copy.exists() for copy in copies] == [True, False, False]
    clone = machine.clone("elsewhere/production")
    copy = json.loads(copies[0].read_text())
    for path in copies[1:]:
        path.write_text(json.dumps(copy | {"files": copy["files"] | {path.parent.name: "x"}}))
    worked, output = play(clone, "--limit", "server2", hosts=hosts)
    assert not worked
    assert "Run once without --limit: they are fetched from server1" in output
    assert not clone.folder.parent.exists()
    (machine.root / "server1/secrets.json").unlink()
    copies[0].unlink()
    worked, output = play(clone, hosts=hosts)
    assert worked, output
    assert clone.values() == machine.values() | {"server2": "x"}
    assert [copy.exists() for copy in copies] == [True, False, False]
