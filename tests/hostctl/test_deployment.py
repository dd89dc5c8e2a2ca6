"""The program that rolls releases out: its parts, and its transaction with processes and application stood in for."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import io
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILES = Path(__file__).parents[2] / "hostctl"
from hostctl import cli
from hostctl.deploy import build, detach, health, record
from hostctl.deploy import deployment as rollout
from hostctl.host import Host
from hostctl.processes import systemd
from hostctl.settings import BusyError, ReleaseError, Settings, Worker, read_environment

OLD, NEW = "old-1", "new-2"


class Manager:
    """Stands in for systemd: remembers which units run."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.ended: list[str] = []
        self.beat: list[str] = []

    def alive(self) -> dict[str, str]:
        return {unit: unit.partition("@")[2] for unit in self.running}

    def states(self) -> list[Any]:
        return []

    def failed(self, units: list[str]) -> list[str]:
        return [unit for unit in units if unit in self.ended]

    def start(self, units: list[str], *, wait: bool = True) -> None:
        self.running |= set(units)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        self.running -= set(units)

    def beat_runs(self) -> bool:
        return True

    def restart_beat(self) -> None:
        self.beat.append("restart")

    def stop_beat(self) -> None:
        self.beat.append("stop")

    def last_words(self, units: list[str], lines: int = 25) -> str:
        return "the last words"

    def prepare(self, release: str) -> None:
        pass

    forget = prepare

    def take_up(self) -> None:
        pass

    tidy = take_up


class Answers:
    """Stands in for the application's answers: `say` holds what differs from a healthy one."""

    def __init__(self) -> None:
        self.say: dict[str, Any] = {}
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, question: str, *arguments: Any, seconds: float = 0) -> Any:
        self.asked.append((question, *arguments))
        if isinstance(self.say.get(question), Exception):
            raise self.say[question]
        healthy = {
            "check": {"versions": {}},
            "migrations": {"pending": [], "known": [], "unknown": [], "warnings": [], "idle": []},
            "ping": {"silent": []},
            "consumers": {"silent": []},
            "probe": {"silent": [], "other": {}, "busy": []},
            "rescue": {"restored": 0},
            "depths": {},
            "set_aside": {"tasks": {}},
            "periodic": {"unknown": []},
        }
        return healthy[question] | self.say.get(question, {})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "shop/releases").mkdir(parents=True)
    (tmp_path / "shop/incoming").mkdir()
    workers = [Worker("default", ["default"])]
    return Settings(
        name="shop", domain="shop.example.org", wsgi_app="core.wsgi", celery_app="core", workers=workers, queues=["default"],
        bake=0, keep_releases=2, health_check_timeout=1, root=tmp_path, config=tmp_path / "etc",
    )  # fmt: skip


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def host(settings: Settings, manager: Manager) -> Host:
    host = Host(settings)
    host.manager = manager
    return host


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(
        rollout.Application, "ask", lambda self, *arguments, **options: answers.ask(*arguments, **options)
    )
    monkeypatch.setattr(rollout.Application, "hook", lambda self, name: [])
    return answers


def built(host: Host, release: str, age: int = 0) -> None:
    """A release's folder as a rollout leaves it."""
    folder = host.path(release)
    folder.mkdir(exist_ok=True)
    (folder / "build.json").write_text(
        json.dumps({"id": release, "versions": {}, "workers": {"default": ["default"]}})
    )
    os.utime(folder / "build.json", (time.time() - age, time.time() - age))


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A rollout that puts things back ignores signals; the tests after it do not."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def serving(host: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which OLD serves, and where building and health checks succeed."""
    built(host, OLD, age=60)
    host.switch(OLD)
    manager.start(host.units(OLD))

    def unpack(host: Host, release: str, archive: Path) -> None:
        host.path(release).mkdir(exist_ok=True)

    monkeypatch.setattr(build, "unpack", unpack)
    monkeypatch.setattr(build, "make_environment", lambda host, release: None)
    monkeypatch.setattr(build, "check_room", lambda host: None)
    monkeypatch.setattr(build, "SYNC", "true", raising=False)
    monkeypatch.setattr(rollout, "health_problem", lambda *arguments: "")
    monkeypatch.setattr(
        rollout, "answers", lambda settings, path: host.web_units(path.parents[1].name)[0] in manager.running
    )
    monkeypatch.setattr(rollout, "wait_until_idle", lambda *arguments, **options: None)
    monkeypatch.setattr(rollout, "beat_processes", lambda user: ["1"])
    return host


