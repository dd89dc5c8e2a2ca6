"""Commands on a timer (app_cron): whose units are installed, and what a new timer must not make up for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hostctl import logs
from hostctl.host import Host
from hostctl.processes import cron, systemd
from hostctl.settings import ReleaseError, Settings
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, make_release


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, cron=["tick", "night"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in ("units", "stamps"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(systemd, "UNITS", tmp_path / "units")
    monkeypatch.setattr(cron, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(systemd, "systemctl", lambda *words: found.append(words) or "")
    return found


def define(settings: Settings, release: str, **schedules: str) -> None:
    """Write a release's settings and units as a deployment leaves them."""
    folder = settings.configurations / release / "systemd"
    folder.mkdir(parents=True, exist_ok=True)
    for name, schedule in schedules.items():
        (folder / f"shop-cron-{name}.timer").write_text(f"OnCalendar={schedule}\n")
        (folder / f"shop-cron-{name}.service").write_text("ExecStart=@RELEASE@\n")
    dataclasses.replace(settings, cron=list(schedules)).record(release)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_release_brings_its_timers_and_removes_others(
    settings: Settings, calls: list[tuple[str, ...]], tmp_path: Path
) -> None:
    define(settings, OLD, tick="daily", night="daily")
    define(settings, NEW, tick="daily")
    timers = cron.Cron(settings)
    timers.start(OLD)
    assert calls[-1] == ("start", "shop-cron-tick.timer", "shop-cron-night.timer")
    (tmp_path / "stamps/stamp-shop-cron-night.timer").touch()
    timers.start(NEW)
    assert names(tmp_path / "units") == {"shop-cron-tick.timer", "shop-cron-tick.service"}
    assert (tmp_path / "units/shop-cron-tick.service").read_text() == f"ExecStart={NEW}\n"
    assert ("stop", "shop-cron-night.timer", "shop-cron-night.service") in calls
    assert names(tmp_path / "stamps") == set(), "or it would run at once when it is added again"


def test_only_a_changed_timer_forgets_its_last_run(
    settings: Settings, calls: list[tuple[str, ...]], tmp_path: Path
) -> None:
    define(settings, OLD, tick="daily", night="daily")
    define(settings, NEW, tick="daily", night="hourly")
    timers = cron.Cron(settings)
    timers.start(OLD)
    for name in ("tick", "night"):
        (tmp_path / f"stamps/stamp-shop-cron-{name}.timer").touch()
    timers.start(NEW)
    assert names(tmp_path / "stamps") == {"stamp-shop-cron-tick.timer"}


def test_a_host_without_any_asks_systemd_nothing(settings: Settings, calls: list[tuple[str, ...]]) -> None:
    timers = cron.Cron(dataclasses.replace(settings, cron=[]))
    timers.start("unknown-1")
    assert timers.states("unknown-1") == []
    assert calls == []


def test_states_are_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        "Id=shop-cron-tick.timer\nActiveState=active\nResult=success\nInactiveExitTimestamp=@1764300000",
        "Id=shop-cron-night.timer\nActiveState=inactive\nResult=success\nInactiveExitTimestamp=",
        "Id=shop-cron-tick.service\nActiveState=failed\nResult=exit-code\nInactiveExitTimestamp=@1764381600",
        "Id=shop-cron-night.service\nActiveState=inactive\nResult=success\nInactiveExitTimestamp=",
    ]
    monkeypatch.setattr(systemd, "systemctl", lambda *words: "\n\n".join(blocks) + "\n")
    tick, night = cron.Cron(settings).states("")
    assert tick == {
        "name": "cron-tick",
        "timer": "active",
        "state": "failed",
        "result": "exit-code",
        "last": 1764381600,
    }
    assert (night["timer"], night["last"]) == ("inactive", 0)


def test_a_timer_that_cannot_be_started_does_not_keep_the_old_release(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def start(self: cron.Cron, release: str) -> None:
        raise ReleaseError("bad unit file setting")

    monkeypatch.setattr(cron.Cron, "start", start)
    assert deploy(live) == 0
    assert "Warning: bad unit file setting" in capsys.readouterr().out


def test_their_logs_are_in_the_journal_under_both_managers(settings: Settings) -> None:
    for manager in ("systemd", "supervisor"):
        here = dataclasses.replace(settings, manager=manager)
        assert "--unit=shop-cron-tick" in logs.command(here, "cron-tick", follow=False, lines=5)


def test_a_release_whose_command_runs_is_not_removed(
    host: Host, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for age, release in enumerate((NEW, "newer-3", OLD, "oldest-1")):
        make_release(host, release, age=age * 60)
    host.switch(NEW)
    for name, number, release in (("tick", "7", OLD), ("night", "8", "oldest-1")):
        (tmp_path / "units").mkdir(exist_ok=True)
        (tmp_path / f"units/shop-cron-{name}.timer").touch()
        (tmp_path / "proc" / number).mkdir(parents=True)
        (tmp_path / "proc" / number / "environ").write_text(f"PATH=/bin\0RELEASE_ID={release}\0LANG=C\0")
    monkeypatch.setattr(systemd, "UNITS", tmp_path / "units")
    monkeypatch.setattr(cron, "PROCESSES", tmp_path / "proc")
    monkeypatch.setattr(systemd, "systemctl", lambda *words: "MainPID=7\nControlPID=0\n\nMainPID=9\nControlPID=0\n")
    assert host.prune() == ["oldest-1"]
