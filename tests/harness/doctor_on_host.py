"""What doctor says of a host, and runs of the watch, for the scenarios."""

from __future__ import annotations

import json
from typing import Any

from deployments import Deployments
from installation import run_python
from probes import wait_for

WELL_SECONDS = 60
# Under the lock of the watch. Failed requests count for five minutes, restarts for ten, and for a new release longer.
DISCARD = """
import fcntl, json, pathlib
folder = pathlib.Path("/var/lib/NAME-watch")
with (folder / "lock").open("r+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    memory = json.loads((folder / "memory.json").read_text())
    memory |= {"requests": [], "release": {}, "restarts": {}}
    (folder / "memory.json").write_text(json.dumps(memory))
"""


def doctor(deployments: Deployments) -> dict[str, dict[str, Any]]:
    """Return what doctor has found, by the name of the check."""
    result = deployments.host.run(f"{deployments.app.name}ctl doctor --json")
    assert result.rc in (0, 1, 2), result.stderr
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def bad(deployments: Deployments) -> dict[str, str]:
    """Return the text of each check that is bad."""
    return {name: check["text"] for name, check in doctor(deployments).items() if check["state"] == "bad"}


def watch(deployments: Deployments, times: int = 1) -> None:
    """Run the watch now, as the timer does every minute; a run of the timer ends first."""
    unit = f"{deployments.app.name}-watch.service"
    # To start a unit that is starting is to wait for it: that run may have looked before what a test has just done.
    ended = f'until [ "$(systemctl show --property=ActiveState --value {unit})" != activating ]; do sleep 0.2; done'
    for _ in range(times):
        # systemd starts a unit five times in ten seconds at most.
        deployments.host.check_output(f"{ended}; systemctl reset-failed {unit}; systemctl start {unit}")


def discard_requests(deployments: Deployments) -> None:
    """Let the watch count the requests until now, and discard them: what a test has broken is past."""
    watch(deployments)
    run_python(deployments.host, DISCARD.replace("NAME", deployments.app.name))


def wait_until_well(deployments: Deployments) -> None:
    """Wait until doctor finds nothing broken."""
    discard_requests(deployments)
    wait_for(lambda: bad(deployments), WELL_SECONDS, "the host is well", lambda found: not found, pause=1)
