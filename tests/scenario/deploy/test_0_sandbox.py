"""Under either manager the application's processes can do less than their user could."""

from __future__ import annotations

import re

import pytest
from rollouts import Rollouts


@pytest.mark.os("debian13")
def test_every_process_is_confined(rollouts: Rollouts, old: str) -> None:
    processes = rollouts.processes()
    assert processes
    for name, pid in processes.items():
        status = rollouts.host.file(f"/proc/{pid}/status").content_string
        limits = dict(re.findall(r"^(NoNewPrivs|Seccomp|CapEff):\s+(\w+)$", status, re.MULTILINE))
        assert limits == {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16}, name
        mounts = rollouts.host.file(f"/proc/{pid}/mountinfo").content_string
        read_only = set(re.findall(r"^\d+ \d+ \S+ \S+ (/\S*) ro[, ]", mounts, re.MULTILINE))
        assert read_only & {"/", "/usr"}, f"{name} may write to /usr, were it root"
