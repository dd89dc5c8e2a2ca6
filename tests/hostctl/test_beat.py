"""What beat writes of itself becomes warnings of `status`, of a deployment and of its repetition."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hostctl import beat
from hostctl.deploy.verify import verify
from hostctl.host import Host
from hostctl.settings import Settings
from hostctl.status import describe, status
from tests.hostctl.fakes import OLD, Answers, Manager, deploy


def write(settings: Settings, state: Any) -> None:
    folder = settings.home / "shared/beat"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))


def state(**changes: Any) -> dict[str, Any]:
    now = time.time()
    return {"tick": now, "next_tick": now + 5, "sent": 7, "overdue": {}} | changes


def test_nothing_is_wrong(settings: Settings) -> None:
    assert beat.warnings(settings) == []
    write(settings, state())
    assert beat.warnings(settings) == []


def test_overdue_tasks_are_named(settings: Settings) -> None:
    write(settings, state(overdue={"d": 86400 * 4, "a": 86400, "b": 86400 * 2, "c": 86400 * 3}))
    [text] = beat.warnings(settings)
    assert "'a' (due 1970-01-02 00:00 UTC), 'b' (due 1970-01-03 00:00 UTC), 'c'" in text
    assert " and 1 more. See shopctl logs beat" in text


def test_beat_that_no_longer_ticks_is_named(settings: Settings) -> None:
    write(settings, state(tick=86400, next_tick=86405))
    assert beat.warnings(settings)[0].startswith("Beat has not looked at its schedule since 1970-01-02 00:00 UTC")


SPOILED = [
    "", "[]", "{}", "null", '{"overdue": 3}', '{"overdue": {"a": "b"}, "next_tick": 1}', "[" * 100_000,
    '{"overdue": {"a": Infinity}}', '{"overdue": {"a": NaN}}', '{"overdue": {"a": 1e300}}',
    '{"overdue": {}, "tick": NaN, "next_tick": NaN}', '{"overdue": {}, "tick": -Infinity, "next_tick": -Infinity}',
]  # fmt: skip


@pytest.mark.parametrize("text", SPOILED)
def test_file_that_the_application_has_spoiled_says_nothing(settings: Settings, text: str) -> None:
    write(settings, text)
    assert beat.warnings(settings) == []


@pytest.mark.parametrize("kind", ["pipe", "link", "large", "folder"])
def test_only_a_small_regular_file_is_read(settings: Settings, tmp_path: Path, kind: str) -> None:
    file = beat.state_file(settings)
    write(settings, state(overdue={"a": 86400}))
    text = file.read_text()
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "large":
        file.write_text(text + " " * 2**20)
    else:
        (tmp_path / "other").write_text(text)
        file.symlink_to(tmp_path / "other")
    assert beat.warnings(settings) == []


def test_everything_that_looks_at_a_release_says_it(
    live: Host, manager: Manager, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.says_of_beat = json.dumps(state(overdue={"newsletter": 86400}))
    write(live.settings, manager.says_of_beat)
    assert "warning     Periodic tasks were due and beat has not sent them: 'newsletter'" in describe(status(live))
    assert verify(live)[-1].startswith("Warning: Periodic tasks were due")
    assert deploy(live) == 0
    assert "Warning: Periodic tasks were due" in capsys.readouterr().out


def test_the_state_of_a_newer_beat_does_not_outlive_a_rollback(live: Host, manager: Manager, answers: Answers) -> None:
    """A beat of an earlier version writes none, so it would say for ever that beat does not look at its schedule."""
    manager.says_of_beat = json.dumps(state(tick=1, next_tick=2))
    assert deploy(live) == 0
    assert len(beat.warnings(live.settings)) == 1
    assert deploy(live, OLD, "rollback") == 0
    assert beat.warnings(live.settings) == []
