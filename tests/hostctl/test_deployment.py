"""The transaction: a release becomes live, or everything is as it was before."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hostctl import application, beat
from hostctl.deploy import build, deployment, health, preflight, record
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import ReleaseError
from hostctl.status import status
from hostctl.upgrade import OLD_REQUEUED
from tests.hostctl.fakes import (
    NEW,
    OLD,
    SCHEMA,
    Answers,
    Manager,
    deploy,
    failure,
    last_outcome,
    make_release,
    node,
    unfinished,
)

# --- Success


def test_a_release_replaces_the_current_one(live: Host, manager: Manager, answers: Answers, capsys: Any) -> None:
    assert deploy(live) == 0
    assert live.current_release() == NEW
    assert manager.running == set(live.units(NEW))
    assert manager.beat == ["restart"]
    assert last_outcome(live) == "succeeded"
    assert record.history(live.settings)[-1]["previous"] == OLD
    output = capsys.readouterr().out
    for line in (
        f"Traffic switched to {NEW}.",
        "Beat restarted.",
        "Health checks passed for 0 s.",
        f"Release {NEW} is live.",
    ):
        assert f"{line}\n" in output


def test_old_workers_stop_consuming_before_the_switch(live: Host, answers: Answers) -> None:
    deploy(live)
    asked = [question for question, *_ in answers.asked]
    order = ("ping", "consumers", "smoke_test", "requeue_unacknowledged")
    assert [asked.index(question) for question in order] == sorted(asked.index(question) for question in order)
    assert ("consumers", "core", "cancel", "default", node(OLD)) in answers.asked


def test_the_current_release_is_not_deployed_again(live: Host, manager: Manager, answers: Answers) -> None:
    assert deploy(live, OLD) == 0
    assert answers.asked == []
    assert manager.beat == []


def test_a_queue_whose_workers_are_busy_does_not_fail_the_smoke_test(live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["smoke_test"] = {"busy": ["default"]}
    assert deploy(live) == 0
    [asked] = [asked for asked in answers.asked if asked[0] == "smoke_test"]
    assert asked[4] == {node(NEW): ["default"]}
    assert "waits behind running tasks of this release in the queues: default." in capsys.readouterr().out


def test_the_check_is_told_whether_beat_will_run(live: Host, answers: Answers) -> None:
    deploy(live)
    assert ("check", "core.wsgi", "core", True, "", []) in answers.asked
    live.settings = dataclasses.replace(live.settings, beat=False)
    deploy(live, "other-3")
    assert ("check", "core.wsgi", "core", False, "", []) in answers.asked


def test_warnings_of_the_check_are_printed(live: Host, answers: Answers, capsys: Any) -> None:
    found = {"warnings": ["celery 5.3 is not in the tested range"], "databases": ["There is no connection to reports"]}
    answers.override["check"] = found
    assert deploy(live) == 0
    printed = capsys.readouterr().out
    assert "Warning: celery 5.3 is not in the tested range\n" in printed
    assert "Warning: There is no connection to reports\n" in printed


@pytest.mark.parametrize(
    ("limited", "warned"),
    [(["*/login/"], ["/secret/enter/"]), (["*/login/", "/secret/enter/"], []), (["*/enter/"], ["/a/login/"]), ([], [])],
)
def test_login_pages_without_a_limit_are_named(
    live: Host, answers: Answers, capsys: Any, limited: list[str], warned: list[str]
) -> None:
    live.settings = dataclasses.replace(live.settings, login_paths=limited)
    answers.override["check"] = {"versions": {}, "login_pages": ["/a/login/", "/secret/enter/"]}
    assert deploy(live) == 0
    assert re.findall(r"Warning: Attempts to log in at (\S+) are not limited", capsys.readouterr().out) == warned


def test_pages_that_nginx_hides_are_named(live: Host, answers: Answers, capsys: Any) -> None:
    live.settings = dataclasses.replace(live.settings, status_path="/ops/status/", flower_path="/flower/")
    answers.override["pages_below"] = {"paths": ["/ops/status/"]}
    assert deploy(live) == 0
    assert ("pages_below", "/ops/status/", "/flower/") in answers.asked
    printed = capsys.readouterr().out
    assert (
        "Warning: The project has pages under /ops/status/, which nginx serves the status page at: set app_" in printed
    )
    assert "/flower/" not in printed


def test_pages_are_not_asked_for_where_nginx_hides_none(live: Host, answers: Answers) -> None:
    deploy(live)
    assert "pages_below" not in [question for question, *_ in answers.asked]


def test_a_process_that_has_reached_its_memory_limit_is_named(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also one of the old release, before it ends."""
    unit = live.worker_units(OLD)[0]
    states = [ProcessState(f"shop-web@{NEW}", "active", 0), ProcessState(unit, "active", 0, memory_kills=2)]
    monkeypatch.setattr(manager, "states", lambda: [state for state in states if state.unit in manager.running])
    assert deploy(live) == 0
    assert f"Warning: {unit} has reached its memory limit: the kernel has killed 2" in capsys.readouterr().out


