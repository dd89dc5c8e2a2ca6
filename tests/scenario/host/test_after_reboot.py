"""After the side effect reboot.yml: everything is back by itself, and what was left to be done is done.

The other tests, but for those marked `once`, run again too, and say the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host

# Less than the 120 s after which the application would send an order's tasks anew: the queue itself must have survived.
SECONDS = 60


@pytest.fixture(scope="module")
def before(reboot_note: Path) -> dict[str, Any]:
    if not reboot_note.exists():
        pytest.skip("this host has not been rebooted yet")
    return json.loads(reboot_note.read_text())


def test_the_host_has_booted_again(host: Host, before: dict[str, Any]) -> None:
    assert float(host.check_output('date +%s --date="$(ps -o lstart= -p 1)"')) > before["at"]


def test_the_same_release_serves(visitor: Visitor, release: str, before: dict[str, Any]) -> None:
    wait_for(lambda: visitor.get("/readyz/").status == 200, SECONDS, "the site is ready")
    assert visitor.get("/healthz/").json["release"] == before["release"] == release


def test_the_order_is_carried_out(visitor: Visitor, before: dict[str, Any]) -> None:
    steps = visitor.finished_order(before["order"], SECONDS)["steps"]
    assert [step["state"] for step in steps] == ["done"] * 4


def test_the_report_is_made(app: Installation, visitor: Visitor, before: dict[str, Any]) -> None:
    done = visitor.finished_task(before["report"], SECONDS)
    assert (done["release"], done["worker"].split(".")[0]) == (before["release"], app.queues["heavy"])
