"""The watcher that runs on a host: it kills what a rollout's state names at a step, and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollouts import STEPS, WATCHER, Run


@pytest.fixture
def victim() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def write(file: Path, **state: object) -> None:
    """As the program on the host does."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.rename(file)


def watch(file: Path, what: str, *steps: str, seconds: float = 10) -> subprocess.Popen:
    command = [sys.executable, "-c", WATCHER, str(file), str(seconds), what, *steps]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "watching\n"
    return process


def test_it_kills_at_the_step_and_not_before(tmp_path: Path, victim: subprocess.Popen) -> None:
    file = tmp_path / "rollout.json"
    process = watch(file, "kill", "gate", "switch")
    write(file, step="build", pid=victim.pid, since="now")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    assert victim.poll() is None
    write(file, step="gate", pid=victim.pid, since="now")
    output, _ = process.communicate(timeout=5)
    assert json.loads(output)["step"] == "gate"
    assert victim.wait(5) == -signal.SIGKILL


def test_it_only_looks_when_asked_to(tmp_path: Path, victim: subprocess.Popen) -> None:
    file = tmp_path / "rollout.json"
    process = watch(file, "look", *STEPS)
    write(file, step="drain", pid=victim.pid, since="now")
    assert json.loads(process.communicate(timeout=5)[0])["step"] == "drain"
    assert victim.poll() is None


def test_a_rollout_from_before_is_left_alone(tmp_path: Path, victim: subprocess.Popen) -> None:
    file = tmp_path / "rollout.json"
    write(file, step="gate", pid=victim.pid, since="before")
    process = watch(file, "kill", "gate", seconds=0.5)
    write(file, step="gate", pid=victim.pid, since="before")
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 1
    assert "none of these steps was seen: gate" in errors
    assert victim.poll() is None


def test_a_playbook_that_hangs_is_ended_and_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        command = ["sh", "-c", "echo before; sleep 60"]
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
    with pytest.raises(AssertionError, match=r"No end after 0\.3 s"):
        Run(command, process, log).wait(0.3)
    assert process.wait(5) == -signal.SIGKILL


def test_the_recap_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a : ok=9 changed=3 failed=0\nb : ok=1 changed=2\n")
    process = subprocess.Popen(["true"])
    run = Run(["true"], process, log).wait()
    assert run.succeeded().changed == 5
    with pytest.raises(AssertionError, match="should not"):
        run.failed()
