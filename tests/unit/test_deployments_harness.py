"""The watcher that runs on a host: it kills a deployment at exactly the step that it is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from deployments import ROOT, STEPS, WATCHER, Deployments, Run


@pytest.fixture
def victim() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deployment.json"


def write(file: Path, **state: object) -> None:
    """Write the state as the program on the host does."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.rename(file)


def watch(file: Path, what: str, *steps: str, seconds: float = 60) -> subprocess.Popen:
    command = [sys.executable, "-c", WATCHER, str(file), str(seconds), what, *steps]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "watching\n"
    return process


def test_it_kills_at_the_step_and_not_before(file: Path, victim: subprocess.Popen) -> None:
    process = watch(file, "kill", "health_check", "switch")
    write(file, step="build", pid=victim.pid, since="now")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert victim.poll() is None
    write(file, step="health_check", pid=victim.pid, since="now")
    output, _ = process.communicate(timeout=60)
    assert json.loads(output)["step"] == "health_check"
    assert victim.wait(60) == -signal.SIGKILL


def test_it_does_not_kill_at_a_later_step(file: Path, victim: subprocess.Popen) -> None:
    process = watch(file, "kill", "health_check", "switch")
    write(file, step="switch", pid=victim.pid, since="now")
    output, _ = process.communicate(timeout=60)
    assert json.loads(output)["missed"] == "switch"
    assert victim.poll() is None
    state = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0]
    # Woken, it may not have slept again yet.
    assert state != "T", "it was not continued"


def test_it_only_looks_when_told_to(file: Path, victim: subprocess.Popen) -> None:
    process = watch(file, "look", *STEPS)
    write(file, step="drain", pid=victim.pid, since="now")
    assert json.loads(process.communicate(timeout=60)[0])["step"] == "drain"
    assert victim.poll() is None


def test_earlier_deployment_is_left_alone(file: Path, victim: subprocess.Popen) -> None:
    write(file, step="health_check", pid=victim.pid, since="before")
    process = watch(file, "kill", "health_check", seconds=0.5)
    write(file, step="health_check", pid=victim.pid, since="before")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no deployment came to the step health_check" in errors
    assert victim.poll() is None


def test_hanging_command_is_killed_and_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        command = ["sh", "-c", "echo before; sleep 60"]
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
    with pytest.raises(AssertionError, match=r"No end after 0\.3 s"):
        Run(command, process, log).wait(0.3)
    assert process.wait(60) == -signal.SIGKILL


def test_changes_are_counted_from_the_recap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a : ok=9   changed=2    failed=0\nb : ok=9   changed=3    failed=0\n")
    assert Run([], subprocess.Popen(["true"]), log).changed == 5


def test_a_clone_has_what_git_has_and_runs_its_own_playbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = ROOT / "molecule/security/inventory"
    backend = SimpleNamespace(ansible_inventory=str(inventory / "hosts.yml"), host="security12")
    clone = Deployments(SimpleNamespace(backend=backend), None, tmp_path).clone()
    monkeypatch.setattr(clone, "start", lambda command, environment: (command, environment))
    command, environment = clone.playbook("playbooks/deploy.yml")
    assert f"--inventory={clone.checkout}/molecule/security/inventory/hosts.yml" in command
    assert str(clone.checkout / "playbooks/deploy.yml") in command
    assert environment["ANSIBLE_CONFIG"] == str(clone.checkout / "ansible.cfg")
    assert (clone.checkout / "molecule/security/inventory/group_vars/all/wiring.yml").is_file()
    assert not (clone.checkout / ".venv").exists()
