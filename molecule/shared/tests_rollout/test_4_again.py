"""The same release again changes nothing."""

from __future__ import annotations

import pytest
from rollouts import Rollouts


@pytest.mark.os("debian12")
def test_the_same_again_changes_nothing(rollouts: Rollouts, old: str) -> None:
    version = rollouts.version("same")
    assert rollouts.deploy(version).succeeded().changed > 0
    processes, status = rollouts.processes(), rollouts.status()
    again = rollouts.deploy(version).succeeded()
    assert again.changed == 0, again.output
    assert (rollouts.processes(), rollouts.status()) == (processes, status)
