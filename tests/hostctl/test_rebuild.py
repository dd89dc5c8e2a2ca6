"""After an upgrade of Debian the Python of a release is gone: it is never taken for complete, and is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostctl import status
from hostctl.deploy import rebuild, record, verify
from hostctl.host import FORMER_VENV, VENV, Host
from hostctl.settings import BusyError, ReleaseError
from tests.hostctl.fakes import NEW, OLD, Answers, Killed, Manager, deploy, failure, make_release


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(verify, "SETTLE", 0.1)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Debian's Python after the upgrade."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.13").touch()
    (tmp_path / "usr/bin/python3").symlink_to("python3.13")
    return tmp_path / "usr/bin/python3"


def make_venv(host: Host, release: str, python: Path, version: str = "3.11") -> Path:
    """Make an environment as uv does."""
    venv = host.path(release) / VENV
    (venv / "bin").mkdir(parents=True)
    (venv / f"lib/python{version}/site-packages").mkdir(parents=True)
    (venv / "bin/python").symlink_to(python)
    return venv


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, python: Path) -> list[str]:
    """The releases whose environment was made again."""
    found: list[str] = []

    def make(host: Host, release: str, secrets: dict[str, str]) -> None:
        found.append(release)
        make_venv(host, release, python, "3.13")

    monkeypatch.setattr(rebuild, "make_environment", make)
    monkeypatch.setattr(rebuild, "compile_sources", lambda host, release: None)
    return found


@pytest.fixture
def upgraded(live: Host, python: Path) -> Host:
    """A host whose live release was made with Python 3.11, which Debian has no more; its processes still run."""
    make_venv(live, OLD, python)
    return live


# --- detection


def test_a_release_has_its_python(live: Host, python: Path) -> None:
    make_venv(live, OLD, python, "3.13")
    assert not live.lacks_python(OLD)
    assert live.built() == [OLD]


def test_an_interpreter_of_another_place_is_not_debians(live: Host, tmp_path: Path) -> None:
    """Such as one that uv has brought, or one without a version in its name."""
    (tmp_path / "cpython/bin").mkdir(parents=True)
    for name in ("python3.12", "python"):
        (tmp_path / "cpython/bin" / name).touch()
    venv = make_venv(live, OLD, tmp_path / "cpython/bin/python3.12", "3.12")
    assert not live.lacks_python(OLD)
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to(tmp_path / "cpython/bin/python")
    assert not live.lacks_python(OLD)


@pytest.mark.parametrize("how", ["another version", "dangling", "a loop", "half made"])
def test_a_release_without_its_python_is_not_built(live: Host, python: Path, how: str) -> None:
    venv = make_venv(live, OLD, python, "3.13" if how == "half made" else "3.11")
    link = venv / "bin/python"
    if how in ("dangling", "a loop"):
        link.unlink()
        link.symlink_to("/usr/bin/python3.1" if how == "dangling" else link)
    if how == "half made":
        (live.path(OLD) / FORMER_VENV).mkdir()
    assert live.lacks_python(OLD)
    assert live.built() == []


def test_the_status_says_that_the_python_is_gone(upgraded: Host) -> None:
    """Although the processes still run and answer: they would not start again."""
    [problem] = status.problems(upgraded)
    assert problem["process"] == "release"
    assert "run site.yml" in problem["text"]


def test_a_release_without_its_python_cannot_be_rolled_back_to(live: Host, python: Path) -> None:
    make_release(live, NEW)
    make_venv(live, NEW, python)
    assert deploy(live, NEW, "rollback") == 1
    assert live.current_release() == OLD
    assert NEW in live.prune(), "its place on the disk is free again"


# --- the live release again


def test_the_live_release_gets_a_new_environment(
    upgraded: Host, manager: Manager, answers: Answers, made: list[str]
) -> None:
    answers.override["check"] = {"versions": {"python": "3.13.5"}}
    first, *_ = verify.verify(upgraded)
    assert first == f"The Python of release {OLD} was gone with an upgrade of Debian: its .venv was made again."
    assert made == [OLD]
    assert not upgraded.lacks_python(OLD)
    assert not (upgraded.path(OLD) / FORMER_VENV).exists()
    assert manager.beat[:1] == ["stop"], "no process keeps the former Python"
    assert set(upgraded.units(OLD)) <= manager.running
    assert status.problems(upgraded) == []
    assert upgraded.facts(OLD)["versions"] == {"python": "3.13.5"}
    assert verify.verify(upgraded) == [], "once"


def test_processes_with_the_former_python_are_replaced(
    upgraded: Host, manager: Manager, answers: Answers, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(manager, "stop", lambda units, wait=True: stopped.extend(units))
    verify.verify(upgraded)
    assert set(upgraded.units(OLD)) <= set(stopped)


def test_a_failed_build_leaves_everything(
    upgraded: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> None:
    def fail(host: Host, release: str, secrets: dict[str, str]) -> None:
        (host.path(release) / VENV).mkdir()
        raise ReleaseError("no wheel of pillow for Python 3.13")

    monkeypatch.setattr(rebuild, "make_environment", fail)
    with pytest.raises(ReleaseError, match=r"its Python is gone, and its .venv cannot be made again: no wheel of"):
        verify.verify(upgraded)
    assert (upgraded.path(OLD) / VENV / "lib/python3.11").exists()
    assert not (upgraded.path(OLD) / FORMER_VENV).exists()
    assert set(upgraded.units(OLD)) <= manager.running
    assert upgraded.lacks_python(OLD), "and the next run tries it again"
    record.Record(upgraded.settings).hold()


def test_an_application_that_the_new_python_cannot_run_keeps_its_processes(
    upgraded: Host, manager: Manager, made: list[str], answers: Answers
) -> None:
    answers.override["check"] = failure("module cgi")
    with pytest.raises(ReleaseError, match="cannot be made again: no module cgi"):
        verify.verify(upgraded)
    assert (upgraded.path(OLD) / VENV / "lib/python3.11").exists()
    assert set(upgraded.units(OLD)) <= manager.running


def test_a_killed_build_begins_again(
    upgraded: Host, python: Path, manager: Manager, answers: Answers, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power failure leaves it, where nothing is cleaned up."""
    (upgraded.path(OLD) / VENV).rename(upgraded.path(OLD) / FORMER_VENV)
    make_venv(upgraded, OLD, python, "3.13")
    assert upgraded.lacks_python(OLD)
    verify.verify(upgraded)
    assert made == [OLD]
    assert not upgraded.lacks_python(OLD)


def test_nothing_is_rebuilt_while_a_deployment_runs(upgraded: Host, made: list[str], answers: Answers) -> None:
    other = record.Record(upgraded.settings)
    other.hold()
    with pytest.raises(BusyError):
        verify.verify(upgraded)
    assert made == []


def test_a_deployment_that_was_killed_gets_its_python_back(
    live: Host, python: Path, answers: Answers, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had switched already, so its release is not built again."""
    answers.override["smoke_test"] = Killed()
    with pytest.raises(Killed):
        deploy(live)
    assert live.current_release() == NEW
    answers.override.clear()
    make_venv(live, NEW, python)
    assert deploy(live) == 0
    assert made == [NEW]
    assert live.current_release() == NEW
