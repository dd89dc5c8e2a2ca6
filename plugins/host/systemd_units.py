"""Start, enable, stop and restart systemd units: the host's part of the action plugin of the same name.

Needs Debian's Python and its standard library alone. Reads {"stopped", "services", "restarted", "daemon_reload",
"check"} from stdin; prints {"changed", "started"} or {"failed", "msg"}, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


class SystemctlError(Exception):
    """systemctl failed; the message includes the journal of the unit."""


def run(*words: str) -> tuple[int, str]:
    """Return exit status and output of a command."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def systemctl(*words: str) -> None:
    """Run systemctl on one unit, the last word. Raises SystemctlError."""
    code, output = run("systemctl", *words)
    if code != 0:
        _, journal = run("journalctl", "--no-pager", "--lines=20", f"--unit={words[-1]}")
        raise SystemctlError(f"systemctl {' '.join(words)} failed: {output.strip()}\n{journal}")


def has_state(query: str, unit: str) -> bool:
    """Return the answer to `systemctl is-active` or `is-enabled`."""
    return run("systemctl", query, "--quiet", unit)[0] == 0


def plan(request: dict[str, Any]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the systemctl commands that are needed, and the services that are not active yet."""
    commands: list[tuple[str, ...]] = [("daemon-reload",)] if request["daemon_reload"] else []
    started = []
    for unit in request["stopped"]:
        if has_state("is-active", unit) or has_state("is-enabled", unit):
            commands.append(("disable", "--now", "--quiet", unit))
    for unit in request["services"]:
        active = has_state("is-active", unit)
        if not active:
            started.append(unit)
        if not active or not has_state("is-enabled", unit):
            commands.append(("enable", "--now", "--quiet", unit))
    commands += [("restart", unit) for unit in request["restarted"]]
    return commands, started


def main() -> dict[str, Any]:
    request = json.load(sys.stdin)
    commands, started = plan(request)
    try:
        for words in commands if not request["check"] else []:
            systemctl(*words)
    except SystemctlError as error:
        return {"failed": True, "msg": str(error)}
    # A reload alone is no change: it follows one of a file.
    return {"changed": commands not in ([], [("daemon-reload",)]), "started": started}


if __name__ == "__main__":
    print(json.dumps(main()))
