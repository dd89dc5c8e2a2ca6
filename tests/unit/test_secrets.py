"""A change of secrets survives being killed at any point, and touches nothing that somebody chose."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
LOGINS = ("shop", "shop_2")


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


def load_rotation() -> ModuleType:
    source = ROOT / "plugins/action/rotate_secrets.py"
    found = importlib.util.spec_from_file_location("rotation", source)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def rotation() -> ModuleType:
    return load_rotation()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "kept"):
        (tmp_path / name).write_text(f"the {name}\n")
    return tmp_path


WANTED = {"one": "the one", "two": "the two", "kept": "the kept"}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in folder.iterdir()}


def test_new_values_lie_beside_the_former(rotation: ModuleType, folder: Path) -> None:
    assert rotation.begin(folder, WANTED, LOGINS) == ["one", "two", "kept"]
    found = contents(folder)
    assert {name: found[f"{name}.previous"] for name in WANTED} == WANTED
    assert all(found[name] != value and len(found[name]) == len(value) for name, value in WANTED.items())
    assert found["database_login"] == "shop_2"
    assert "rotation" in found
    assert not list(folder.glob("*.next"))
    modes = {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.name not in WANTED}
    assert modes == {0o600}


def test_in_the_end_the_former_are_forgotten(rotation: ModuleType, folder: Path) -> None:
    rotation.begin(folder, WANTED, LOGINS)
    new = contents(folder)
    assert rotation.end(folder, ["kept"]) == ["one", "two", "kept"]
    assert set(contents(folder)) == {*WANTED, "kept.previous", "database_login"}
    assert all(contents(folder)[name] == new[name] for name in WANTED)
    # And the names take turns.
    rotation.begin(folder, {name: new[name] for name in WANTED}, LOGINS)
    assert contents(folder)["database_login"] == "shop"
    assert contents(folder)["kept.previous"] == new["kept"]


def test_what_somebody_chose_stays(rotation: ModuleType, folder: Path) -> None:
    """A value that is not the file's comes from group_vars; so does one that has no file."""
    assert rotation.begin(folder, WANTED | {"two": "chosen", "three": "chosen too"}) == ["one", "kept"]
    found = contents(folder)
    assert found["two"] == "the two"
    assert not {"two.previous", "three", "three.previous", "database_login"} & set(found)


def test_killed_anywhere_the_next_run_completes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its writes and renames in turn: never two changes, and every former value is still known."""
    rename, steps = Path.replace, 0
    while True:
        rotation, left = load_rotation(), iter(range(steps))
        here = folder / f"run{steps}"
        here.mkdir()
        for name, value in WANTED.items():
            (here / name).write_text(f"{value}\n")

        def replace(source: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise Killed
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            rotation.begin(here, WANTED, LOGINS)
        except Killed:
            killed = True
        else:
            killed = False
        monkeypatch.setattr(Path, "replace", rename)
        was_begun = (here / "rotation").exists()
        current = {name: contents(here)[name] for name in WANTED}
        rotation.begin(here, current, LOGINS)
        found = contents(here)
        assert {name: found[f"{name}.previous"] for name in WANTED} == WANTED, steps
        assert all(found[name] != WANTED[name] for name in WANTED)
        assert found["database_login"] == "shop_2"
        if was_begun:
            changed = {name: value for name, value in current.items() if value != WANTED[name]}
            assert {name: found[name] for name in changed} == changed, "what was new already stays"
        if not killed:
            break
        steps += 1
    assert steps == 12, "four new values, the mark, three former ones, four renames"