def roll(host: Host, release: str = NEW, action: str = "deploy", **more: Any) -> int:
    book = record.Record(host.settings)
    book.hold()
    order = rollout.Order(action, release, "anna", archive=Path("archive"), **more)
    try:
        return rollout.Rollout(host, book, order).run()
    finally:
        os.close(book.handle)


# --- the transaction


def test_a_release_replaces_the_one_before(serving: Host, manager: Manager, answers: Answers) -> None:
    assert roll(serving) == 0
    assert serving.serving() == NEW
    assert manager.running == set(serving.units(NEW))
    assert manager.beat == ["restart"]
    assert record.history(serving.settings)[-1]["outcome"] == "serves"
    assert record.history(serving.settings)[-1]["previous"] == OLD


def test_old_workers_stop_taking_tasks_before_the_switch(serving: Host, answers: Answers) -> None:
    roll(serving)
    asked = [question for question, *_ in answers.asked]
    assert asked.index("ping") < asked.index("consumers") < asked.index("probe") < asked.index("rescue")
    node = f"default.{OLD}@{os.uname().nodename}"
    assert ("consumers", "core", "cancel", "default", node) in answers.asked


@pytest.mark.parametrize("question", ["check", "migrations", "ping", "probe"])
def test_what_fails_leaves_the_old_processes_as_they_were(
    serving: Host, manager: Manager, answers: Answers, capsys: pytest.CaptureFixture[str], question: str
) -> None:
    answers.say[question] = ReleaseError(f"no {question}")
    assert roll(serving) == 1
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))
    assert not serving.path(NEW).exists()
    assert f"no {question}" in capsys.readouterr().out
    gave_back = any(asked[:3] == ("consumers", "core", "add") for asked in answers.asked)
    assert gave_back == (question == "probe")


def test_pages_that_fail_after_the_switch_bring_the_old_release_back(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "health_problem", lambda *_: "status 500" if serving.serving() == NEW else "")
    assert roll(serving) == 1
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))
    assert record.history(serving.settings)[-1]["outcome"].startswith("failed at watch")


@pytest.mark.parametrize(("silent", "ends_as"), [(1, 0), (2, 1)])
def test_one_silence_after_the_switch_is_not_the_end(
    serving: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, silent: int, ends_as: int
) -> None:
    left = ["no answer (timed out)"] * silent
    monkeypatch.setattr(rollout, "health_problem", lambda *_: left.pop() if left and serving.serving() == NEW else "")
    assert roll(serving) == ends_as


def test_what_fails_when_the_old_processes_end_is_taken_up_by_the_next_run(serving: Host, answers: Answers) -> None:
    answers.say["rescue"] = ReleaseError("no broker")
    assert roll(serving) == 1
    assert serving.serving() == NEW
    assert record.Record(serving.settings).unfinished()["step"] == "drain"
    answers.say.clear()
    assert roll(serving) == 0
    assert not record.Record(serving.settings).unfinished()


@pytest.mark.parametrize(
    ("release", "action", "said"), [(NEW, "deploy", True), ("new-1", "deploy", False), (NEW, "rollback", False)]
)
def test_settings_that_stay_when_a_release_fails_are_named(
    serving: Host, answers: Answers, capsys: Any, release: str, action: str, said: bool
) -> None:
    answers.say["probe"] = ReleaseError("no probe")
    if action == "rollback":
        built(serving, release)
    assert roll(serving, release, action) == 1
    output = capsys.readouterr().out
    assert f"Release {OLD} serves, as before." in output
    assert (f"and {OLD} gets them when its processes restart" in output) is said


