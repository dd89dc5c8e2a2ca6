"""After the side effect reboot.yml: the same release is current, and the work that was left is done.

Skipped before the reboot. The other files of this folder are tested before and after it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, query
from probes import Visitor, wait_for
from testinfra.host import Host

# Less than the 120 s after which the application would send an order's tasks again: the queue itself must survive.
SECONDS = 60


@pytest.fixture(scope="module")
def before(host: Host) -> dict[str, Any]:
    """What harness/leave_work.py has noted before the reboot of this host."""
    folder = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "."))
    note = folder / f"before-reboot-{host.backend.get_hostname()}.json"
    if not note.exists():
        pytest.skip("this host has not been rebooted yet")
    return json.loads(note.read_text())


@pytest.fixture(scope="module")
def booted(host: Host) -> float:
    return float(host.check_output('date +%s --date="$(ps -o lstart= -p 1)"'))


def test_host_has_booted_again(booted: float, before: dict[str, Any]) -> None:
    assert booted > before["at"]


def test_same_release_is_current(visitor: Visitor, release: str, before: dict[str, Any]) -> None:
    wait_for(lambda: visitor.get("/readyz/").status == 200, SECONDS, "the site is ready")
    assert visitor.get("/healthz/").json["release"] == before["release"] == release


def test_order_is_processed(visitor: Visitor, before: dict[str, Any]) -> None:
    steps = visitor.finished_order(before["order"], SECONDS)["steps"]
    assert [step["state"] for step in steps] == ["done"] * 4


def test_reports_are_made(app: Installation, visitor: Visitor, before: dict[str, Any]) -> None:
    for report in before["reports"]:
        done = visitor.finished_task(report, SECONDS)
        assert (done["release"], done["worker"].split(".")[0]) == (before["release"], app.queues["heavy"])


def test_running_report_was_finished_and_recorded_before_the_shutdown(
    host: Host, app: Installation, before: dict[str, Any], booted: float
) -> None:
    """Its worker stopped before PostgreSQL, which has the result; the last report was still in the queue."""
    names = "', '".join(report.strip("/").split("/")[-1] for report in before["reports"])
    sql = f"SELECT extract(epoch FROM date_done) FROM django_celery_results_taskresult WHERE task_id IN ('{names}')"
    done = sorted(float(line) for line in query(host, app, sql).split())
    # The time of the boot is only known to a second or two; no worker takes a task sooner after it.
    assert before["at"] < done[0] < booted + 2 < done[-1]
