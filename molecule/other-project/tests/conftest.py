"""What the tests of both versions share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from installation import Installation, look_at
from probes import Visitor
from testinfra.host import Host

REPOSITORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "repo.git")


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return look_at(host)


@pytest.fixture(scope="module")
def release(host: Host, app: Installation) -> str:
    """The release that is current."""
    return Path(host.check_output(f"readlink --canonicalize-existing /srv/{app.name}/current")).name


@pytest.fixture(scope="module")
def commits() -> dict[str, str]:
    """The commit of each tag in the project's repository."""
    command = ["git", "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags"]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in output.splitlines())


@pytest.fixture
def visitor(app: Installation) -> Visitor:
    return Visitor(app.url, app.certificate)
