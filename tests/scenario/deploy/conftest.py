"""Fixtures of the deployment tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployments import Deployments
from traffic import Traffic


@pytest.fixture(autouse=True)
def _only_under_systemd(request: pytest.FixtureRequest, deployments: Deployments) -> None:
    if request.node.get_closest_marker("any_manager") and deployments.manager != "systemd":
        pytest.skip("the same under every process manager: tested under systemd")


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
