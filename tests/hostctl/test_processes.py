"""Further processes of a release (app_processes): started, checked, drained, and those of which only one may run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hostctl import logs
from hostctl.deploy import build, configuration
from hostctl.host import Host
from hostctl.settings import Process, ReleaseError, Settings
from tests.hostctl.fakes import NEW, OLD, Answers, Manager, deploy, last_outcome

BOT, CONSUMER = "shop-process-bot", "shop-process-consumer"


class Recording(Manager):
    """Records starts and stops in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.broken = ""

    def start(self, units: list[str], *, wait: bool = True) -> None:
        if self.broken in units:
            raise ReleaseError(f"{self.broken} cannot be started")
        self.calls += [("start", unit) for unit in units]
        super().start(units, wait=wait)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        self.calls += [("stop", unit) for unit in units]
        super().stop(units, wait=wait)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, processes=[Process("bot", 7), Process("consumer", 9, single=True)])


@pytest.fixture
def manager() -> Recording:
    return Recording()


def record(host: Host, release: str) -> None:
    configuration.copy(host.settings.next_configuration, host.settings.configurations / release)


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build records the settings and the environment of a release, nothing else."""
    monkeypatch.setattr(build, "configure", record)
    monkeypatch.setattr(configuration, "require_units", lambda host, release: None)


def test_processes_run_beside_those_of_the_old_release_and_single_ones_after_them(
    live: Host, manager: Recording, answers: Answers
) -> None:
    manager.calls.clear()
    assert deploy(live) == 0
    place = manager.calls.index
    assert place(("start", f"{BOT}@{NEW}")) < place(("stop", f"{BOT}@{OLD}"))
    assert place(("stop", f"{CONSUMER}@{OLD}")) < place(("start", f"{CONSUMER}@{NEW}"))
    assert manager.running == set(live.units(NEW))
    assert not [call for call in answers.asked if "bot" in str(call)], "it is no Celery worker"


def test_a_process_that_ends_reverts_the_deployment(live: Host, manager: Recording, answers: Answers) -> None:
    manager.ended = [f"{BOT}@{NEW}"]
    assert deploy(live) == 1
    assert f"ended, but must run until it is stopped: {BOT}@{NEW}" in last_outcome(live)
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD)), "also the single one"


@pytest.mark.parametrize("broken", ["at its start", "later"])
def test_a_single_process_that_crashes_does_not_keep_the_old_release(
    live: Host, manager: Recording, answers: Answers, broken: str, capsys: Any
) -> None:
    if broken == "later":
        manager.ended = [f"{CONSUMER}@{NEW}"]
    else:
        manager.broken = f"{CONSUMER}@{NEW}"
    assert deploy(live) == 0
    assert not {unit for unit in manager.running if OLD in unit}
    assert "process-consumer does not keep running" in capsys.readouterr().out or broken == "at its start"


def test_a_rollback_starts_them_after_the_switch(live: Host, manager: Recording, answers: Answers) -> None:
    assert deploy(live) == 0
    manager.calls.clear()
    assert deploy(live, OLD, "rollback") == 0
    assert manager.running == set(live.units(OLD))


def test_their_own_time_to_stop_counts(live: Host) -> None:
    assert [live.stop_timeout(f"{unit}@{OLD}") for unit in (BOT, CONSUMER, "shop-worker-default")] == [7, 9, 360]


def test_their_logs_are_found_by_name(settings: Settings) -> None:
    for name in ("process-bot", "bot"):
        assert "--unit=shop-process-bot@*" in logs.command(settings, name, follow=False, lines=5)


def test_settings_of_a_release_are_recorded_with_their_processes(settings: Settings) -> None:
    (settings.configurations / NEW).mkdir(parents=True)
    settings.record(NEW)
    assert dataclasses.replace(settings, processes=[]).of(NEW).processes == settings.processes
