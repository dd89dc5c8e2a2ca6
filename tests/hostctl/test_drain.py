"""Tasks that are longer than a deployment: said early, and no reason to refuse the next one."""

from __future__ import annotations

import os
import re
import signal
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from hostctl.deploy import control, detach, drain, record
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import BusyError
from tests.hostctl.fakes import NEW, OLD, Answers, Manager, deploy, failure, make_release, node

WORKER = f"shop-worker-default@{OLD}"
NEXT = "next-3"


@pytest.fixture
def slow(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Units that go on running when they are told to stop, and those that were."""
    slow, stopping = {WORKER}, set()
    stop = manager.stop

    def stop_others(units: list[str], *, wait: bool = True) -> None:
        stopping.update(slow & set(units))
        stop([unit for unit in units if unit not in slow])

    def states() -> list[ProcessState]:
        return [ProcessState(one, "deactivating" if one in stopping else "active", 0) for one in manager.running]

    monkeypatch.setattr(manager, "stop", stop_others)
    monkeypatch.setattr(manager, "states", states)
    return slow


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that waits for old processes is told that another one wants to begin."""
    monkeypatch.setattr(drain.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGUSR1))


def run(host: Host, release: str) -> int:
    """Deploy a release as the process of its unit does; the lock is free at its end."""
    make_release(host, release)
    book = record.Record(host.settings)
    book.hold()
    words = {"command": "deploy", "release": release, "by": "anna", "archive": Path("a"), "force": False}
    number = signal.getsignal(signal.SIGUSR1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "Record", lambda settings: book)
        patch.setattr(book, "hold", lambda: None)
        try:
            return control.run_deployment(host, Namespace(**words, log=f"{release}.log"))
        finally:
            signal.signal(signal.SIGUSR1, number)
            book.release()


@pytest.mark.usefixtures("slow", "taken_over")
def test_a_deployment_that_waits_for_a_task_makes_way_for_the_next(
    live: Host, manager: Manager, answers: Answers, capsys: Any
) -> None:
    assert run(live, NEW) == 0
    assert f"Another deployment begins. Still finishing their tasks: {WORKER}." in capsys.readouterr().out
    entry = record.history(live.settings)[-1]
    assert (entry["release"], entry["outcome"], entry["tasks"]["lost"]) == (NEW, "succeeded", 0)
    assert ("requeue_unacknowledged", "core") in answers.asked, "what the old worker has parked meanwhile"
    # Its release stays, and it is not counted as killed.
    assert live.path(OLD).exists()
    assert entry["tasks"] == {"finished": 0, "requeued": 0, "lost": 0}


@pytest.mark.usefixtures("taken_over")
def test_the_next_deployment_leaves_stopping_workers_alone_and_waits_for_them(
    live: Host, manager: Manager, answers: Answers, slow: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(live, NEW) == 0
    answers.asked.clear()

    def end(seconds: float) -> None:
        slow.clear()
        manager.running.discard(WORKER)

    monkeypatch.setattr(drain.time, "sleep", end)
    assert deploy(live, NEXT) == 0
    told = [asked[-1] for asked in answers.asked if asked[:3] == ("consumers", "core", "cancel")]
    assert told == [node(NEW)]
    assert manager.running == {f"shop-web@{NEXT}", f"shop-worker-default@{NEXT}"}
    assert f"{WORKER} was killed before it had finished" in capsys.readouterr().out


@pytest.mark.usefixtures("slow", "taken_over")
def test_a_failing_next_deployment_does_not_have_them_consume_again(live: Host, answers: Answers) -> None:
    assert run(live, NEW) == 0
    answers.override["smoke_test"] = {"silent": ["default"]}
    answers.asked.clear()
    assert deploy(live, NEXT) == 1
    assert answers.resumed(NEW)
    assert not answers.resumed(OLD)


@pytest.mark.usefixtures("slow", "taken_over")
def test_a_rollback_says_that_it_waits_for_them(live: Host, answers: Answers, capsys: Any) -> None:
    assert run(live, NEW) == 0
    deploy(live, OLD, "rollback")
    assert f"Still finishing tasks after an earlier deployment, up to 360 s, then started: {WORKER}." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("draining", [True, False])
def test_only_a_deployment_that_drains_is_taken_over(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, draining: bool
) -> None:
    book = record.Record(live.settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log="first.log")
    book.note(draining=[WORKER] if draining else [])
    told: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        told.append((pid, number))
        book.end(0, "succeeded")
        book.release()

    monkeypatch.setattr(control.os, "kill", kill)
    monkeypatch.setattr(detach, "unit_is_active", lambda settings: False)
    monkeypatch.setattr(detach, "main_process", lambda settings: os.getpid())
    if draining:
        control.take_over(live.settings)
        record.Record(live.settings).refuse_second()
        assert told == [(os.getpid(), signal.SIGUSR1)]
    else:
        control.take_over(live.settings)
        with pytest.raises(BusyError):
            record.Record(live.settings).refuse_second()
        assert told == []


def test_the_process_of_another_deployment_gets_no_signal(live: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed one left its state, and the next one holds the lock but has not begun."""
    book = record.Record(live.settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log="first.log")
    book.note(draining=[WORKER])
    monkeypatch.setattr(detach, "main_process", lambda settings: 1)
    monkeypatch.setattr(control.os, "kill", lambda *arguments: pytest.fail("a signal"))
    control.take_over(live.settings)


def test_a_follower_learns_the_outcome_although_the_next_one_has_begun(live: Host, answers: Answers) -> None:
    log = live.settings.home / "first.log"
    log.write_text("Release new-2 is live.\n")
    deploy(live, NEW, log=str(log))
    book = record.Record(live.settings)
    book.hold()
    book.begin("deploy", NEXT, "bert", log="second.log")
    text, _, state = detach.follow(live.settings, log, 0, 0, "")
    assert (text, state["running"], state["status"]) == ("Release new-2 is live.\n", False, 0)


@pytest.mark.parametrize(("seconds", "said"), [(3, ""), (95, "says"), (400, "warns")])
def test_a_task_that_runs_for_long_is_named_before_the_switch(
    live: Host, answers: Answers, capsys: Any, seconds: int, said: str
) -> None:
    task = {"name": "ledger.wait", "id": "4711", "since": time.time() - seconds}
    answers.override["running"] = {node(OLD): [task]}
    assert deploy(live) == 0
    output = capsys.readouterr().out
    pattern = rf"(Warning: )?{WORKER} has been running the task ledger\.wait \(4711\) for (\d+) s, since "
    line = re.search(pattern, output)
    assert bool(line) == bool(said)
    if line:
        assert bool(line[1]) == (said == "warns")
        # The steps before it take time, too.
        assert seconds <= int(line[2]) < seconds + 60
        assert "waits up to 360 s for it" in output
        assert line.start() < output.index("Traffic switched")


def test_a_worker_that_cannot_be_asked_is_no_failure(live: Host, answers: Answers) -> None:
    answers.override["running"] = failure("answer")
    assert deploy(live) == 0
