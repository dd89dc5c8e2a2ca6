"""The Makefile, in a folder of its own with a stub in the place of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder whose .venv is a link to the virtual environment of another one."""
    folder, other = tmp_path / "clone", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").touch()
    (folder / ".venv").symlink_to(other)
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    (tmp_path / "python").chmod(0o755)
    return folder


def make(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Make .venv, or the given targets, without the options of a make that runs this test."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", *(words or [".venv"]), f"PYTHON={clone.parent}/python"]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


def test_the_virtual_environment_of_another_folder_is_not_rebuilt(clone: Path) -> None:
    """`python -m venv --clear` would empty the folder behind the link."""
    (clone.parent / "other/complete").touch()
    os.utime(clone.parent / "other/complete", (0, 0))
    found = make(clone)
    assert found.returncode != 0
    assert found.stdout == ""
    assert found.stderr.splitlines()[0] == (
        f".venv is a link to {clone.parent}/other, which installing would empty: type `rm .venv`, then `make .venv`."
    )
    assert not (clone.parent / "calls").exists()
    assert [path.name for path in (clone.parent / "other").iterdir()] == ["complete"]


def test_a_complete_virtual_environment_of_another_folder_is_used(clone: Path) -> None:
    os.utime(clone / "requirements.txt", (0, 0))
    (clone.parent / "other/complete").touch()
    assert make(clone).returncode == 0
    assert not (clone.parent / "calls").exists()


@pytest.mark.parametrize("target", ["inspect", "releases", "doctor", "logs"])
def test_an_environment_without_an_inventory_is_refused_before_anything_runs(clone: Path, target: str) -> None:
    (clone / "inventory").mkdir()
    for name in ("demo", "production", "production.example"):
        (clone / f"inventory/{name}.yml").touch()
    found = make(clone, target, "ENV=prod")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.splitlines()[0] == (
        "There is no inventory/prod.yml; there are: demo production. Type ENV=NAME with one of them, or: "
        "make init PROJECT=folder-or-git-url ENV=NAME"
    )
    assert not (clone.parent / "calls").exists()
    for words in (["ENV=production"], ["INVENTORY=other.yml"]):
        assert make(clone, target, *words).stderr.startswith(".venv is a link to ")
