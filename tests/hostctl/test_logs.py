"""Where the logs of a process are, under both managers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hostctl import logs
from hostctl.settings import ReleaseError, Settings


@pytest.mark.parametrize(
    ("process", "pattern"),
    [
        ("", "shop-*"),
        ("web", "shop-web@*"),
        ("worker", "shop-worker-*"),
        ("worker-default", "shop-worker-default@*"),
        ("default", "shop-worker-default@*"),
        ("beat", "shop-beat"),
        ("flower", "shop-flower"),
    ],
)
def test_a_process_selects_its_units(settings: Settings, process: str, pattern: str) -> None:
    command = logs.command(settings, process, follow=True, lines=5)
    assert command == ["journalctl", "--no-pager", "--lines=5", f"--unit={pattern}", "--follow"]


def test_an_unknown_process_is_refused_with_the_choices(settings: Settings) -> None:
    with pytest.raises(ReleaseError, match=r"no process 'cat'; choose from: beat, default, flower, web, worker"):
        logs.command(settings, "cat", follow=False, lines=5)


def test_under_supervisor_logs_are_files(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(settings, manager="supervisor")
    monkeypatch.setattr(logs, "LOGS", tmp_path / "log")
    folder = tmp_path / "log/shop"
    folder.mkdir(parents=True)
    with pytest.raises(ReleaseError, match="has no log"):
        logs.command(settings, "web", follow=False, lines=2)
    (folder / "shop-web@abcd-1.log").write_text("one\ntwo\nthree\n")
    (folder / "shop-beat.log").write_text("tick\n")
    command = logs.command(settings, "web", follow=True, lines=2)
    assert command == ["tail", "--lines=2", "-F", f"{folder}/shop-web@abcd-1.log"]
    assert logs.entries(settings, "web", 2) == [
        {"unit": "shop-web@abcd-1", "time": None, "message": "two"},
        {"unit": "shop-web@abcd-1", "time": None, "message": "three"},
    ]
    assert logs.command(settings, "flower", follow=False, lines=2)[0] == "journalctl"


def test_the_journal_is_answered_as_data(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"__REALTIME_TIMESTAMP": "1700000000000000", "MESSAGE": "Started.", "UNIT": "shop-beat.service",
         "_SYSTEMD_UNIT": "init.scope"},
        {"__REALTIME_TIMESTAMP": "1700000001000000", "MESSAGE": [195, 164], "_SYSTEMD_UNIT": "shop-beat.service"},
    ]  # fmt: skip
    output = "\n".join(json.dumps(line) for line in lines)
    monkeypatch.setattr(logs.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"-- Boot --\n{output}\n"))
    assert logs.entries(settings, "beat", 5) == [
        {"unit": "shop-beat", "time": "2023-11-14T22:13:20+00:00", "message": "Started."},
        {"unit": "shop-beat", "time": "2023-11-14T22:13:21+00:00", "message": "ä"},
    ]
