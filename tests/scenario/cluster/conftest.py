"""Fixtures of the tests of several hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import testinfra
from cluster import Cluster
from installation import Installation
from testinfra.host import Host


@pytest.fixture(scope="module")
def hosts(host: Host) -> dict[str, Host]:
    inventory = host.backend.ansible_inventory
    others = {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory) for name in ("work", "data")}
    return {"front": host, **others}


@pytest.fixture(scope="module")
def cluster(host: Host, app: Installation, folder: Path, hosts: dict[str, Host]) -> Cluster:
    return Cluster(host, app, folder, hosts)


@pytest.fixture
def old(cluster: Cluster) -> str:
    """The release before the test; a deployment that an earlier test has left running ends first."""
    for name in ("front", "work"):
        cluster.at(name).wait_until_idle(60)
    return cluster.current


@pytest.fixture(scope="module")
def without_own_workers(cluster: Cluster) -> Iterator[None]:
    """Stop the workers of the host that serves the site, until the module's tests have ended."""
    units = " ".join(name for name in cluster.processes() if "-worker-" in name)
    cluster.host.check_output(f"systemctl stop {units}")
    yield
    cluster.host.check_output(f"systemctl start {units}")
