"""Starting a deployment: a lost connection may repeat the call."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl import cli
from hostctl.deploy import archive, control, detach, record
from hostctl.host import Host
from hostctl.settings import BusyError, ReleaseError, Settings
from hostctl.status import previous_release
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, make_release


@pytest.fixture
def launched(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would start a deployment; nothing runs."""
    commands = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.extend([command] if command[0] == "systemd-run" else [])
        return SimpleNamespace(returncode=0 if command[0] == "systemd-run" else 3, stderr="")

    monkeypatch.setattr(detach.subprocess, "run", run)
    monkeypatch.setattr(archive.shutil, "chown", lambda *arguments: None)
    return commands


def call(host: Host, *words: str, data: bytes = b"archive") -> int:
    arguments = [*words, "--json", "--seconds", "0"]
    return control.start(host, cli.parse(arguments), arguments, io.BytesIO(data))


def three_releases(host: Host) -> None:
    for age, release in enumerate(("third-3", "second-2", "first-1")):
        make_release(host, release, age=60 * age)
    host.switch("third-3")


@pytest.mark.parametrize("words", [["deploy", NEW, "-"], ["rollback"]])
def test_a_repeated_call_follows_the_deployment_it_has_started(
    host: Host, launched: list[list[str]], capsys: Any, words: list[str]
) -> None:
    """While it runs, and after it has ended."""
    three_releases(host)
    key = ["--key", uuid.uuid4().hex]
    call(host, *words, *key)
    [log] = (host.settings.home / "deployments").glob("*.log")
    log.write_text("It is built.\n")
    book = record.Record(host.settings)
    book.hold()
    book.begin(words[0], "second-2", "anna", log=str(log))
    capsys.readouterr()
    for running in (True, False):
        assert call(host, *words, *key) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["text"], answer["log"], answer["running"]) == ("It is built.\n", str(log), running)
        host.switch("second-2")
        if running:
            with pytest.raises(BusyError):
                call(host, *words, "--key", uuid.uuid4().hex)
            book.end(1, "failed")
            os.close(book.handle)
    assert answer["status"] == 1
    assert len(launched) == 1


def test_the_unit_runs_the_same_program_with_the_release_to_roll_back_to(
    host: Host, launched: list[list[str]], capsys: Any
) -> None:
    three_releases(host)
    call(host, "rollback", "--by", "anna", "--key", uuid.uuid4().hex)
    [command] = launched
    assert command[-5:-1] == ["--by", "anna", "--here", "--log"]
    assert "second-2" in command
    assert "--unit=shop-deploy" in command
    assert cli.parse(command[command.index("rollback") :]).here


@pytest.mark.parametrize(("several", "release"), [(True, NEW), (True, "other-3"), (False, NEW)])
def test_of_several_hosts_a_waiting_deployment_is_continued_by_the_next_run(
    host: Host, launched: list[list[str]], capsys: Any, several: bool, release: str
) -> None:
    host.settings = dataclasses.replace(host.settings, barriers=several)
    log = host.settings.home / "log"
    log.write_text("It is built.\n")
    book = record.Record(host.settings)
    book.hold()
    book.begin("deploy", NEW, "anna", log=str(log))
    words = ["deploy", release, "-", "--key", uuid.uuid4().hex]
    if several and release == NEW:
        assert call(host, *words) == 0
        assert json.loads(capsys.readouterr().out)["text"] == "It is built.\n"
    else:
        with pytest.raises(BusyError):
            call(host, *words)
    assert not launched


def test_a_refused_archive_is_removed(host: Host, launched: list[list[str]]) -> None:
    book = record.Record(host.settings)
    book.hold()
    with pytest.raises(BusyError):
        call(host, "deploy", NEW, "-")
    os.close(book.handle)
    assert list((host.settings.home / "incoming").iterdir()) == []
    call(host, "deploy", NEW, "-")
    assert len(list((host.settings.home / "incoming").iterdir())) == 1


def test_an_archive_on_the_host_is_copied_for_the_build_user(
    host: Host, launched: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError, match="Cannot read the archive"):
        call(host, "deploy", NEW, "shop.tar.gz")
    (tmp_path / "shop.tar.gz").write_bytes(b"archive")
    call(host, "deploy", NEW, "shop.tar.gz")
    [stored] = (host.settings.home / "incoming").iterdir()
    assert stored.read_bytes() == b"archive"
    assert str(stored) in launched[0]
    assert "shop.tar.gz" not in launched[0]


def test_an_incomplete_archive_starts_nothing(host: Host, launched: list[list[str]]) -> None:
    words = ["deploy", NEW, "-", "--bytes", "7", "--key", uuid.uuid4().hex]
    with pytest.raises(ReleaseError, match="3 of 7 bytes"):
        call(host, *words, data=b"arc")
    assert not launched
    call(host, *words)
    assert len(launched) == 1


def test_the_live_release_starts_no_deployment(
    live: Host, answers: Answers, launched: list[list[str]], capsys: Any
) -> None:
    assert call(live, "deploy", OLD, "-") == 0
    assert json.loads(capsys.readouterr().out) == {
        "text": f"Release {OLD} is already live, and runs.\n", "running": False, "status": 0, "changed": False
    }  # fmt: skip
    assert not launched


@pytest.mark.parametrize(
    ("held", "text"), [(False, "No deployment is running."), (True, f"Cancelled the deployment of {NEW}")]
)
def test_cancel_answers_as_json(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any, held: bool, text: str
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(control.os, "kill", lambda pid, number: killed.append(pid))
    book = record.Record(settings)
    if held:
        book.hold()
        book.begin("deploy", NEW, "anna")
    assert control.cancel(settings, as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cancelled"], bool(killed)) == (held, held)
    assert answer["text"].startswith(text)


# --- The previous release


def test_the_previous_release_is_the_one_deployed_before(host: Host) -> None:
    three_releases(host)
    assert previous_release(host) == "second-2"
    host.switch("second-2")
    assert previous_release(host) == "first-1"
    host.switch("first-1")
    with pytest.raises(ReleaseError, match="There is no release before first-1") as caught:
        previous_release(host)
    assert str(caught.value).endswith(" To go to a newer one: shopctl rollback third-3")
    host.settings = dataclasses.replace(host.settings, barriers=True)
    with pytest.raises(ReleaseError, match=r"playbooks/rollback.yml -e release_id=third-3$"):
        previous_release(host)


def test_a_release_that_was_rolled_back_is_not_the_previous_one(live: Host, answers: Answers) -> None:
    deploy(live, "bad-2")
    deploy(live, OLD, "rollback")
    deploy(live, "next-3")
    assert previous_release(live) == OLD
