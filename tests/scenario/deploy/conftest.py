"""What the tests of rollouts share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation, look_at
from rollouts import Rollouts
from testinfra.host import Host
from traffic import Traffic


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
    """The release that serves before the test; what an earlier test may have left running ends first."""
    if not rollouts.is_idle():
        rollouts.wait_until_idle(60)
    return rollouts.current


@pytest.fixture
def traffic(rollouts: Rollouts, old: str) -> Iterator[Traffic]:
    """Load and flow from before the test to its end."""
    with rollouts.under_load() as traffic:
        yield traffic
