"""Queues of the application and queues of the workers, before anything is migrated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hostctl.deploy import queues
from hostctl.host import Host
from hostctl.settings import Settings, Worker
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, last_outcome, make_release

CELERY = {"queues": {"celery": ["the task notes.tasks.add"]}, "default": "celery"}


def with_workers(live: Host, *workers: Worker, **more: Any) -> Host:
    """Return the host as the next run sees it: site.yml has written other workers."""
    named = sorted({queue for worker in workers for queue in worker.queues})
    host = Host(dataclasses.replace(live.settings, workers=list(workers), queues=named, **more))
    host.manager = live.manager
    folder = host.settings.next_configuration / "systemd"
    folder.mkdir(exist_ok=True)
    for worker in workers:
        text = f"--queues {','.join(worker.queues) or queues.PLACEHOLDER} --pool prefork\n"
        (folder / f"shop-worker-{worker.name}@.service").write_text(text)
    return host


def recorded(settings: Settings, release: str) -> dict[str, list[str]]:
    return {worker.name: worker.queues for worker in settings.of(release).workers}


def test_queue_without_a_worker_is_refused_before_the_migration(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.override["queues"] = CELERY
    assert deploy(live) == 1
    assert last_outcome(live).startswith("failed at check: no worker consumes these queues")
    said = capsys.readouterr().out
    assert "celery (the task notes.tasks.add)" in said
    assert "\n  - {name: main, queues: [celery], pool: prefork, concurrency: 1}\n" in said
    assert "\napp_external_queues: [celery]" in said
    assert not [question for question, *_ in answers.asked if question in ("migrations", "consumers")]
    assert live.current_release() == OLD


def test_line_to_write_has_a_free_name_and_keeps_other_external_queues(live: Host) -> None:
    settings = dataclasses.replace(live.settings, workers=[Worker("main", ["a"])], external_queues=["billing"])
    text = queues.refusal(settings, {"b": ["one", "two", "three", "four", "five"], "c": ["one"]})
    assert "{name: more, queues: [b, c], " in text
    assert "app_external_queues: [billing, b, c]" in text
    assert "b (one, two, three and 2 more); c (one)" in text


def test_queues_of_workers_elsewhere_need_none(live: Host, answers: Answers) -> None:
    answers.override["queues"] = CELERY | {"queues": {"billing": ["task_routes"]}, "default": "default"}
    assert deploy(with_workers(live, Worker("default", ["default"]), external_queues=["billing"])) == 0


@pytest.mark.parametrize("consumed", [["celery"], ["celery", "mail"]])
def test_celery_worker_of_a_process_without_queues_consumes_those_of_celery(
    live: Host, answers: Answers, consumed: list[str]
) -> None:
    found = {"queues": {"celery": ["the task notes.tasks.add"], "mail": ["task_queues"]}, "default": "celery"}
    answers.override["queues"] = found | {"without_option": consumed}
    workers = [Worker("main", ["default", "mail"])] if consumed == ["celery"] else [Worker("main", ["default"])]
    host = with_workers(live, *workers, process_without_queues=True)
    assert deploy(host) == 0
    assert host.settings.of(NEW).external_queues == consumed, "recorded, for the summary of a later rollback"


def test_worker_without_queues_leaves_those_of_a_process_alone(live: Host, answers: Answers) -> None:
    queues = {"celery": ["the task notes.tasks.add"], "mail": ["task_routes"]}
    answers.override["queues"] = {"queues": queues, "default": "celery", "without_option": ["celery"]}
    host = with_workers(live, Worker("main"), process_without_queues=True)
    assert deploy(host) == 0
    assert recorded(host.settings, NEW) == {"main": ["mail"]}


def test_queues_that_nothing_is_sent_to_are_fine(live: Host, answers: Answers) -> None:
    assert deploy(with_workers(live, Worker("default", ["default", "legacy"]))) == 0


def test_worker_without_queues_consumes_what_no_other_does(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.override["queues"] = {"queues": {queue: ["task_routes"] for queue in ("io", "mail", "billing")}}
    host = with_workers(live, Worker("main"), Worker("io", ["io"]), external_queues=["billing"])
    assert deploy(host) == 0
    wanted = {"main": ["default", "mail"], "io": ["io"]}
    assert recorded(host.settings, NEW) == wanted
    assert host.settings.of(NEW).queues == ["default", "io", "mail"]
    assert json.loads((host.path(NEW) / "build.json").read_text())["workers"] == wanted
    folder = host.settings.configuration(NEW) / "systemd"
    assert (folder / "shop-worker-main@.service").read_text() == "--queues default,mail --pool prefork\n"
    # What a restart, a rollback and the next deployment see.
    assert host.queues(f"shop-worker-main@{NEW}") == ["default", "mail"]
    [smoke_test] = [arguments for question, *arguments in answers.asked if question == "smoke_test"]
    assert smoke_test[4:] == ["default", "io", "mail"]
    assert "Queues of the worker without `queues` in app_workers: default, mail." in capsys.readouterr().out
    # The old worker's queue has a new one.
    assert ("consumers", "core", "cancel", "default") in [asked[:4] for asked in answers.asked]


def test_worker_without_queues_consumes_those_that_only_calls_name(live: Host, answers: Answers) -> None:
    places = ["notes/views.py:7"]
    answers.override["queues"] = {"in_code": {"mail": places, "io": places, "billing": places}}
    host = with_workers(live, Worker("main"), Worker("io", ["io"]), external_queues=["billing"])
    assert deploy(host) == 0
    assert recorded(host.settings, NEW) == {"main": ["default", "mail"], "io": ["io"]}
    folder = host.settings.configuration(NEW) / "systemd"
    assert (folder / "shop-worker-main@.service").read_text() == "--queues default,mail --pool prefork\n"
    [asked] = [arguments for question, *arguments in answers.asked if question == "queues"]
    assert asked[-1] == str(host.path(NEW))


def test_queue_of_a_call_that_no_worker_can_have_is_a_warning(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.override["queues"] = {"in_code": {"front desk": ["notes/views.py:7"]}}
    host = with_workers(live, Worker("main"))
    assert deploy(host) == 0
    assert host.queues(f"shop-worker-main@{NEW}") == ["default"]
    assert "Warning: The queue 'front desk' (notes/views.py:7) cannot be given to a worker" in capsys.readouterr().out


def test_release_that_is_built_is_asked_again(live: Host, answers: Answers) -> None:
    make_release(live, NEW)
    answers.override["queues"] = {"queues": {"mail": ["the periodic task newsletter"]}}
    host = with_workers(live, Worker("main"))
    assert deploy(host) == 0
    assert host.queues(f"shop-worker-main@{NEW}") == ["default", "mail"]


def test_worker_without_queues_that_has_none_left_is_refused(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(with_workers(live, Worker("main"), Worker("default", ["default"]))) == 1
    assert "Remove it, or name its queues." in capsys.readouterr().out


def test_name_that_no_command_line_takes_is_refused(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.override["queues"] = {"queues": {"a b": ["task_queues"]}}
    assert deploy(with_workers(live, Worker("main"))) == 1
    assert "its name must match ^" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "warning"),
    [
        ({"default": "celery"}, "No worker consumes the queue celery (task_default_queue)"),
        ({"broadcast": ["reload"]}, "No worker consumes the broadcast queue reload"),
        (
            {"in_code": {"mail": ["notes/views.py:7"]}},
            "No worker consumes the queue mail (notes/views.py:7): what is sent there never runs.",
        ),
        ({"warnings": ["Where the task x goes is not known"]}, "Where the task x goes is not known"),
    ],
)
def test_what_may_be_wrong_is_a_warning(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str], found: dict[str, Any], warning: str
) -> None:
    answers.override["queues"] = found
    assert deploy(live) == 0
    assert f"Warning: {warning}" in capsys.readouterr().out


def test_host_without_workers_asks_nothing(live: Host, answers: Answers) -> None:
    host = with_workers(live)
    assert deploy(host) == 0
    assert not [question for question, *_ in answers.asked if question == "queues"]


def test_definitions_of_supervisor_get_the_queues(tmp_path: Path) -> None:
    (tmp_path / "supervisor").mkdir()
    file = tmp_path / "supervisor/release.conf"
    file.write_text(f"--queues {queues.PLACEHOLDER}")
    assert queues.definitions(tmp_path) == [file]
    file.write_text("--queues io")
    assert queues.definitions(tmp_path) == []
