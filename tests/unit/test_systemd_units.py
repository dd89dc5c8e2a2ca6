"""The host program of systemd_units, with a fake systemctl that records its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "plugins/host/systemd_units.py"
# The state of a unit is the text of the file of its name; a unit called `broken` fails to start.
SYSTEMCTL = """#!/bin/sh
case "$*" in
  "is-active --quiet "*) grep -q active "$FOLDER/$3" ;;
  "is-enabled --quiet "*) grep -q enabled "$FOLDER/$3" ;;
  *broken*) echo "failed to start"; exit 1 ;;
  *) echo "$*" >>"$FOLDER/commands" ;;
esac 2>&1
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name, script in {"systemctl": SYSTEMCTL, "journalctl": "#!/bin/sh\necho the journal of $3\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "running").write_text("active enabled")
    (tmp_path / "not-enabled").write_text("active")
    return tmp_path


def run_program(host: Path, **request: Any) -> dict[str, Any]:
    request = {"services": [], "stopped": [], "restarted": [], "daemon_reload": False, "check": False} | request
    environment = {"PATH": f"{host}:{os.environ['PATH']}", "FOLDER": str(host)}
    command = [sys.executable, "-IS", "-c", PROGRAM.read_text()]
    text = json.dumps(request)
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def commands(host: Path) -> list[str]:
    return (host / "commands").read_text().splitlines() if (host / "commands").exists() else []


def test_running_service_is_not_touched(host: Path) -> None:
    assert run_program(host, services=["running"], stopped=["new"]) == {"changed": False, "started": []}
    assert commands(host) == []


def test_commands_in_their_order(host: Path) -> None:
    found = run_program(
        host, services=["new", "not-enabled"], stopped=["running"], restarted=["old"], daemon_reload=True
    )
    assert found == {"changed": True, "started": ["new"]}
    words = [line.replace("--now --quiet ", "") for line in commands(host)]
    assert words == ["daemon-reload", "disable running", "enable new", "enable not-enabled", "restart old"]


def test_check_mode_changes_nothing(host: Path) -> None:
    assert run_program(host, services=["new"], check=True) == {"changed": True, "started": ["new"]}
    assert commands(host) == []


def test_failure_includes_the_journal(host: Path) -> None:
    found = run_program(host, services=["broken"])
    assert found["failed"]
    assert "failed to start\nthe journal of --unit=broken" in found["msg"]
