"""Fixtures of the deployment tests.

The host with Debian 12 runs the application under Supervisor, the one with Debian 13 under systemd. A test that is
marked with one of them needs neither the other Debian nor the other process manager.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployments import Deployments
from traffic import Traffic


@pytest.fixture
def old(deployments: Deployments) -> str:
    """The release before the test; a deployment that an earlier test has left running ends first."""
    if not deployments.is_idle():
        deployments.wait_until_idle(60)
    return deployments.current


@pytest.fixture
def traffic(deployments: Deployments, old: str) -> Iterator[Traffic]:
    """Requests and tasks from before the test to its end."""
    with deployments.under_load() as traffic:
        yield traffic
