"""What a machine lacks is installed where that is allowed; elsewhere the message says what to type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import machine
import pytest
from machine import SetupError, ensure_packages, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "as_root", lambda: None)


@pytest.mark.usefixtures("without_root")
def test_a_user_without_rights_is_told_what_to_type() -> None:
    with pytest.raises(SetupError, match="apt-get install git openssh-client"):
        ensure_packages(["git", "openssh-client"], "A few tools are missing")


@pytest.mark.usefixtures("without_root")
def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATE", tmp_path)
    monkeypatch.setattr(machine, "docker", lambda: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match=r"container engine[\s\S]*apt-get install docker.io"):
        machine.ensure_engine()


@pytest.mark.usefixtures("without_root")
def test_an_engine_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATE", tmp_path)
    monkeypatch.setattr(machine, "docker", lambda: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/sbin/dockerd")
    with pytest.raises(SetupError, match="systemctl start docker"):
        machine.ensure_engine()


def test_a_failed_command_says_which_and_why() -> None:
    with pytest.raises(SetupError, match=r"sh -c[\s\S]*no such thing"):
        run(["sh", "-c", "echo no such thing; exit 3"])


def test_an_old_python_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 2))
    with pytest.raises(SetupError, match="make PYTHON="):
        machine.ensure_venv()


def test_it_runs_where_only_the_standard_library_is() -> None:
    for program in ("machine.py", "testhost.py", "demo.py"):
        command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = ['.']; import {program[:-3]}"]
        subprocess.run(command, cwd=ROOT / "molecule/shared", check=True)
