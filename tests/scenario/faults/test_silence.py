"""No message is sent when nothing is wrong: while secrets change, over a reboot, and while minutes pass.

IDLE_MINUTES=10 PYTEST_ADDOPTS="-k idle" molecule verify --scenario-name faults
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from deployments import ROOT, Deployments
from doctor_on_host import watch
from probes import Visitor, wait_for
from sinks import Received

pytestmark = pytest.mark.usefixtures("healthy", "quiet")
# A fault is told after two runs of the watch.
RUNS = 2
BOOT_SECONDS = 60
IDLE_MINUTES = int(os.environ.get("IDLE_MINUTES", "1"))


def discard(received: Received) -> None:
    received.requests.clear()
    received.mails.clear()


@pytest.fixture(scope="module")
def _settled(deployments: Deployments, received: Received, _well: None) -> None:
    """What was told before is over."""
    watch(deployments, RUNS + 1)
    discard(received)


@pytest.fixture
def quiet(deployments: Deployments, received: Received, _settled: None, healthy: None) -> Iterator[None]:
    """Since the end of the test before, and until two runs of the watch after this one, only heartbeats are sent."""
    yield
    watch(deployments, RUNS)
    alerts, mails, heartbeats = received.alerts, [*received.mails], received.heartbeats
    discard(received)
    assert alerts == []
    assert mails == []
    assert set(heartbeats) == {"/heartbeat"}


# The tests of the other host take longer.
@pytest.mark.os("debian12")
def test_a_change_of_secrets_is_quiet(deployments: Deployments) -> None:
    password = deployments.app.secret("redis_password")
    with deployments.under_load() as traffic:
        source = str(deployments.version("rotated"))
        deployments.playbook("playbooks/rotate-secrets.yml", app_source=source).wait().succeeded()
    deployments.assert_no_task_lost(traffic)
    assert deployments.app.secret("redis_password") != password


def test_a_reboot_is_quiet(deployments: Deployments, visitor: Visitor) -> None:
    """Work waits meanwhile, and is done afterwards."""
    deployments.host.check_output(deployments.manage("stop", "worker-heavy"))
    reports = [visitor.report() for _ in range(3)]
    name = f"{os.environ['MOLECULE_SCENARIO_NAME']}-{deployments.host.backend.host}"
    subprocess.run([sys.executable, "tools/testhost.py", "reboot", name], cwd=ROOT, check=True)
    wait_for(lambda: visitor.get("/readyz/").status == 200, BOOT_SECONDS, "the site is ready")
    for report in reports:
        visitor.finished_task(report, BOOT_SECONDS)


@pytest.mark.os("debian12")
def test_idle_minutes_are_quiet(received: Received) -> None:
    """The timer runs the watch each minute, which sends a heartbeat."""
    enough = len(received.heartbeats) + IDLE_MINUTES
    wait_for(lambda: len(received.heartbeats) >= enough, 60 * (IDLE_MINUTES + 2), "the timer has run", pause=1)