@pytest.mark.parametrize("was_built", [False, True])
@pytest.mark.parametrize(("script", "warned"), [("sleep 0.3", False), ("exit 1", True), ("exec sleep 60", True)])
def test_a_release_is_on_disk_before_the_switch(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any,
    script: str, warned: bool, was_built: bool,
) -> None:  # fmt: skip
    """With its configuration, which may be on another disk. A sync that fails or hangs only warns."""
    program, seen = tmp_path / "sync", tmp_path / "seen"
    monkeypatch.setattr(build, "SYNC", str(program))
    monkeypatch.setattr(build, "SYNC_SECONDS", 0.5 if "exec" in script else 60)
    now = f'echo "$2 $3 $(basename "$(readlink {live.settings.current})")" >{seen}'
    program.write_text(f"#!/bin/sh\n{script if warned else f'{script}; {now}'}\n")
    program.chmod(0o755)
    if was_built:
        make_release(live, NEW)
    assert deploy(live) == 0
    assert live.current_release() == NEW
    assert ("may not be on disk yet" in capsys.readouterr().out) is warned
    assert warned or seen.read_text() == f"{live.path(NEW)} {live.settings.configurations / NEW} {OLD}\n"


@pytest.mark.parametrize("text", ["", "\0" * 40, '{"id": '], ids=["empty", "zeros", "cut"])
def test_a_release_that_a_power_failure_cut_short_is_built_again(
    live: Host, manager: Manager, answers: Answers, text: str
) -> None:
    for release in (OLD, NEW):
        make_release(live, release)
        (live.path(release) / "build.json").write_text(text)
    assert live.facts(OLD) == {}
    assert status(live)["versions"] == {}
    assert deploy(live) == 0
    assert live.facts(NEW)["id"] == NEW
    assert manager.running == set(live.units(NEW))


# --- The summary


@pytest.mark.parametrize("key", ["requeued", OLD_REQUEUED])
def test_the_summary_counts_tasks(live: Host, answers: Answers, capsys: Any, key: str) -> None:
    """Workers of an earlier version write another key."""
    (live.path(OLD) / "run").mkdir()
    (live.path(OLD) / "run/default.json").write_text(f'{{"held": 5, "finished": 3, "{key}": 1}}')
    answers.override["requeue_unacknowledged"] = {"requeued": 2}
    deploy(live)
    assert "3 finished, 3 requeued, 1 lost" in capsys.readouterr().out


