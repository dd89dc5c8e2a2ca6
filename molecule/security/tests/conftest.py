"""Fixtures of the tests of the front door and the locks."""

from __future__ import annotations

from pathlib import Path

import pytest
from installation import Installation, look_at
from probes import Visitor
from rollouts import Rollouts
from testinfra.host import Host


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return look_at(host)


@pytest.fixture(scope="module")
def release(host: Host, app: Installation) -> str:
    """The release that is current: the one switch."""
    target = host.check_output(f"readlink --canonicalize-existing /srv/{app.name}/current")
    return Path(target).name


@pytest.fixture
def visitor(host: Host, app: Installation) -> Visitor:
    """Somebody who has never been here before; the certificate is the one that lies there now."""
    return Visitor(app.url, host.file(f"{app.certificate_folder}/fullchain.pem").content_string)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For versions and logs. Git must not ignore it, so it is not below this repository."""
    return tmp_path_factory.mktemp("security")


@pytest.fixture(scope="module")
def rollouts(host: Host, app: Installation, folder: Path) -> Rollouts:
    """The playbooks, as an operator starts them for this host, and the harness of load and flow."""
    return Rollouts(host, app, folder)
