"""Fixtures of the projects: each test begins on a provisioned host without releases, data and messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployments import Deployments
from installation import Installation
from testinfra.host import Host
from user_projects import REMOVE, Project


@pytest.fixture
def host_without_project(host: Host, app: Installation) -> Host:
    host.check_output(REMOVE.format(name=app.name))
    return host


@pytest.fixture
def project(host_without_project: Host, app: Installation, deployments: Deployments, tmp_path: Path) -> Project:
    return Project(host_without_project, app, deployments, tmp_path)