@pytest.mark.parametrize(("plain", "warned"), [(False, True), (True, False)])
def test_a_worker_without_summary_was_killed_unless_it_never_writes_one(
    live: Host, answers: Answers, capsys: Any, plain: bool, warned: bool
) -> None:
    mark = live.path(OLD) / "build.json"
    mark.write_text(mark.read_text().replace("{", f'{{"plain_workers": {str(plain).lower()}, ', 1))
    assert deploy(live) == 0
    assert ("was killed before it had finished" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(
    ("beat", "runs", "ended", "warned"),
    [(True, False, False, True), (True, True, True, True), (True, True, False, False), (False, False, False, False)],
)
def test_a_beat_that_dies_at_once_is_reported(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any,
    beat: bool, runs: bool, ended: bool, warned: bool,
) -> None:  # fmt: skip
    live.settings = dataclasses.replace(live.settings, beat=beat)
    monkeypatch.setattr(preflight, "beat_processes", lambda user: [])
    monkeypatch.setattr(manager, "beat_runs", lambda: runs)
    manager.ended = ["shop-beat"] if ended else []
    assert deploy(live) == 0
    assert ("Beat does not keep running" in (output := capsys.readouterr().out)) is warned
    assert ("shopctl logs beat" in output) is warned


def test_what_starts_after_the_switch_is_watched_as_long_as_the_others(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    live.settings = dataclasses.replace(live.settings, bake=1)
    restarted: list[float] = []
    monkeypatch.setattr(manager, "restart_beat", lambda release: restarted.append(time.monotonic()))

    def failed(units: list[str]) -> list[str]:
        """It fails half a second after its start."""
        return units if "shop-beat" in units and time.monotonic() > restarted[0] + 0.5 else []

    monkeypatch.setattr(manager, "failed", failed)
    assert deploy(live) == 0
    assert "Beat does not keep running" in capsys.readouterr().out


def test_beat_that_dies_while_it_loads_is_a_warning_however_long_that_takes(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    live.settings = dataclasses.replace(live.settings, health_check_timeout=600)
    manager.state_of_beat = None
    # That of the previous beat does not count.
    state = beat.state_file(live.settings)
    state.parent.mkdir(parents=True)
    state.touch()
    looks = iter([[], [], []])
    monkeypatch.setattr(manager, "failed", lambda units: next(looks, units) if "shop-beat" in units else [])
    assert deploy(live) == 0
    assert "Beat does not keep running" in capsys.readouterr().out


def test_beat_that_never_begins_is_a_warning(live: Host, manager: Manager, answers: Answers, capsys: Any) -> None:
    live.settings = dataclasses.replace(live.settings, health_check_timeout=1)
    manager.state_of_beat = None
    assert deploy(live) == 0
    assert "Warning: Beat has not read its schedule within 1 s. Its log: shopctl logs beat" in capsys.readouterr().out


def test_plain_beat_says_nothing_of_itself(live: Host, manager: Manager, answers: Answers, capsys: Any) -> None:
    manager.state_of_beat = None
    answers.override["check"] = {"versions": {}, "warnings": ["Celery 9 is not tested"]}
    assert deploy(live) == 0
    assert "has not read its schedule" not in capsys.readouterr().out


@pytest.mark.parametrize("action", ["deploy", "rollback"])
def test_tasks_in_a_queue_that_no_worker_consumes_are_named(
    live: Host, answers: Answers, capsys: Any, action: str
) -> None:
    if action == "rollback":
        make_release(live, NEW)
    answers.override["unconsumed"] = {"legacy": 5}
    assert deploy(live, NEW, action) == 0
    assert ("unconsumed", "core", "default") in answers.asked
    output = capsys.readouterr().out
    assert "Warning: 5 tasks wait in the queue legacy, which no worker consumes." in output
    assert "shopctl celery purge -Q legacy" in output


# --- Failure


@pytest.mark.parametrize("question", ["check", "migrations", "ping", "smoke_test"])
def test_a_failure_leaves_the_old_processes_as_they_were(
    live: Host, manager: Manager, answers: Answers, capsys: Any, question: str
) -> None:
    answers.override[question] = failure(question)
    assert deploy(live) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    assert not live.path(NEW).exists()
    step = {"migrations": "check", "ping": "health_check"}.get(question, question)
    output = capsys.readouterr().out
    assert f"Deployment of {NEW} failed at step {step}: no {question}\n" in output
    assert f"Release {OLD} is live, as before." in output
    assert answers.resumed(OLD) == (question == "smoke_test")


def test_failing_pages_after_the_switch_revert_to_the_old_release(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(health, "problem", lambda *_: "status 500" if live.current_release() == NEW else "")
    assert deploy(live) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    assert last_outcome(live).startswith("failed at bake")
    assert f"Traffic switched back to {OLD}." in capsys.readouterr().out


@pytest.mark.parametrize(("silent", "status"), [(1, 0), (2, 1)])
def test_one_timeout_after_the_switch_does_not_revert(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, silent: int, status: int
) -> None:
    left = ["no answer (timed out)"] * silent
    monkeypatch.setattr(health, "problem", lambda *_: left.pop() if left and live.current_release() == NEW else "")
    assert deploy(live) == status


def test_a_failure_while_draining_is_completed_by_the_next_run(live: Host, answers: Answers) -> None:
    answers.override["requeue_unacknowledged"] = failure("broker")
    assert deploy(live) == 1
    assert live.current_release() == NEW
    assert unfinished(live)["step"] == "drain"
    answers.override.clear()
    assert deploy(live) == 0
    assert not unfinished(live)


def test_an_unexpected_error_is_reverted(live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["check"] = OSError("No space left on device")
    assert deploy(live) == 1
    assert live.current_release() == OLD
    assert "No space left on device" in capsys.readouterr().out


def test_a_signal_does_not_interrupt_the_revert(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(*_: object) -> None:
        raise ReleaseError("it was cancelled.")

    def stop(units: list[str], *, wait: bool = True) -> None:
        if live.units(NEW)[0] in units:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        manager.running -= set(units)

    signal.signal(signal.SIGTERM, cancel)
    answers.override["smoke_test"] = failure("smoke test")
    monkeypatch.setattr(manager, "stop", stop)
    assert deploy(live) == 1
    assert manager.running == set(live.units(OLD))
    assert not unfinished(live)


def test_a_full_disk_does_not_prevent_the_revert(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the log nor the outcome can be written."""

    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    answers.override["smoke_test"] = failure("smoke test")
    full = io.StringIO()
    monkeypatch.setattr(full, "write", no_space, raising=False)
    monkeypatch.setattr(record.Record, "remember", no_space)
    with contextlib.redirect_stdout(full):
        assert deploy(live) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    # The next run reverts it again.
    assert unfinished(live)["release"] == NEW


def test_a_worker_that_does_not_confirm_to_consume_again_is_restarted(
    live: Host, manager: Manager, answers: Answers, capsys: Any
) -> None:
    answers.override["smoke_test"] = {"silent": ["default"]}
    answers.override["consumers"] = {"silent": ["it"]}
    assert deploy(live) == 1
    assert manager.running == set(live.units(OLD))
    assert "does not answer and is restarted" in capsys.readouterr().out


def test_a_newer_schema_is_refused_unless_forced(live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["migrations"] = {"default": SCHEMA | {"unknown": ["shop.0009_later"]}}
    assert deploy(live) == 1
    assert "shop.0009_later" in capsys.readouterr().out
    assert deploy(live, force=True) == 0
    assert live.current_release() == NEW


def test_a_second_beat_stops_the_deployment(live: Host, answers: Answers, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(preflight, "beat_processes", lambda user: ["12", "34"])
    assert deploy(live) == 1
    assert "processes 12, 34" in capsys.readouterr().out


def test_a_beat_on_a_host_that_is_not_the_scheduler_stops_the_deployment(
    live: Host, manager: Manager, answers: Answers, monkeypatch: Any, capsys: Any
) -> None:
    live.settings = dataclasses.replace(live.settings, beat=False)
    monkeypatch.setattr(manager, "beat_runs", lambda: False)
    assert deploy(live) == 1
    assert "where none should (the group scheduler, app_beat)" in capsys.readouterr().out


def test_beat_moves_to_another_host_and_back(live: Host, manager: Manager, answers: Answers, monkeypatch: Any) -> None:
    """It stops where it does not belong any more; a failure starts it again."""
    runs = [True]
    live.settings = dataclasses.replace(live.settings, beat=False)
    monkeypatch.setattr(manager, "beat_runs", lambda: runs[-1])
    monkeypatch.setattr(manager, "stop_beat", lambda: runs.append(False))
    monkeypatch.setattr(manager, "restart_beat", lambda release: runs.append(release == OLD))
    answers.override["smoke_test"] = failure("smoke test")
    assert deploy(live) == 1
    assert runs == [True, False, True]


# --- Rollback


def test_a_rollback_switches_to_the_old_release(live: Host, manager: Manager, answers: Answers) -> None:
    deploy(live)
    assert deploy(live, OLD, "rollback") == 0
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    assert record.history(live.settings)[-1]["action"] == "rollback"


def test_a_rollback_starts_pages_first_and_workers_after_the_switch(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(live)
    started: list[tuple[str, str]] = []
    start = manager.start
    monkeypatch.setattr(
        manager, "start",
        lambda units, **options: started.extend((unit, live.current_release()) for unit in units) or start(units),
    )  # fmt: skip
    deploy(live, OLD, "rollback")
    assert started == [(live.web_units(OLD)[0], NEW), (live.worker_units(OLD)[0], OLD)]


def test_a_failing_rollback_is_reverted(live: Host, manager: Manager, answers: Answers) -> None:
    deploy(live)
    answers.override["smoke_test"] = failure("smoke test")
    assert deploy(live, OLD, "rollback") == 1
    assert live.current_release() == NEW
    assert manager.running == set(live.units(NEW))
    assert answers.resumed(NEW)
    assert live.path(OLD).exists()


def test_a_rollback_behind_the_database_is_refused_unless_forced(live: Host, answers: Answers) -> None:
    deploy(live)
    answers.override["migrations"] = {"default": SCHEMA | {"unknown": ["shop.0009_later"]}}
    assert deploy(live, OLD, "rollback") == 1
    assert live.current_release() == NEW
    assert deploy(live, OLD, "rollback", force=True) == 0


def test_a_missing_release_is_named(live: Host, answers: Answers, capsys: Any) -> None:
    assert deploy(live, "gone-9", "rollback") == 1
    assert f"gone-9 is not on this host; available: {OLD}" in capsys.readouterr().out


# --- Output of a command that failed


@pytest.mark.parametrize(("lines", "kept"), [(45, True), (deployment.SHOWN_LINES, False)])
def test_a_long_output_is_shown_from_its_end_and_kept_whole(
    live: Host, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, lines: int, kept: bool
) -> None:
    output = "".join(f"line {number}.\n" for number in range(1, lines + 1))

    def fail(*arguments: Any) -> None:
        raise application.failure("npm run build", 1, output, 0)

    monkeypatch.setattr(build, "make_environment", fail)
    log = tmp_path / "deploy.log"
    assert deploy(live, log=str(log)) == 1
    said = capsys.readouterr().out
    assert "npm run build failed with exit status 1:" in said
    assert f"\nline {lines}.\n" in said
    assert ("\nline 1.\n" in said) is not kept, "the end is shown"
    file = log.with_suffix(".output")
    assert (f"The whole output is in {file}." in said) is kept
    assert (file.exists() and file.read_text() == output) is kept
    if kept:
        assert file.stat().st_mode & 0o777 == 0o640, "it may hold what the project prints"
