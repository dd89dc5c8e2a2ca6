"""Under either process manager, the application's processes may do less than their user."""

from __future__ import annotations

import re

import pytest
from deployments import Deployments


@pytest.mark.os("debian13")
def test_every_process_is_confined(deployments: Deployments, old: str) -> None:
    processes = deployments.processes()
    assert processes
    for name, pid in processes.items():
        status = deployments.host.file(f"/proc/{pid}/status").content_string
        limits = dict(re.findall(r"^(NoNewPrivs|Seccomp|CapEff):\s+(\w+)$", status, re.MULTILINE))
        assert limits == {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16}, name
        mounts = deployments.host.file(f"/proc/{pid}/mountinfo").content_string
        read_only = set(re.findall(r"^\d+ \d+ \S+ \S+ (/\S*) ro[, ]", mounts, re.MULTILINE))
        assert read_only & {"/", "/usr"}, f"{name} sees a writable /usr"
