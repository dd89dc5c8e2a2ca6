"""Fixtures of the tests of backups."""

from __future__ import annotations

import pytest
import testinfra
from backups import Backups
from deployments import Deployments
from installation import Installation
from testinfra.host import Host


@pytest.fixture(scope="module")
def storage(host: Host) -> Host:
    return testinfra.get_host("ansible://storage", ansible_inventory=host.backend.ansible_inventory)


@pytest.fixture(scope="module")
def backups(host: Host, app: Installation, storage: Host, deployments: Deployments) -> Backups:
    return Backups(host, app, storage, deployments)
