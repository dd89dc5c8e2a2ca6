"""A long command prints its output as it comes, and outlives the connection that started it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

PATH = Path(__file__).parents[2] / "plugins/action/followed_command.py"
SPEC = importlib.util.spec_from_file_location("followed_command_action", PATH)
followed = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(followed)


class Action(followed.ActionModule):
    """Runs on this machine; `lose` says whether the answer to a call is lost."""

    def __init__(self) -> None:
        self.lose: Callable[[int], bool] = lambda call: False
        self.calls = 0

    def _low_level_execute_command(self, command: str, sudoable: bool) -> dict[str, Any]:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        self.calls += 1
        if self.lose(self.calls):
            raise AnsibleConnectionFailure("Broken pipe")
        return {"stdout": done.stdout, "stderr": done.stderr, "rc": done.returncode}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(followed, "PAUSE", 0.05)
    monkeypatch.setattr(followed.display, "display", lines.append)
    monkeypatch.setattr(followed.display, "warning", lines.append)
    return lines


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, action: Action, script: str) -> dict[str, Any]:
    given = {"argv": ["sh", "-c", script, "it's", "two words"], "folder": str(folder)}
    monkeypatch.setattr(followed, "documented_arguments", lambda *arguments: given)
    monkeypatch.setattr(followed.ActionBase, "run", lambda *arguments: {})
    return action.run(None, {"inventory_hostname": "one"})


@pytest.mark.parametrize("status", [0, 3])
def test_the_output_is_printed_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str], status: int
) -> None:
    """Of a line that is not whole yet, nothing."""
    seen: list[list[str]] = []
    go = tmp_path / "go"
    script = f'printf "$0 $1\n\nüb"; while [ ! -e {go} ]; do sleep 0.05; done; echo er >&2; printf end; exit {status}'

    def look(line: str) -> None:
        printed.append(line)
        seen.append(list(printed))
        go.touch()

    monkeypatch.setattr(followed.display, "display", look)
    found = run(monkeypatch, tmp_path, Action(), script)
    assert seen[1] == ["  one: it's two words", "  one:"]
    assert printed == ["  one: it's two words", "  one:", "  one: über", "  one: end"]
    assert found == {"changed": True, "failed": bool(status), "rc": status, "stdout": "it's two words\n\nüber\nend"}
    assert list(tmp_path.iterdir()) == [go], "nothing is left"


def test_a_command_without_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    found = run(monkeypatch, tmp_path, Action(), "exit 0")
    assert (found["rc"], found["stdout"], printed) == (0, "", [])


def test_it_is_started_once_though_the_connection_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str]
) -> None:
    action = Action()
    action.lose = lambda call: call in (1, 3)
    found = run(monkeypatch, tmp_path, action, f"echo began; echo >>{tmp_path}/begun; sleep 0.5; echo ended")
    assert found["stdout"] == "began\nended"
    assert (tmp_path / "begun").read_text() == "\n"
    assert sum("connection lost (Broken pipe). The command continues" in line for line in printed) == 2


def test_a_killed_command_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    def kill(call: int) -> bool:
        if call == 2:
            (process,) = tmp_path.glob("*.process")
            os.killpg(int(process.read_text()), signal.SIGKILL)
            time.sleep(0.2)
        return False

    action = Action()
    action.lose = kill
    found = run(monkeypatch, tmp_path, action, "echo began; sleep 60")
    assert found["failed"]
    assert "rc" not in found
    assert found["msg"].endswith(" was killed.")
    assert printed == ["  one: began"]


def test_what_cannot_be_started_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    monkeypatch.setattr(followed, "START", followed.START.replace("sleep 1", "sleep 0.01"))
    with pytest.raises(AnsibleActionFail, match="one: it could not be started"):
        run(monkeypatch, tmp_path / "missing", Action(), "true")
