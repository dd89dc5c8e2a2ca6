"""Missing packages are installed if the user may; otherwise the message says what to type."""

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
def test_user_without_root_is_told_what_to_type() -> None:
    with pytest.raises(SetupError, match="apt-get install git openssh-client"):
        ensure_packages(["git", "openssh-client"], "A few tools are missing")


@pytest.mark.usefixtures("without_root")
def test_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATE", tmp_path)
    monkeypatch.setattr(machine, "docker", lambda: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match=r"container engine[\s\S]*apt-get install docker.io"):
        machine.ensure_engine()


@pytest.mark.usefixtures("without_root")
def test_stopped_engine_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATE", tmp_path)
    monkeypatch.setattr(machine, "docker", lambda: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/sbin/dockerd")
    with pytest.raises(SetupError, match="systemctl start docker"):
        machine.ensure_engine()


def test_failed_command_is_shown_with_its_output() -> None:
    with pytest.raises(SetupError, match=r"sh -c[\s\S]*no such thing"):
        run(["sh", "-c", "echo no such thing; exit 3"])


def test_old_python_is_refused_with_an_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 2))
    with pytest.raises(SetupError, match="make PYTHON="):
        machine.ensure_venv()


def test_tools_need_the_standard_library_only() -> None:
    for program in ("machine.py", "testhost.py", "snapshot.py", "demo.py"):
        command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = ['.']; import {program[:-3]}"]
        subprocess.run(command, cwd=ROOT / "tools", check=True)
