"""Fixtures of the projects: each file begins on a provisioned host without releases, data and messages."""

from __future__ import annotations

import pytest
from deployments import Deployments
from installation import Installation
from testinfra.host import Host
from user_projects import REMOVE, Project


@pytest.fixture(scope="module")
def project(
    host: Host, app: Installation, deployments: Deployments, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    host.check_output(REMOVE.format(name=app.name))
    return Project(host, app, deployments, tmp_path_factory.mktemp("project"))
