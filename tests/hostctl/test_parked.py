"""Parked messages: `tasks parked`, their number, and deployments while a message ends workers."""

from __future__ import annotations

import io
import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hostctl import cli, parked, upgrade
from hostctl.host import Host
from hostctl.settings import Settings
from hostctl.status import describe, status
from tests.hostctl.fakes import NEW, OLD, Answers, Manager, deploy, last_outcome, node

ENTRY = {"id": "a-1", "task": "shop.crash", "queue": "default", "kind": "returned", "since": 0, "reason": "it \x1b[2J"}


@pytest.fixture(autouse=True)
def program(host: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as root, as shopctl; one message is parked."""
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: host.settings)
    monkeypatch.setattr(cli, "Host", lambda settings: host)
    monkeypatch.setattr(upgrade, "upgrade", lambda settings: None)
    answers.override |= {
        "list_parked": {"messages": [ENTRY]},
        "show_parked": {"messages": [ENTRY | {"body": 42}]},
        "take_parked": {"taken": [ENTRY], "stuck": []},
    }


def run(capsys: Any, *words: str, status: int = 0) -> str:
    assert cli.main(["tasks", "parked", *words]) == status
    output = capsys.readouterr()
    return output.err if status else output.out


# --- Commands


def test_list(live: Host, answers: Answers, capsys: Any) -> None:
    header, line = run(capsys, "list").splitlines()
    assert header.split() == ["parked", "queue", "task", "ID", "reason"]
    # Control characters of a message do not reach the terminal.
    assert line.split()[1:] == ["default", "shop.crash", "a-1", "it", "?[2J"]
    assert json.loads(run(capsys, "list", "--json")) == [ENTRY]
    answers.override["list_parked"] = {"messages": []}
    assert run(capsys, "list") == "No message is parked.\n"
    assert json.loads(run(capsys, "list", "--json")) == []


def test_show(live: Host, answers: Answers, capsys: Any) -> None:
    assert json.loads(run(capsys, "show", "a-1"))["body"] == 42
    assert json.loads(run(capsys, "show", "a-1", "--json"))[0]["body"] == 42
    answers.override["show_parked"] = {"messages": []}
    error = "No parked message has the ID b-2: see shopctl tasks parked list.\n"
    assert run(capsys, "show", "b-2", status=1) == error


def test_requeue(live: Host, answers: Answers, capsys: Any) -> None:
    assert run(capsys, "requeue", "a-1") == "Requeued 1 message.\n"
    assert answers.asked == [("take_parked", "core", "requeue", "a-1")]
    assert json.loads(run(capsys, "requeue", "--all", "--json")) == [ENTRY]
    assert answers.asked[1:] == [("take_parked", "core", "requeue", "")]
    answers.override["take_parked"] = {"taken": [], "stuck": [ENTRY]}
    assert "no queue is bound to the exchange of: a-1" in run(capsys, "requeue", "--all", status=1)
    answers.override["take_parked"] = {"taken": [], "stuck": []}
    assert run(capsys, "requeue", "--all") == "Requeued 0 messages.\n"
    assert "No parked message has the ID b-2" in run(capsys, "requeue", "b-2", status=1)


@pytest.mark.parametrize(("typed", "dropped"), [("y\n", True), ("yes\n", True), ("\n", False), ("", False)])
def test_drop_asks(
    live: Host, answers: Answers, capsys: Any, monkeypatch: pytest.MonkeyPatch, typed: str, dropped: bool
) -> None:
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    cli.main(["tasks", "parked", "drop", "a-1"])
    output = capsys.readouterr()
    assert output.err.startswith("Delete the parked message a-1 for good? [y/N] ")
    assert ("Dropped 1 message." in output.out, "Nothing was deleted." in output.err) == (dropped, not dropped)
    assert bool(answers.asked) is dropped


def test_drop_needs_yes_without_a_terminal(
    live: Host, answers: Answers, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(capsys, "drop", "--all", status=1) == "This deletes every parked message for good: add --yes.\n"
    assert answers.asked == []
    assert run(capsys, "drop", "--all", "--yes") == "Dropped 1 message.\n"
    assert answers.asked == [("take_parked", "core", "drop", "")]


@pytest.mark.parametrize("words", [[], ["requeue"], ["drop", "a-1", "--all"], ["show"], ["list", "a-1"], ["dance"]])
def test_wrong_usage(live: Host, answers: Answers, capsys: Any, words: list[str]) -> None:
    run(capsys, *words, status=2)
    assert answers.asked == []


def test_without_celery_or_a_release(host: Host, settings: Settings, capsys: Any) -> None:
    assert "No release is live" in run(capsys, "list", status=1)
    object.__setattr__(settings, "celery_app", "")
    assert "The application has no Celery" in run(capsys, "list", status=1)


# --- Their number


class Redis(socketserver.StreamRequestHandler):
    """Answers like Redis with a password, a database 3, and seven parked messages."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip().decode())
            known = {("AUTH", "app", "p@ss w"): "+OK", ("SELECT", "3"): "+OK", ("LLEN", "x:celery-parked"): ":7"}
            self.wfile.write(f"{known.get(tuple(words), '-ERR no')}\r\n".encode())


@pytest.fixture
def redis_port() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Redis) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "number"),
    [
        ("redis://app:p%40ss%20w@127.0.0.1:PORT/3", 7),
        ("redis://app:wrong@127.0.0.1:PORT/3", None),
        ("redis://127.0.0.1:1/0", None),
        ("redis://127.0.0.1:port/0", None),
        ("amqp://127.0.0.1", None),
        ("", None),
    ],
)
def test_status_counts_them_without_the_application(live: Host, redis_port: int, url: str, number: int | None) -> None:
    configuration = live.settings.configurations / OLD
    configuration.mkdir(parents=True, exist_ok=True)
    (configuration / "app.env").write_text(f'CELERY_BROKER_URL="{url.replace("PORT", str(redis_port))}"\n')
    facts = live.path(OLD) / "build.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"key_prefix": "x:"}))
    found = status(live)
    assert found["parked"] == number
    line = "parked      7 messages, which no worker runs: see `tasks parked list`"
    assert (line in describe(found)) is bool(number)


