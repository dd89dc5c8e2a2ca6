"""Hosts keep a record of who applied which settings; the doctor names what another clone has replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_utils.preflight.files import LOADER
from project import copy_project, run_playbook

from hostctl.doctor import applied

VALUE = "a value that nothing else has"


class Clone:
    """A clone of this project, with its settings in git. It runs the action on this machine."""

    def __init__(self, folder: Path, record: Path) -> None:
        self.folder, self.record = folder, record
        (folder / "group_vars/production").mkdir(exist_ok=True)

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", self.folder, *identity, *words], check=True, capture_output=True)

    def commit(self, **settings: Any) -> None:
        self.set(**settings)
        self.git("add", "-A")
        self.git("commit", "-m", "Change the settings")

    def set(self, **settings: Any) -> None:
        (self.folder / "group_vars/production/app.yml").write_text(json.dumps(settings))

    def run(self, *options: str, states: Sequence[str] = ("begin", "end"), roles: str = "-") -> dict[str, Any]:
        """Run the action as provision.yml does, in a play with these roles; return the record."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
        hosts = {"production": {"hosts": {"server1": local}}}
        (self.folder / "inventory/production.yml").write_text(json.dumps({"all": {"children": hosts}}))
        task = {"file": str(self.record), "project": str(self.folder)}
        tasks = [{"settings_record": task | {"state": state}} for state in states]
        play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
        play["vars"] = self.defaults(roles)
        (self.folder / "play.yml").write_text(json.dumps([play]))
        found = run_playbook(
            self.folder / "play.yml", self.folder / "inventory/production.yml", *options,
            one_process=True, ANSIBLE_CONFIG=str(self.folder / "ansible.cfg"),
        )  # fmt: skip
        assert found.status == 0, found.output
        assert not any(result["changed"] for result in found.results())
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def defaults(self, roles: str) -> dict[str, Any]:
        """Return the defaults of roles; those of group_vars would override them."""
        found: dict[str, Any] = {}
        for path in self.folder.glob(f"roles/{roles}/defaults/main.yml"):
            found |= yaml.load(path.read_text(), LOADER) or {}
        shipped = [yaml.load(path.read_text(), LOADER) for path in self.folder.glob("group_vars/*/*.yml")]
        return {name: value for name, value in found.items() if not any(name in one for one in shipped)}


