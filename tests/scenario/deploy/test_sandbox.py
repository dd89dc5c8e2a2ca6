"""Under either process manager, the application's processes may do less than their user."""

from __future__ import annotations

import re

from deployments import Deployments


def test_every_process_is_confined(deployments: Deployments, old: str) -> None:
    processes = deployments.processes()
    assert processes
    # One command for all: each is a connection.
    look = "; ".join(
        f"echo '@ {name}'; cat /proc/{pid}/status /proc/{pid}/mountinfo" for name, pid in processes.items()
    )
    parts = re.split(r"^@ (.+)\n", deployments.host.check_output(look), flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(found) == set(processes)
    for name, text in found.items():
        limits = dict(re.findall(r"^(NoNewPrivs|Seccomp|CapEff):\s+(\w+)$", text, re.MULTILINE))
        assert limits == {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16}, name
        read_only = set(re.findall(r"^\d+ \d+ \S+ \S+ (/\S*) ro[, ]", text, re.MULTILINE))
        assert read_only & {"/", "/usr"}, f"{name} sees a writable /usr"
