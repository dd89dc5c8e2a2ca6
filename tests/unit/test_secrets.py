"""A rotation of secrets can be killed at any point and completed, and keeps values that the user set."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from project import ansible_playbook

ROOT = Path(__file__).parents[2]
LOGINS = ("shop", "shop_2")
IN_USE = {"one": "the one", "two": "the two", "kept": "the kept"}


class KilledError(BaseException):
    """Simulates SIGKILL: no handler catches it."""


def load_plugin() -> ModuleType:
    """Return a fresh copy of the plugin's module."""
    source = ROOT / "plugins/action/rotate_secrets.py"
    found = importlib.util.spec_from_file_location("rotate_secrets", source)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def plugin() -> ModuleType:
    return load_plugin()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in IN_USE:
        (tmp_path / name).write_text(f"the {name}\n")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Return the text of every file in the folder."""
    return {file.name: file.read_text().strip() for file in folder.iterdir()}


def test_begin_keeps_previous_values(plugin: ModuleType, folder: Path) -> None:
    assert plugin.begin(folder, IN_USE, LOGINS) == ["one", "two", "kept"]
    found = contents(folder)
    assert {name: found[f"{name}.previous"] for name in IN_USE} == IN_USE
    assert all(found[name] != value and len(found[name]) == len(value) for name, value in IN_USE.items())
    assert found["database_login"] == "shop_2"
    assert "rotation" in found
    assert not list(folder.glob("*.next"))
    modes = {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.name not in IN_USE}
    assert modes == {0o600}


def test_end_deletes_previous_values(plugin: ModuleType, folder: Path) -> None:
    plugin.begin(folder, IN_USE, LOGINS)
    new = contents(folder)
    assert plugin.end(folder, ["kept"]) == ["one", "two", "kept"]
    assert set(contents(folder)) == {*IN_USE, "kept.previous", "database_login"}
    assert all(contents(folder)[name] == new[name] for name in IN_USE)


def test_database_logins_alternate(plugin: ModuleType, folder: Path) -> None:
    plugin.begin(folder, IN_USE, LOGINS)
    plugin.end(folder, ["kept"])
    new = contents(folder)
    plugin.begin(folder, {name: new[name] for name in IN_USE}, LOGINS)
    assert contents(folder)["database_login"] == "shop"
    assert contents(folder)["kept.previous"] == new["kept"]


def test_values_that_the_user_set_are_kept(plugin: ModuleType, folder: Path) -> None:
    """A value that differs from its file, or that has no file, comes from group_vars."""
    assert plugin.begin(folder, IN_USE | {"two": "set", "three": "set too"}) == ["one", "kept"]
    found = contents(folder)
    assert found["two"] == "the two"
    assert not {"two.previous", "three", "three.previous", "database_login"} & set(found)


def test_a_rotation_of_an_earlier_version_is_completed(plugin: ModuleType, folder: Path) -> None:
    """Version 0.1.0 and its predecessor use the same file names; this one was killed after its first rename."""
    (folder / "rotation").write_text("one\ntwo\n")
    (folder / "one.previous").write_text("the one\n")
    (folder / "one").write_text("new one\n")
    (folder / "two.next").write_text("new two\n")
    (folder / "database_login.next").write_text("shop_2\n")
    assert plugin.begin(folder, IN_USE | {"one": "new one"}, LOGINS) == ["one", "two"]
    assert contents(folder) == {
        "rotation": "one\ntwo", "one": "new one", "one.previous": "the one", "two": "new two",
        "two.previous": "the two", "kept": "the kept", "database_login": "shop_2",
    }  # fmt: skip


def test_a_killed_rotation_is_completed_by_the_next_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each of its renames in turn: values rotate once, and every previous value is kept."""
    rename, steps = Path.replace, 0
    while True:
        plugin, left = load_plugin(), iter(range(steps))
        here = folder / f"run{steps}"
        here.mkdir()
        for name, value in IN_USE.items():
            (here / name).write_text(f"{value}\n")

        def replace(source: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise KilledError
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            plugin.begin(here, IN_USE, LOGINS)
        except KilledError:
            killed = True
        else:
            killed = False
        monkeypatch.setattr(Path, "replace", rename)
        was_begun = (here / "rotation").exists()
        current = {name: contents(here)[name] for name in IN_USE}
        plugin.begin(here, current, LOGINS)
        found = contents(here)
        assert {name: found[f"{name}.previous"] for name in IN_USE} == IN_USE, steps
        assert all(found[name] != IN_USE[name] for name in IN_USE)
        assert found["database_login"] == "shop_2"
        if was_begun:
            changed = {name: value for name, value in current.items() if value != IN_USE[name]}
            assert {name: found[name] for name in changed} == changed, "a new value must not change again"
        if not killed:
            break
        steps += 1
    assert steps == 12, "four new values, the marker, three previous values, four renames"


@pytest.mark.parametrize(
    "options", [("-e", "failing=none", "--limit", "one"), ("-e", "failing=two")], ids=["limited", "failed-earlier"]
)
def test_a_run_without_one_of_the_hosts_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Also where that host failed in an earlier play, which leaves it in ansible_play_hosts_all."""
    role = {"name": "secrets", "tasks_from": "hosts"}
    plays = [
        {"tasks": [{"name": "Fail", "ansible.builtin.fail": {}, "when": "inventory_hostname == failing"}]},
        {
            "vars": {"secrets_hosts": ["one", "two"]},
            "tasks": [
                {"name": "Check the hosts", "ansible.builtin.import_role": role},
                {"name": "Rotate", "ansible.builtin.debug": {"msg": "rotated"}},
            ],
        },
    ]
    book = [{"name": "Test", "hosts": "all", "gather_facts": False} | play for play in plays]
    (tmp_path / "play.json").write_text(json.dumps(book))
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    arguments = ("-i", "one,two", "-c", "local", tmp_path / "play.json", *options)
    done = ansible_playbook(*arguments, environment=environment)
    assert done.returncode != 0
    assert "No secret was changed: two would keep the old passwords" in " ".join((done.stdout + done.stderr).split())
    assert "rotated" not in done.stdout
