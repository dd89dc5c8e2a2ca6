"""Fixtures of the tests of both versions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "repo.git")


@pytest.fixture(scope="module")
def commits() -> dict[str, str]:
    """The commit of each tag in the project's repository."""
    command = ["git", "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags"]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in output.splitlines())
