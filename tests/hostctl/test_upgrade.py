"""A host of commit 7e689fa is brought to today's names, also when that is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hostctl import upgrade
from hostctl.deploy import record
from hostctl.host import Host
from hostctl.settings import Settings
from hostctl.status import previous_release
from tests.hostctl.fakes import Answers, Manager, deploy, make_release, node

OLD_STATE = upgrade.OLD_STATE


def write_earlier_files(settings: Settings, **state: Any) -> None:
    """Write what 7e689fa leaves of a deployment; `state` is added to its state file."""
    home = settings.home
    for release in ("old-1", "new-2"):
        (settings.releases / release).mkdir(exist_ok=True)
        facts = {"id": release, "versions": {}, "workers": {"default": ["default"]}}
        (settings.releases / release / "release.json").write_text(json.dumps(facts))
        os.utime(settings.releases / release / "release.json", (0, 1000 + ord(release[0])))
    logs = home / upgrade.OLD_LOGS
    logs.mkdir()
    (logs / "1.log").write_text("It is built.\n")
    (home / upgrade.OLD_BARRIERS).write_text("check")
    entries = [
        {"action": "deploy", "release": "old-1", "previous": "new-2", "by": "anna", "since": "then", "seconds": 3.0,
         "status": 0, "outcome": "serves", "step": "prune", "log": f"{logs}/1.log",
         "tasks": {"finished": 2, upgrade.OLD_REQUEUED: 1, "lost": 0}},
        {"action": "deploy", "release": "bad-3", "by": "anna", "since": "then", "seconds": 3.0, "status": 1,
         "outcome": "failed at gate: no health at all: status 500", "step": "gate"},
        {"action": "deploy", "release": "bad-3", "by": "anna", "since": "then", "seconds": "", "status": 1,
         "outcome": "broke off at handover", "step": "handover"},
    ]  # fmt: skip
    (home / "history.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    written = entries[0] | {"pid": 1, "began": 0, "steps": {"gate": 1.0, "switch": 0.1}, "log_from": 7} | state
    (home / OLD_STATE).write_text(json.dumps(written))


def everything(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): path.read_text() for path in sorted(home.rglob("*")) if path.is_file()}


def test_files_and_names_are_translated(host: Host, settings: Settings) -> None:
    write_earlier_files(settings)
    upgrade.upgrade(settings)
    home = settings.home
    assert {path.name for path in home.iterdir()} == {
        "releases", "incoming", "lock", "deployments", "deployment.json", "history.jsonl"
    }  # fmt: skip
    assert host.built() == ["old-1", "new-2"], "the order of releases stays"
    state = record.Record(settings).read()
    assert state["steps"] == {"health_check": 1.0, "switch": 0.1}
    assert state["access_log_offset"] == 7
    assert (home / "deployments/1.log").read_text() == "It is built.\n"
    assert state["log"] == f"{home}/deployments/1.log"
    history = record.history(settings)
    assert [entry["outcome"] for entry in history] == [
        "succeeded", "failed at health_check: no health at all: status 500", "interrupted at stop_consuming"
    ]  # fmt: skip
    assert history[0]["tasks"] == {"finished": 2, "requeued": 1, "lost": 0}
    host.switch("old-1")
    assert previous_release(host) == "new-2"


def test_nothing_happens_the_second_time(settings: Settings) -> None:
    write_earlier_files(settings)
    upgrade.upgrade(settings)
    (settings.releases / "new-2/release.json").write_text("the project's own")
    first = everything(settings.home)
    upgrade.upgrade(settings)
    assert everything(settings.home) == first


CALLS = ("rename", "unlink", "rmdir")


@pytest.mark.parametrize("kill_at", range(20))
def test_killed_at_any_call_it_is_completed_by_the_next_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kill_at: int
) -> None:
    write_earlier_files(settings)
    left = [kill_at]

    def dying(name: str) -> Any:
        original = getattr(Path, name)

        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return original(self, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(Path, name, dying(name))
        with contextlib.suppress(KeyboardInterrupt):
            upgrade.upgrade(settings)
    upgrade.upgrade(settings)
    killed = everything(settings.home)
    assert not (settings.home / OLD_STATE).exists()
    assert not (settings.home / upgrade.OLD_LOGS).exists()
    assert set(killed) == {
        "lock", "deployment.json", "history.jsonl", "deployments/1.log", "releases/old-1/build.json",
        "releases/new-2/build.json",
    }  # fmt: skip
    assert json.loads(killed["deployment.json"])["log"] == f"{settings.home}/deployments/1.log"
    assert len(record.history(settings)) == 3


def test_a_running_deployment_of_the_earlier_version_is_left_alone(settings: Settings) -> None:
    write_earlier_files(settings)
    before = everything(settings.home)
    with (settings.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        upgrade.upgrade(settings)
        assert everything(settings.home) == before | {"lock": ""}
    upgrade.upgrade(settings)
    assert not (settings.home / OLD_STATE).exists()


def test_a_killed_deployment_of_the_earlier_version_is_reverted(live: Host, manager: Manager, answers: Answers) -> None:
    """It was killed after its workers had been told to stop consuming."""
    settings = live.settings
    make_release(live, "new-2")
    manager.start(live.units("new-2"))
    state = {"action": "deploy", "release": "new-2", "previous": "old-1", "by": "anna", "since": "then", "began": 0,
             "pid": 1, "step": "switch", "steps": {"gate": 0.1, "handover": 0.1}, "was_built": False, "log_from": 0,
             "taken": {node("old-1"): ["default"]}}  # fmt: skip
    (settings.home / OLD_STATE).write_text(json.dumps(state))
    upgrade.upgrade(settings)
    assert deploy(live, "other-3") == 0
    assert answers.resumed("old-1")
    assert manager.running == set(live.units("other-3"))
    assert not live.path("new-2").exists()


def test_old_programs_are_removed_once_no_unit_uses_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, programs, units = tmp_path / "lib", tmp_path / "sbin", tmp_path / "units"
    monkeypatch.setattr(Settings, "library", property(lambda self: library))
    monkeypatch.setattr(upgrade, "PROGRAMS", programs)
    monkeypatch.setattr(upgrade, "UNITS", units)
    monkeypatch.setattr(upgrade, "SUPERVISOR", tmp_path / "supervisor")
    old = [
        programs / "shop-release",
        programs / "shop-manage",
        settings.etc / "release.json",
        settings.etc / "release.env",
    ]
    old += [library / name for name in ("celery_service.py", "inspect_release.py", "release/cli.py", "migrations.py")]
    kept = [
        programs / "shopctl",
        library / "hostctl/cli.py",
        library / "run_with_environment",
        settings.etc / "app.env",
    ]
    for file in [*old, *kept]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    units.mkdir()
    unit = units / "shop-worker-default@.service"
    unit.write_text(f"ExecStart=python {library}/celery_service.py worker")
    upgrade.remove_old_files(settings)
    assert all(file.exists() for file in old)
    unit.write_text(f"ExecStart=python {library}/hostctl/in_app/celery_runner.py worker")
    upgrade.remove_old_files(settings)
    assert not any(file.exists() for file in old)
    assert not (library / "release").exists()
    assert all(file.exists() for file in kept)
    upgrade.remove_old_files(settings)


def test_modules_that_are_no_longer_installed_are_removed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib/hostctl"
    monkeypatch.setattr(Settings, "library", property(lambda self: tmp_path / "lib"))
    for name in ("cli.py", "deploy/steps.py", "deploy/gone.py", "gone/old.py", "deploy/__pycache__/gone.pyc"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    upgrade.remove_unlisted_modules(settings)
    assert (package / "gone/old.py").exists(), "without a list nothing is removed"
    (package / "modules.txt").write_text("cli.py\ndeploy/steps.py\n")
    upgrade.remove_unlisted_modules(settings)
    left = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert left == {"cli.py", "deploy/steps.py"}
    assert not (package / "gone").exists()
