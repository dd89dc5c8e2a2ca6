"""Several hosts wait for each other at the barriers of a deployment."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from hostctl import cli
from hostctl.deploy import barriers, control, record
from hostctl.host import Host
from hostctl.settings import ReleaseError, Settings
from tests.hostctl.fakes import NEW, Answers, deploy, last_outcome


@pytest.mark.parametrize(
    ("step", "leader", "minutes"),
    [("migrate", False, 360), ("migrate", True, 10), ("check", False, 60), ("health_check", False, 10)],
)
def test_hosts_wait_longer_for_builds_and_for_the_leader_that_migrates(
    host: Host, monkeypatch: pytest.MonkeyPatch, step: str, leader: bool, minutes: int
) -> None:
    """Each sleep lasts a minute."""
    host.settings = dataclasses.replace(host.settings, leader=leader)
    barriers.close_all(host)
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 60 * len(slept), sleep=slept.append)
    monkeypatch.setattr(barriers, "time", clock)
    with pytest.raises(ReleaseError, match=f"No go-ahead for {minutes} minutes at the barrier after {step}"):
        barriers.wait_at(host, record.Record(host.settings), step)
    assert len(slept) == minutes + 1


@pytest.mark.parametrize("opened", ["end", "bake"])
def test_a_deployment_passes_open_barriers(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, opened: str
) -> None:
    live.settings = dataclasses.replace(live.settings, barriers=True)
    monkeypatch.setattr(barriers, "WAIT_SECONDS", 0.2)
    barriers.open_up_to(live, opened)
    assert deploy(live) == (0 if opened == "end" else 1)
    assert last_outcome(live).startswith("succeeded" if opened == "end" else "failed at bake: No go-ahead")


@pytest.mark.parametrize(
    ("waits_at", "barrier", "reached"),
    [("check", "check", True), ("health_check", "check", True), ("check", "health_check", False), ("", "check", False),
     ("bake", "end", False), ("health_check", "", False)],
)  # fmt: skip
def test_a_host_at_a_later_barrier_has_reached_the_earlier_ones(waits_at: str, barrier: str, reached: bool) -> None:
    assert barriers.has_reached({"waits_at": waits_at}, barrier) is reached


@pytest.mark.parametrize(
    ("step", "log", "stopped"),
    [("health_check", "mine", True), ("health_check", "", True), ("health_check", "of another", False),
     ("drain", "mine", False)],
)  # fmt: skip
def test_a_failing_host_cancels_only_deployments_of_the_same_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str, log: str, stopped: bool
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(control.os, "kill", lambda pid, number: killed.append(pid))
    book = record.Record(settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log="mine")
    book.step(step)
    assert control.cancel(settings, log) == 0
    assert bool(killed) is stopped


@pytest.mark.parametrize(("log", "passed"), [("mine", "check migrate"), ("of another", "")])
def test_following_another_deployment_opens_no_barrier(host: Host, log: str, passed: str) -> None:
    for name in ("mine", "of another"):
        (host.settings.home / name).touch()
    book = record.Record(host.settings)
    book.begin("deploy", NEW, "anna", log=str(host.settings.home / "mine"))
    barriers.close_all(host)
    words = ["follow", "--log", str(host.settings.home / log), "--until", "health_check", "--seconds", "0", "--json"]
    control.follow(host, cli.parse(words))
    assert barriers.barrier_file(host).read_text() == passed