def test_the_key_is_that_of_the_workers() -> None:
    from hostctl.in_app import parking

    assert parked.LIST == parking.PARKED


def test_a_deployment_says_how_many_are_parked(live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["parked"] = {"tasks": {"shop.later": 2}, "others": 1}
    assert deploy(live) == 0
    output = capsys.readouterr().out
    assert "Warning: 2 tasks called shop.later are parked until a release with such a task is live." in output
    assert "Warning: 1 message is parked: see shopctl tasks parked list." in output


# --- Deployments while a message ends workers


def test_a_worker_that_a_message_ends_does_not_fail_the_deployment(
    live: Host, manager: Manager, answers: Answers, capsys: Any
) -> None:
    manager.ended = [f"shop-worker-default@{NEW}"]
    answers.override["ended_by_messages"] = {"workers": [node(NEW)]}
    assert deploy(live) == 0
    assert capsys.readouterr().out.count(f"Warning: shop-worker-default@{NEW} ended with messages in hand") == 1
    [asked] = {asked for asked in answers.asked if asked[0] == "ended_by_messages"}
    assert asked[1] == "core"
    assert asked[3:] == (node(NEW),)


@pytest.mark.parametrize("question", ["ping", "bake"])
def test_a_worker_that_ends_without_messages_fails_it(
    live: Host, manager: Manager, answers: Answers, question: str
) -> None:
    manager.ended = [f"shop-worker-default@{NEW}"]
    if question == "ping":
        answers.override["ping"] = {"silent": [node(NEW)]}
    assert deploy(live) == 1
    assert f"failed at {'health_check' if question == 'ping' else 'bake'}" in last_outcome(live)


def test_pages_that_end_fail_it(live: Host, manager: Manager, answers: Answers) -> None:
    manager.ended = [f"shop-web@{NEW}"]
    answers.override["ended_by_messages"] = {"workers": [node(NEW)]}
    assert deploy(live) == 1
