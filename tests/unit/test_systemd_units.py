"""The program that has services running, with a systemctl that writes down what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "plugins/host/systemd_units.py"
# A unit is active, and enabled, where a file of its name says so; what is `broken` does not start.
SYSTEMCTL = """#!/bin/sh
case "$*" in
  "is-active --quiet "*) grep -q active "$FOLDER/$3" ;;
  "is-enabled --quiet "*) grep -q enabled "$FOLDER/$3" ;;
  *broken*) echo "it does not start"; exit 1 ;;
  *) echo "$*" >>"$FOLDER/told" ;;
esac 2>&1
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name, script in {"systemctl": SYSTEMCTL, "journalctl": "#!/bin/sh\necho the journal of $3\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "serves").write_text("active enabled")
    (tmp_path / "starts-by-hand").write_text("active")
    return tmp_path


def have(host: Path, **asked: Any) -> dict[str, Any]:
    asked = {"services": [], "stopped": [], "restarted": [], "daemon_reload": False, "check": False} | asked
    environment = {"PATH": f"{host}:{os.environ['PATH']}", "FOLDER": str(host)}
    command = [sys.executable, "-IS", "-c", PROGRAM.read_text()]
    done = subprocess.run(command, input=json.dumps(asked), env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def told(host: Path) -> list[str]:
    return (host / "told").read_text().splitlines() if (host / "told").exists() else []


def test_what_runs_is_left_alone(host: Path) -> None:
    assert have(host, services=["serves"], stopped=["new"]) == {"changed": False, "started": []}
    assert told(host) == []


def test_what_does_not_run_is_started_and_what_should_not_run_stopped_first(host: Path) -> None:
    found = have(host, services=["new", "starts-by-hand"], stopped=["serves"], restarted=["old"], daemon_reload=True)
    assert found == {"changed": True, "started": ["new"]}
    words = [line.replace("--now --quiet ", "") for line in told(host)]
    assert words == ["daemon-reload", "disable serves", "enable new", "enable starts-by-hand", "restart old"]


def test_a_check_changes_nothing(host: Path) -> None:
    assert have(host, services=["new"], check=True) == {"changed": True, "started": ["new"]}
    assert told(host) == []


def test_what_does_not_start_fails_with_its_journal(host: Path) -> None:
    found = have(host, services=["broken"])
    assert found["failed"]
    assert "it does not start\nthe journal of --unit=broken" in found["msg"]