@pytest.fixture(scope="module")
def first_commit(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One folder for all tests, since Ansible starts again for each folder."""
    parent = tmp_path_factory.mktemp("clones")
    folder = copy_project(parent / "anna")
    clone = Clone(folder, parent / "host/settings-shop.json")
    clone.git("init")
    (folder / ".git/info/exclude").write_text("play.yml\n__pycache__\n")
    clone.run(states=())
    clone.commit(app_web={"processes": 2}, app_domain="shop.example.org")
    clone.git("tag", "first")
    return clone


@pytest.fixture
def anna(first_commit: Clone) -> Clone:
    """A clone without changes, and a host without a record."""
    first_commit.git("reset", "--hard", "first")
    first_commit.git("clean", "-dffx", "--exclude=__pycache__")
    shutil.rmtree(first_commit.record.parent, ignore_errors=True)
    return first_commit


def another(anna: Clone) -> Clone:
    """Clone it into another folder."""
    folder = anna.folder.parent / "ben"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", anna.folder, folder], check=True, capture_output=True)
    return Clone(folder, anna.record)


def test_a_run_is_recorded(anna: Clone) -> None:
    record = anna.run()
    last = record["last"]
    assert (last["path"], last["committed"], last["playbook"], last["tags"]) == (str(anna.folder), True, "play.yml", "")
    assert anna.record.stat().st_mode & 0o777 == 0o600
    assert "begun" not in record
    assert {"app_web", "app_domain", "flower_user", "postgresql_settings"} <= last["settings"].keys()
    assert not [name for name in last["settings"] if name.startswith("secret_")]
    # Of a value, a keyed hash alone is on the host.
    anna.set(app_web={"processes": 2}, app_domain="shop.example.org", app_environment={"TOKEN": VALUE})
    changed = anna.run()
    assert VALUE not in anna.record.read_text()
    assert (changed["last"]["committed"], "replaced" in changed) == (False, False)
    assert applied.differing(last["settings"], changed["last"]["settings"]) == ["app_environment"]


def test_the_roles_of_the_play_do_not_count(anna: Clone) -> None:
    """The doctor's play has other roles than those that apply the settings, and no facts."""
    without, with_all = anna.run()["last"], anna.run(roles="*")["last"]
    assert without["settings"] == with_all["settings"]
    anna.commit(app_web={"processes": 2}, app_domain="shop.example.org", postgresql_settings={"work_mem": "8MB"})
    changed = anna.run(roles="bootstrap")["last"]["settings"]
    assert applied.differing(without["settings"], changed) == ["postgresql_settings"]


def test_what_a_run_deploys_is_no_setting_of_the_host(anna: Clone) -> None:
    """A job gives them with -e."""
    settings = anna.run("-e", "app_source=/builds/shop", "-e", "app_git_ref=3fa4c0d")["last"]["settings"]
    assert "app_web" in settings
    assert not {"app_source", "app_git_ref"} & settings.keys()


def test_a_damaged_record_is_replaced(anna: Clone) -> None:
    anna.record.parent.mkdir()
    for damage in ("{", "[]", '{"key": "00", "last": {"settings": 1}}', '{"key": "00", "partial": 1}', '{"key": 5}'):
        anna.record.write_text(damage)
        assert anna.run()["last"]["path"] == str(anna.folder)


def test_what_a_run_writes_beside_the_settings_is_no_change(anna: Clone) -> None:
    for name in ("inventory/.secrets/production/django_key", "inventory/demo.yml", "group_vars/demo/app.yml"):
        (anna.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (anna.folder / name).write_text("---\n")
    assert anna.run()["last"]["committed"]
    (anna.folder / "group_vars/production/vault.yml").write_text("---\n")
    assert not anna.run()["last"]["committed"]


def test_check_mode_and_a_part_of_the_tasks(anna: Clone) -> None:
    assert anna.run("--check") == {}
    first = anna.run()
    anna.commit(app_web={"processes": 3})
    assert anna.run("--check") == first
    record = anna.run("--skip-tags", "nginx")
    assert record["last"] == first["last"]
    assert [run["tags"] for run in record["partial"]] == ["--skip-tags nginx"]
    assert "begun" not in record
    # A complete run has applied all of it.
    assert "partial" not in anna.run()


def test_a_run_that_fails_is_known(anna: Clone) -> None:
    anna.run()
    anna.set(app_web={"processes": 3})
    record = anna.run(states=("begin",))
    assert "partial" not in record
    assert "app_web" in applied.differing(record["begun"]["settings"], record["last"]["settings"])
    # Parts of the same settings, as by deploy.yml, change nothing.
    assert anna.run(states=("partial",)) == record


def test_a_deployment_of_another_clone_keeps_the_record_of_a_run_that_failed(anna: Clone) -> None:
    anna.run()
    job = another(anna)
    anna.set(app_web={"processes": 3})
    begun = anna.run(states=("begin",))["begun"]
    # It has the settings of the last complete run, and other ones.
    assert "partial" not in job.run(states=("partial",))
    job.set(app_web={"processes": 4})
    record = job.run(states=("partial",))
    assert (record["begun"], [run["path"] for run in record["partial"]]) == (begun, [str(job.folder)])


def test_parts_that_several_clones_have_applied(anna: Clone) -> None:
    anna.run()
    ben = another(anna)
    anna.set(app_web={"processes": 3})
    anna.run(states=("partial",))
    for processes in (4, 5):
        ben.set(app_web={"processes": processes})
        record = ben.run(states=("partial",))
    # Of each clone the last one.
    assert [run["path"] for run in record["partial"]] == [str(anna.folder), str(ben.folder)]
    assert len({run["settings"]["app_web"] for run in record["partial"]}) == 2


def test_two_clones_with_the_same_settings(anna: Clone) -> None:
    anna.run()
    ben = another(anna)
    record = ben.run()
    assert record["last"]["path"] == str(ben.folder)
    assert "replaced" not in record
    # One builds on what the other has applied.
    ben.commit(app_web={"processes": 3}, app_domain="shop.example.org")
    assert "replaced" not in ben.run()
    anna.git("pull", "-q", str(ben.folder), "HEAD")
    anna.commit(app_web={"processes": 4}, app_domain="shop.example.org")
    assert "replaced" not in anna.run()


def test_a_clone_that_lacks_the_last_settings_is_told(anna: Clone) -> None:
    ben = another(anna)
    anna.commit(app_web={"processes": 3}, app_domain="shop.example.org")
    anna.run()
    record = ben.run()
    assert (record["replaced"]["path"], record["replaced"]["names"]) == (str(anna.folder), ["app_web"])
    # A run of the same clone confirms it.
    assert "replaced" not in ben.run()
    # The other one has all commits of this one, and newer ones.
    assert "replaced" not in anna.run()


def test_settings_that_are_not_committed(anna: Clone) -> None:
    anna.run()
    ben = another(anna)
    ben.set(app_web={"processes": 3}, app_domain="shop.example.org")
    record = ben.run()
    assert (record["last"]["committed"], record["replaced"]["names"]) == (False, ["app_web"])
