"""Fixtures of the tests of several hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
import testinfra
from cluster import Cluster
from installation import Installation, look_at
from probes import Visitor
from testinfra.host import Host


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return look_at(host)


@pytest.fixture(scope="module")
def hosts(host: Host) -> dict[str, Host]:
    inventory = host.backend.ansible_inventory
    others = {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory) for name in ("work", "data")}
    return {"front": host, **others}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For versions and logs. Git must not ignore it, so it is not below this repository."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(host: Host, app: Installation, folder: Path, hosts: dict[str, Host]) -> Cluster:
    return Cluster(host, app, folder, hosts)


@pytest.fixture
def old(cluster: Cluster) -> str:
    """The release that serves before the test."""
    return cluster.current


@pytest.fixture
def visitor(app: Installation) -> Visitor:
    return Visitor(app.url, app.certificate)
