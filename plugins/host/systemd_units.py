"""Have services running: what the action of the same name runs on the host, with Debian's Python and its library alone.

Reads {"stopped", "services", "restarted", "daemon_reload", "check"} from stdin; prints {"changed", "started"} or
{"failed", "msg"}, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


class FailedError(Exception):
    """systemd could not do it; the message says why."""


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def act(*words: str) -> None:
    """Raises FailedError, with the journal of the unit, which is the last word."""
    code, said = run("systemctl", *words)
    if code != 0:
        _, journal = run("journalctl", "--no-pager", "--lines=20", f"--unit={words[-1]}")
        raise FailedError(f"systemctl {' '.join(words)} failed: {said.strip()}\n{journal}")


def is_so(question: str, unit: str) -> bool:
    return run("systemctl", question, "--quiet", unit)[0] == 0


def main() -> dict[str, Any]:
    asked = json.load(sys.stdin)
    wanted, started = [], []
    if asked["daemon_reload"]:
        wanted.append(("daemon-reload",))
    for unit in asked["stopped"]:
        if is_so("is-active", unit) or is_so("is-enabled", unit):
            wanted.append(("disable", "--now", "--quiet", unit))
    for unit in asked["services"]:
        active = is_so("is-active", unit)
        started += [] if active else [unit]
        if not active or not is_so("is-enabled", unit):
            wanted.append(("enable", "--now", "--quiet", unit))
    wanted += [("restart", unit) for unit in asked["restarted"]]
    try:
        for words in wanted if not asked["check"] else []:
            act(*words)
    except FailedError as error:
        return {"failed": True, "msg": str(error)}
    return {"changed": wanted not in ([], [("daemon-reload",)]), "started": started}


if __name__ == "__main__":
    print(json.dumps(main()))
