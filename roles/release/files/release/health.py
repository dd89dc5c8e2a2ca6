"""A release's own pages, asked through its own socket."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path

from .settings import Settings


def health_problem(settings: Settings, path: Path, release: str, timeout: float = 5) -> str:
    """Ask a release's own socket for its health page. Returns "" when all is well, else what is wrong, in a few words.

    `timeout` is in seconds.
    """
    connection = http.client.HTTPConnection(settings.domain, timeout=timeout)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(path))
        connection.request("GET", settings.health_path, headers={"Host": settings.domain, "X-Forwarded-Proto": "https"})
        answer = connection.getresponse()
        body = answer.read(100_000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error or type(error).__name__})"
    finally:
        connection.close()
    if answer.status != 200:
        return f"status {answer.status} instead of 200"
    if settings.health_names_release and release not in body:
        return f"the answer does not name release {release}"
    return ""


def wait_until_idle(path: Path, at_least: float = 1, at_most: float = 5) -> None:
    """Wait until no connection waits at a socket: what nginx opened just before the switch must be taken first.

    Times are in seconds.
    """
    began = time.monotonic()
    while time.monotonic() - began < at_most:
        waiting = queued(path)
        if waiting == 0 and time.monotonic() - began >= at_least:
            return
        time.sleep(0.1)


def queued(path: Path) -> int:
    """How many connections wait at a listening socket to be accepted."""
    output = subprocess.run(["ss", "--no-header", "-xl"], capture_output=True, text=True, check=False).stdout
    return sum(int(line.split()[2]) for line in output.splitlines() if str(path) in line.split())
