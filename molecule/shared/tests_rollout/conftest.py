"""What the tests of rollouts share.

`@pytest.mark.os("debian13")`: one host is enough where its version makes no difference. Where there is but one host,
the test runs on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, look_at
from rollouts import Rollouts
from testinfra.host import Host
from traffic import Traffic


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "os(name): the test runs on the host with this Debian only")


@pytest.fixture(autouse=True)
def _chosen_host(request: pytest.FixtureRequest, variables: dict[str, Any]) -> None:
    chosen = request.node.get_closest_marker("os")
    several = len(set(variables["groups"]["all"])) > 1
    if chosen and several and variables["testhost_os"] not in chosen.args:
        pytest.skip(f"runs on {', '.join(chosen.args)}")


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return look_at(host)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For versions and logs. Git must not ignore it, so it is not below this repository."""
    return tmp_path_factory.mktemp("rollouts")


@pytest.fixture(scope="module")
def rollouts(host: Host, app: Installation, folder: Path) -> Rollouts:
    return Rollouts(host, app, folder)


@pytest.fixture
def old(rollouts: Rollouts) -> str:
    """The release that serves before the test; what an earlier test may have left is completed or undone first."""
    if not rollouts.is_idle():
        rollouts.wait_until_idle(60)
    return rollouts.current


@pytest.fixture
def traffic(rollouts: Rollouts, old: str) -> Iterator[Traffic]:
    """Load and flow from before the test to its end."""
    with rollouts.under_load() as traffic:
        yield traffic