def test_what_nobody_expected_is_put_back_too(serving: Host, answers: Answers, capsys: Any) -> None:
    answers.say["check"] = OSError("No space left on device")
    assert roll(serving) == 1
    assert serving.serving() == OLD
    assert "No space left on device" in capsys.readouterr().out


def test_a_signal_does_not_stop_what_puts_things_back(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(*_: object) -> None:
        raise ReleaseError("It was cancelled.")

    def stop(units: list[str], *, wait: bool = True) -> None:
        if serving.units(NEW)[0] in units:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        manager.running -= set(units)

    signal.signal(signal.SIGTERM, cancelled)
    answers.say["probe"] = ReleaseError("no probe")
    monkeypatch.setattr(manager, "stop", stop)
    assert roll(serving) == 1
    assert manager.running == set(serving.units(OLD))
    assert not record.Record(serving.settings).unfinished()


def test_a_full_disk_does_not_keep_things_from_being_put_back(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the log nor the outcome can be written."""

    def no_room(*_: object) -> None:
        raise OSError("No space left on device")

    answers.say["probe"] = ReleaseError("no probe")
    full = io.StringIO()
    monkeypatch.setattr(full, "write", no_room, raising=False)
    monkeypatch.setattr(record.Record, "remember", no_room)
    with contextlib.redirect_stdout(full):
        assert roll(serving) == 1
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))
    # The next run undoes it again.
    assert record.Record(serving.settings).unfinished()["release"] == NEW


def test_a_worker_that_cannot_be_asked_to_take_tasks_again_is_restarted(
    serving: Host, manager: Manager, answers: Answers, capsys: Any
) -> None:
    answers.say["probe"] = {"silent": ["default"]}
    answers.say["consumers"] = {"silent": ["it"]}
    assert roll(serving) == 1
    assert manager.running == set(serving.units(OLD))
    assert "does not answer and is restarted" in capsys.readouterr().out


def test_a_database_that_is_ahead_refuses_unless_forced(serving: Host, answers: Answers, capsys: Any) -> None:
    answers.say["migrations"] = {"unknown": ["shop.0009_later"]}
    assert roll(serving) == 1
    assert "shop.0009_later" in capsys.readouterr().out
    assert roll(serving, force=True) == 0
    assert serving.serving() == NEW


def test_the_same_release_again_does_nothing(serving: Host, manager: Manager, answers: Answers) -> None:
    assert roll(serving, OLD) == 0
    assert answers.asked == []
    assert manager.beat == []


def test_a_second_beat_stops_the_rollout(serving: Host, answers: Answers, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(rollout, "beat_processes", lambda user: ["12", "34"])
    assert roll(serving) == 1
    assert "processes 12, 34" in capsys.readouterr().out


def test_a_queue_whose_workers_are_busy_is_no_reason_to_go_back(serving: Host, answers: Answers, capsys: Any) -> None:
    answers.say["probe"] = {"busy": ["default"]}
    assert roll(serving) == 0
    [asked] = [asked for asked in answers.asked if asked[0] == "probe"]
    assert asked[4] == {f"default.{NEW}@{os.uname().nodename}": ["default"]}
    assert "so that the one sent round waits: default." in capsys.readouterr().out


def test_a_beat_where_none_belongs_stops_the_rollout(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: Any, capsys: Any
) -> None:
    serving.settings = dataclasses.replace(serving.settings, beat=False)
    monkeypatch.setattr(manager, "beat_runs", lambda: False)
    assert roll(serving) == 1
    assert "where none belongs" in capsys.readouterr().out


def test_the_report_counts_what_became_of_the_tasks(serving: Host, answers: Answers, capsys: Any) -> None:
    (serving.path(OLD) / "run").mkdir()
    (serving.path(OLD) / "run/default.json").write_text('{"held": 5, "finished": 3, "handed_back": 1}')
    answers.say["rescue"] = {"restored": 2}
    roll(serving)
    assert "3 finished, 3 handed back, 1 lost" in capsys.readouterr().out


@pytest.mark.parametrize("was_built", [False, True])
@pytest.mark.parametrize(("script", "warned"), [("sleep 0.3", False), ("exit 1", True), ("exec sleep 60", True)])
def test_a_release_is_on_the_disk_before_the_switch(
    serving: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any,
    script: str, warned: bool, was_built: bool,
) -> None:  # fmt: skip
    """A sync that fails or hangs only warns."""
    program, seen = tmp_path / "sync", tmp_path / "seen"
    monkeypatch.setattr(build, "SYNC", str(program), raising=False)
    monkeypatch.setattr(build, "SYNC_SECONDS", 0.5 if "exec" in script else 60, raising=False)
    now = f'echo "$2 $(basename "$(readlink {serving.settings.current})")" >{seen}'
    program.write_text(f"#!/bin/sh\n{script if warned else f'{script}; {now}'}\n")
    program.chmod(0o755)
    if was_built:
        built(serving, NEW)
    assert roll(serving) == 0
    assert serving.serving() == NEW
    assert ("may not be on the disk yet" in capsys.readouterr().out) is warned
    assert warned or seen.read_text() == f"{serving.path(NEW)} {OLD}\n"


@pytest.mark.parametrize("text", ["", "\0" * 40, '{"id": '])
def test_a_release_that_a_power_failure_cut_short_is_built_again(
    serving: Host, manager: Manager, answers: Answers, text: str
) -> None:
    for release in (OLD, NEW):
        built(serving, release)
        (serving.path(release) / "build.json").write_text(text)
    assert serving.facts(OLD) == {}
    assert cli.status(serving)["versions"] == {}
    assert roll(serving) == 0
    assert serving.facts(NEW)["id"] == NEW
    assert manager.running == set(serving.units(NEW))


def test_whether_beat_is_to_run_is_told_to_the_check(serving: Host, answers: Answers) -> None:
    roll(serving)
    assert ("check", "core.wsgi", "core", True) in answers.asked
    serving.settings = dataclasses.replace(serving.settings, beat=False)
    roll(serving, "other-3")
    assert ("check", "core.wsgi", "core", False) in answers.asked


@pytest.mark.parametrize(
    ("beat", "runs", "ended", "warned"),
    [(True, False, False, True), (True, True, True, True), (True, True, False, False), (False, False, False, False)],
)
def test_a_beat_that_dies_at_once_is_warned_of(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any,
    beat: bool, runs: bool, ended: bool, warned: bool,
) -> None:  # fmt: skip
    serving.settings = dataclasses.replace(serving.settings, beat=beat)
    monkeypatch.setattr(rollout, "beat_processes", lambda user: [])
    monkeypatch.setattr(manager, "beat_runs", lambda: runs)
    manager.ended = ["shop-beat"] if ended else []
    assert roll(serving) == 0
    assert ("Beat does not keep running" in (output := capsys.readouterr().out)) is warned
    assert ("journalctl -u shop-beat" in output) is warned


def test_a_unit_that_was_started_again_long_ago_has_not_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = {"shop-web@abcd-1": "2", "shop-worker-default@abcd-1": "0"}

    def systemctl(action: str, *arguments: str) -> str:
        blocks = [f"Id={unit}.service\nActiveState=active\nNRestarts={number}\n" for unit, number in restarts.items()]
        return "\n".join(blocks) if action == "show" else ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    manager = systemd.Systemd(settings)
    manager.start(list(restarts))
    assert manager.failed(list(restarts)) == []
    restarts["shop-web@abcd-1"] = "3"
    assert manager.failed(list(restarts)) == ["shop-web@abcd-1"]


def test_a_beat_has_failed_when_it_was_started_again_since(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = "2"

    def systemctl(action: str, *arguments: str) -> str:
        return f"Id=shop-beat.service\nActiveState=active\nNRestarts={restarts}\n" if action == "show" else ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    manager = systemd.Systemd(settings)
    manager.restart_beat()
    assert manager.failed(["shop-beat"]) == []
    restarts = "3"
    assert manager.failed(["shop-beat"]) == ["shop-beat"]


# --- a rollout that was killed


def kill_at(host: Host, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll NEW out, and end without any clean-up when the step begins."""

    def die(self: Any, *_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(rollout.Rollout, step, die)
        with pytest.raises(SystemExit):
            roll(host)


@pytest.mark.parametrize("step", rollout.DEPLOY)
def test_the_next_run_completes_what_was_killed(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kill_at(serving, step, monkeypatch)
    assert record.Record(serving.settings).unfinished()["step"] == step
    assert roll(serving) == 0
    assert serving.serving() == NEW
    assert manager.running == set(serving.units(NEW))
    assert not record.Record(serving.settings).unfinished()


@pytest.mark.parametrize("step", rollout.DEPLOY)
def test_another_release_undoes_what_was_killed(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kill_at(serving, step, monkeypatch)
    assert roll(serving, "other-3") == 0
    assert serving.serving() == "other-3"
    assert manager.running == set(serving.units("other-3"))


def test_the_history_names_what_was_killed(serving: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(serving, "gate", monkeypatch)
    roll(serving)
    entries = record.history(serving.settings)
    assert [entry["outcome"] for entry in entries] == ["broke off at gate", "serves"]
    assert "broke off at gate" in cli.table(entries)


def gave_back(answers: Answers, release: str) -> bool:
    node = f"default.{release}@{os.uname().nodename}"
    return ("consumers", "core", "add", "default", node) in answers.asked


def test_old_workers_take_tasks_again_where_the_run_that_takes_it_up_fails(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(serving, "probe", monkeypatch)
    answers.say["probe"] = {"silent": ["default"]}
    assert roll(serving) == 1
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))
    assert gave_back(answers, OLD)


def test_no_way_back_to_a_release_whose_pages_have_ended(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(serving, "drain", monkeypatch)
    manager.stop(serving.web_units(OLD))
    answers.say["probe"] = {"silent": ["default"]}
    assert roll(serving) == 1
    assert serving.serving() == NEW
    assert set(serving.units(NEW)) <= manager.running


def test_back_to_the_release_before_after_a_kill(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers still run and were told to take no more tasks."""
    kill_at(serving, "probe", monkeypatch)
    assert roll(serving, OLD, "rollback") == 0
    assert gave_back(answers, OLD)
    assert manager.running == set(serving.units(OLD))


def test_what_serves_stays_where_a_killed_run_of_another_is_undone(
    serving: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(serving, "gate", monkeypatch)
    answers.say["probe"] = {"silent": ["default"]}
    assert roll(serving, OLD) == 1
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))


def test_what_workers_were_told_outlasts_a_second_kill(
    serving: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(serving, "switch", monkeypatch)
    kill_at(serving, "recover", monkeypatch)
    assert not gave_back(answers, OLD)
    assert roll(serving, "other-3") == 0
    assert gave_back(answers, OLD)


@pytest.mark.parametrize(
    ("step", "leader", "minutes"),
    [("migrate", False, 360), ("migrate", True, 10), ("check", False, 10), ("gate", False, 10)],
)
def test_who_does_not_migrate_waits_for_the_one_that_does(
    serving: Host, monkeypatch: pytest.MonkeyPatch, step: str, leader: bool, minutes: int
) -> None:
    """Time goes by in leaps, of a minute each."""
    serving.settings = dataclasses.replace(serving.settings, leader=leader)
    rollout.until_file(serving).write_text("")
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 60 * len(slept), sleep=slept.append)
    monkeypatch.setattr(rollout, "time", clock)
    waiting = rollout.Rollout(serving, record.Record(serving.settings), rollout.Order("deploy", NEW, "anna"))
    with pytest.raises(ReleaseError, match=f"Nothing has been heard for {minutes} minutes: another host"):
        waiting.meet(step)
    assert len(slept) == minutes + 1


@pytest.mark.parametrize(
    ("waits_at", "meeting", "reached"),
    [("check", "check", True), ("gate", "check", True), ("check", "gate", False), ("", "check", False),
     ("watch", "end", False), ("gate", "", False)],
)  # fmt: skip
def test_a_host_that_waits_further_on_keeps_nobody_waiting(waits_at: str, meeting: str, reached: bool) -> None:
    assert detach.has_reached({"waits_at": waits_at}, meeting) is reached


@pytest.mark.parametrize(
    ("step", "log", "stopped"),
    [("gate", "mine", True), ("gate", "", True), ("gate", "of another", False), ("drain", "mine", False)],
)
def test_another_host_that_fails_stops_only_what_the_same_run_began(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str, log: str, stopped: bool
) -> None:
    told: list[int] = []
    monkeypatch.setattr(cli.os, "kill", lambda pid, number: told.append(pid))
    book = record.Record(settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log="mine")
    book.step(step)
    assert cli.cancel(settings, log) == 0
    assert bool(told) is stopped


@pytest.mark.parametrize(("log", "passed"), [("mine", "check migrate"), ("of another", "")])
def test_whoever_looks_at_another_rollout_does_not_let_this_one_go_on(host: Host, log: str, passed: str) -> None:
    for name in ("mine", "of another"):
        (host.settings.home / name).touch()
    book = record.Record(host.settings)
    book.begin("deploy", NEW, "anna", log=str(host.settings.home / "mine"))
    until = rollout.until_file(host)
    until.write_text("")
    words = ["follow", "--log", str(host.settings.home / log), "--until", "gate", "--seconds", "0", "--json"]
    cli.follow(host, cli.parse(words))
    assert until.read_text() == passed


# --- rolling back


def test_rolling_back_starts_the_pages_first(serving: Host, manager: Manager, answers: Answers) -> None:
    roll(serving)
    assert roll(serving, OLD, "rollback") == 0
    assert serving.serving() == OLD
    assert manager.running == set(serving.units(OLD))
    assert record.history(serving.settings)[-1]["action"] == "rollback"


def test_rolling_back_further_than_the_database_is_refused(serving: Host, answers: Answers) -> None:
    roll(serving)
    answers.say["migrations"] = {"unknown": ["shop.0009_later"]}
    assert roll(serving, OLD, "rollback") == 1
    assert serving.serving() == NEW
    assert roll(serving, OLD, "rollback", force=True) == 0


def test_a_release_that_is_gone_is_named(serving: Host, answers: Answers, capsys: Any) -> None:
    assert roll(serving, "gone-9", "rollback") == 1
    assert f"gone-9 is not on this host; these are: {OLD}" in capsys.readouterr().out


def test_the_release_before_is_the_one_rolled_out_before(host: Host) -> None:
    for age, release in enumerate(("third-3", "second-2", "first-1")):
        built(host, release, age=60 * age)
    host.switch("third-3")
    assert cli.release_before(host) == "second-2"
    host.switch("second-2")
    assert cli.release_before(host) == "first-1"
    host.switch("first-1")
    with pytest.raises(ReleaseError, match="No release before first-1"):
        cli.release_before(host)


def test_one_host_can_be_asked_for_the_release_before(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cli.Settings, "load", lambda path: host.settings)
    assert cli.main(["previous"]) == 1
    for age, release in enumerate(("second-2", "first-1")):
        built(host, release, age=60 * age)
    host.switch("second-2")
    capsys.readouterr()
    assert cli.main(["previous"]) == 0
    assert capsys.readouterr().out == "first-1\n"


def test_what_was_rolled_back_from_is_not_the_release_before(serving: Host, answers: Answers) -> None:
    roll(serving, "bad-2")
    roll(serving, OLD, "rollback")
    roll(serving, "next-3")
    assert cli.release_before(serving) == OLD


# --- a call, which a lost connection may send again


@pytest.fixture
def launched(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would start a rollout; nothing runs."""
    commands = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.extend([command] if command[0] == "systemd-run" else [])
        return SimpleNamespace(returncode=0 if command[0] == "systemd-run" else 3, stderr="")

    monkeypatch.setattr(detach.subprocess, "run", run)
    monkeypatch.setattr(cli.shutil, "chown", lambda *arguments: None)
    return commands


def send(host: Host, monkeypatch: pytest.MonkeyPatch, *words: str, data: bytes = b"archive") -> int:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    arguments = [*words, "--json", "--seconds", "0"]
    return cli.begin(host, cli.parse(arguments), arguments)


@pytest.mark.parametrize("words", [["deploy", NEW, "-"], ["rollback"]])
def test_the_same_call_again_looks_on(
    host: Host, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str]
) -> None:
    """While it is at work, and after it has ended."""
    for age, release in enumerate(("third-3", "second-2", "first-1")):
        built(host, release, age=60 * age)
    host.switch("third-3")
    call = ["--call", uuid.uuid4().hex]
    send(host, monkeypatch, *words, *call)
    [log] = (host.settings.home / "deployments").glob("*.log")
    log.write_text("It is built.\n")
    book = record.Record(host.settings)
    book.hold()
    book.begin(words[0], "second-2", "anna", log=str(log))
    capsys.readouterr()
    for running in (True, False):
        assert send(host, monkeypatch, *words, *call) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["text"], said["log"], said["running"]) == ("It is built.\n", str(log), running)
        host.switch("second-2")
        if running:
            with pytest.raises(BusyError):
                send(host, monkeypatch, *words, "--call", uuid.uuid4().hex)
            book.end(1, "failed")
            os.close(book.handle)
    assert said["status"] == 1
    assert len(launched) == 1


@pytest.mark.parametrize(("in_step", "release"), [(True, NEW), (True, "other-3"), (False, NEW)])
def test_of_several_hosts_a_rollout_without_its_control_machine_is_led_on_by_the_same_again(
    host: Host, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: Any, in_step: bool, release: str
) -> None:
    host.settings = dataclasses.replace(host.settings, barriers=in_step)
    log = host.settings.home / "log"
    log.write_text("It is built.\n")
    book = record.Record(host.settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log=str(log))
    words = ["deploy", release, "-", "--call", uuid.uuid4().hex]
    if in_step and release == NEW:
        assert send(host, monkeypatch, *words) == 0
        assert json.loads(capsys.readouterr().out)["text"] == "It is built.\n"
    else:
        with pytest.raises(BusyError):
            send(host, monkeypatch, *words)
    assert not launched


def test_a_refused_archive_does_not_stay(
    host: Host, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    book = record.Record(host.settings)
    book.hold()
    with pytest.raises(BusyError):
        send(host, monkeypatch, "deploy", NEW, "-")
    os.close(book.handle)
    assert list((host.settings.home / "incoming").iterdir()) == []
    send(host, monkeypatch, "deploy", NEW, "-")
    assert len(list((host.settings.home / "incoming").iterdir())) == 1


def test_an_archive_that_was_cut_off_begins_nothing(
    host: Host, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["deploy", NEW, "-", "--bytes", "7", "--call", uuid.uuid4().hex]
    with pytest.raises(ReleaseError, match="3 of 7 bytes"):
        send(host, monkeypatch, *words, data=b"arc")
    assert not launched
    send(host, monkeypatch, *words)
    assert len(launched) == 1


# --- its parts


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers as `status` and `body` of its server say, after `delay` seconds."""

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        self.send_response(self.server.status if self.headers["Host"] == "shop.example.org" else 400)
        self.end_headers()
        self.wfile.write(self.server.body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    servers = []

    def serve(status: int = 200, body: bytes = b'{"release": "abcd-1"}', delay: float = 0) -> Path:
        path = tmp_path / "web.sock"
        server = socketserver.ThreadingUnixStreamServer(str(path), Answer)
        server.daemon_threads = True
        server.status, server.body, server.delay = status, body, delay
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return path

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_environment_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "env").write_text('# comment\nPLAIN="a b"\nODD="\\"\\\\ \\$HOME \\` \' # %"\nEMPTY=""\n')
    assert read_environment(tmp_path / "env") == {"PLAIN": "a b", "ODD": "\"\\ $HOME ` ' # %", "EMPTY": ""}


def test_a_release_that_names_itself_is_healthy(settings: Settings, web: Callable[..., Path]) -> None:
    assert health.health_problem(settings, web(), "abcd-1") == ""


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 500}, "status 500"),
        ({"body": b'{"release": "other-2"}'}, "does not name release abcd-1"),
        ({"delay": 3}, "no answer"),
    ],
)
def test_what_is_wrong_with_a_release_is_said(
    settings: Settings, web: Callable[..., Path], answer: dict[str, Any], problem: str
) -> None:
    assert problem in health.health_problem(settings, web(**answer), "abcd-1", timeout=0.3 if "delay" in answer else 5)


def test_a_release_without_a_socket_does_not_answer(settings: Settings, tmp_path: Path) -> None:
    assert "no answer" in health.health_problem(settings, tmp_path / "nothing", "abcd-1")


def test_a_second_rollout_is_refused_and_told_who_is_at_work(settings: Settings) -> None:
    first, second = record.Record(settings), record.Record(settings)
    first.hold()
    first.begin("deploy", "abcd-1", "anna@laptop")
    first.step("migrate")
    with pytest.raises(BusyError, match=r"deploy abcd-1, begun \d+ s ago by anna@laptop, now at the step migrate"):
        second.hold()
    assert second.held()
    os.close(first.handle)
    assert not second.held()
    second.hold()


def test_the_lock_dies_with_its_process(settings: Settings) -> None:
    path = settings.home / "lock"
    lock = f"file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True)"
    code = f"import fcntl, time; {lock}; time.sleep(60)"
    book = record.Record(settings)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BusyError):
            book.hold()
        process.kill()
    book.hold()


def test_the_switch_is_one_rename(settings: Settings, host: Host) -> None:
    assert host.serving() == ""
    for release in ("abcd-1", "efgh-2"):
        built(host, release)
        host.switch(release)
        assert host.serving() == release
    assert settings.current.resolve() == settings.releases / "efgh-2"
    assert not (settings.home / "current.new").exists()


def test_old_releases_go_and_the_one_in_use_stays(settings: Settings, host: Host) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "older-2", "oldest-1")):
        built(host, release, age=age * 60)
    (settings.releases / "half-built").mkdir()
    host.switch("oldest-1")
    host.prune()
    assert {path.name for path in settings.releases.iterdir()} == {"newest-4", "newer-3", "oldest-1"}


def test_a_release_with_a_process_alive_stays(settings: Settings, host: Host, manager: Manager) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "draining-2")):
        built(host, release, age=age * 60)
    host.switch("newest-4")
    manager.start(["shop-worker-default@draining-2"])
    host.prune()
    assert (settings.releases / "draining-2").exists()


@pytest.mark.parametrize(("facts", "said"), [({"bytes": 2**60}, "MiB are free"), ({"files": 2**60}, "inodes")])
def test_no_room_for_another_release_is_said_before_it_is_built(host: Host, facts: dict[str, int], said: str) -> None:
    built(host, OLD)
    host.switch(OLD)
    mark = host.path(OLD) / "build.json"
    mark.write_text(json.dumps({"bytes": 1, "files": 1}))
    build.check_room(host)
    mark.write_text(json.dumps({"bytes": 1, "files": 1} | facts))
    with pytest.raises(ReleaseError, match=said):
        build.check_room(host)


def test_an_environment_is_shared_only_by_what_is_made_from_the_same(host: Host, tmp_path: Path) -> None:
    built(host, OLD)
    (tmp_path / "base.txt").write_text("django==5.2\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("-r base.txt\ncelery==5.6.3\n")
    made_from = build.fingerprint(host.settings, requirements)
    (host.path(OLD) / build.MADE_FROM).write_text(made_from)
    assert build.find_twin(host, made_from) == host.path(OLD) / ".venv"
    (tmp_path / "base.txt").write_text("django==5.3\n")
    assert build.find_twin(host, build.fingerprint(host.settings, requirements)) is None


@pytest.mark.parametrize("line", ["-e .", "./vendored", "shop @ file:///srv/shop", 'source = { directory = "libs/a" }'])
def test_an_environment_with_the_projects_own_files_is_not_shared(host: Host, tmp_path: Path, line: str) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{line}\n")
    assert build.fingerprint(host.settings, requirements) == ""
    assert build.find_twin(host, "") is None


@pytest.mark.parametrize("name", ["../etc", "a", "x" * 65, "with space"])
def test_what_cannot_name_a_release_is_refused(name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["deploy", name, "archive"])
    assert stopped.value.code == 2
