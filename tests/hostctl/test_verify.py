"""What of the current release does not run: `status` says so, and deploying it again starts it or fails."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from typing import Any

import pytest

from hostctl import cli, status, upgrade
from hostctl.deploy import health, record, verify
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import BusyError, ReleaseError, Worker
from tests.hostctl.fakes import OLD, Answers, Manager, failure, make_release, node

# Before `quick`.
SECONDS = verify.ANSWER_SECONDS
WEB, WORKER = f"shop-web@{OLD}", f"shop-worker-default@{OLD}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(verify, "SETTLE", 0.1)


def now() -> int:
    return int(time.time())


def found(host: Host) -> dict[str, str]:
    return {one["process"]: one["text"] for one in status.problems(host)}


# --- status


def test_a_release_that_runs_has_no_problem(live: Host, manager: Manager) -> None:
    assert status.problems(live) == []
    # Restarted long ago, or once and it keeps running since.
    manager.state = {
        WEB: ProcessState(WEB, "active", 9, now() - 2 * status.STEADY),
        WORKER: ProcessState(WORKER, "active", 1, now() - status.SETTLE - 1),
    }
    assert status.problems(live) == []


def test_a_restarted_process_is_steady_before_a_verification_gives_up() -> None:
    assert SECONDS > status.SETTLE


def test_a_host_without_a_release_has_no_problem(host: Host) -> None:
    assert status.problems(host) == []


@pytest.mark.parametrize(
    ("state", "restarts", "ago", "text"),
    [
        ("failed", 0, 600, r"^failed since 20\d\d-\S+ \d\d:\d\d UTC$"),
        ("inactive", 0, 0, r"^inactive$"),
        ("deactivating", 0, 1, r"^deactivating since"),
        ("active", 7, 20, r"^active since \S+ \S+ UTC, restarted 7 times$"),
        ("active", 1, 3, r"^active since \S+ \S+ UTC, restarted 1 time$"),
        ("activating", 2, 1, r"^activating since \S+ \S+ UTC, restarted 2 times$"),
    ],
)
@pytest.mark.parametrize("unit", [WEB, WORKER, "shop-beat"])
def test_each_process_that_does_not_run_is_named(
    live: Host, manager: Manager, unit: str, state: str, restarts: int, ago: int, text: str
) -> None:
    manager.state = {unit: ProcessState(unit, state, restarts, now() - ago if ago else 0)}
    [problem] = status.problems(live)
    assert problem["unit"] == unit
    assert re.search(text, problem["text"])


def test_pages_are_asked_on_the_socket(live: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "problem", lambda *arguments: "status 500 instead of 200")
    assert found(live) == {"web": "health check /healthz/: status 500 instead of 200"}
    answers = iter(["no answer (timed out)", ""])
    monkeypatch.setattr(health, "problem", lambda *arguments: next(answers))
    assert found(live) == {}


def test_the_exit_status_says_that_something_does_not_run(
    live: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: live.settings)
    monkeypatch.setattr(cli, "Host", lambda settings: live)
    monkeypatch.setattr(upgrade, "upgrade", lambda settings: None)
    assert cli.main(["status"]) == 0
    assert "problem" not in capsys.readouterr().out
    manager.stop([WORKER])
    assert cli.main(["status"]) == 4
    assert "problem     worker-default: inactive" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["problems"] == [
        {"process": "worker-default", "unit": WORKER, "text": "inactive"}
    ]


# --- the current release again


def test_a_release_that_runs_is_left_alone(live: Host, manager: Manager, answers: Answers) -> None:
    assert verify.verify(live) == []
    assert ("consumed", "core", 0.1, {node(OLD): ["default"]}) in answers.asked
    assert manager.beat == []


@pytest.mark.parametrize("unit", [WEB, WORKER])
def test_what_does_not_run_is_started(live: Host, manager: Manager, answers: Answers, unit: str) -> None:
    manager.stop([unit])
    assert verify.verify(live) == [f"Started, since they did not run: {live.process_name(unit)}."]
    assert unit in manager.running
    assert verify.verify(live) == []


def test_workers_that_were_started_have_the_time_of_a_deployment_to_answer(
    live: Host, manager: Manager, answers: Answers
) -> None:
    manager.stop([WORKER])
    verify.verify(live)
    seconds = live.settings.health_check_timeout
    assert ("consumed", "core", seconds, {node(OLD): ["default"]}) in answers.asked


def test_beat_is_started(live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "beat_runs", lambda: bool(manager.beat))
    assert verify.verify(live) == ["Started, since they did not run: beat."]
    assert manager.beat == ["restart"]


def test_what_ends_soon_after_its_start_is_a_failure(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.settings = dataclasses.replace(live.settings, health_check_timeout=1)
    manager.stop([WORKER])
    ended = [{"process": "worker-default", "unit": WORKER, "text": "activating"}]
    looks = iter([[]])
    monkeypatch.setattr(verify, "problems", lambda host: next(looks, ended))
    with pytest.raises(ReleaseError, match="worker-default: activating"):
        verify.verify(live)


def test_nothing_is_started_during_a_deployment(live: Host, manager: Manager, answers: Answers) -> None:
    book = record.Record(live.settings)
    book.hold()
    manager.stop([WORKER])
    with pytest.raises(BusyError):
        verify.verify(live)
    book.release()
    verify.verify(live)


def refused(host: Host) -> str:
    with pytest.raises(ReleaseError) as error:
        verify.verify(host)
    return str(error.value)


def test_a_release_that_keeps_ending_fails_and_names_the_rollback(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.state = {WEB: ProcessState(WEB, "activating", 30, now())}
    message = refused(live)
    assert "restarted 30 times" in message
    assert f"Release {OLD} is live, but does not run: web. On the server, `shopctl logs web` shows why." in message
    assert message.endswith("There is no earlier release to roll back to: fix the project and deploy it.")
    make_release(live, "older-0", age=600)
    message = refused(live)
    assert message.endswith("To roll back to older-0: playbooks/rollback.yml, or `shopctl rollback` on the server.")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"silent": [node(OLD)]}, "worker-default: no answer within"),
        ({"missing": {node(OLD): ["default"]}}, "worker-default: does not consume default"),
    ],
)
def test_workers_that_are_silent_or_idle_fail_although_pages_answer(
    live: Host, answers: Answers, answer: dict[str, Any], text: str
) -> None:
    answers.override["consumed"] = answer
    message = refused(live)
    assert text in message
    assert "`shopctl logs worker-default` shows why" in message


def test_a_worker_that_answers_between_its_tasks_only_is_not_asked(live: Host, answers: Answers) -> None:
    live.settings = dataclasses.replace(live.settings, workers=[Worker("default", ["default"], pool="solo")])
    assert verify.verify(live) == []
    assert answers.asked == []


def test_an_application_that_cannot_be_asked_fails(live: Host, answers: Answers) -> None:
    answers.override["consumed"] = failure("answer")
    assert "worker: no answer" in refused(live)


def test_a_unit_that_cannot_be_started_fails(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(units: list[str]) -> None:
        raise ReleaseError("systemctl start: Job failed.")

    manager.stop([WEB])
    monkeypatch.setattr(manager, "start", start)
    message = refused(live)
    assert message.startswith("Started, since they did not run: web.\nsystemctl start: Job failed.\nweb: inactive")
