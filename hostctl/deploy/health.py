"""Requests to a release's own socket."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path

from ..settings import Settings


def problem(settings: Settings, path: Path, release: str, timeout: float = 5) -> str:
    """Request the health page. Returns what is wrong in a few words, or "". `timeout` is in seconds."""
    status, body = get(settings, path, settings.health_path, timeout)
    if status == 0:
        return f"no answer ({body})"
    if status != 200:
        return f"status {status} instead of 200"
    if settings.health_names_release and release not in body:
        return f"the answer does not name release {release}"
    return ""


def answers(settings: Settings, path: Path, timeout: float = 5) -> bool:
    """Return whether the socket answers, with any status. `timeout` is in seconds."""
    return get(settings, path, settings.health_path, timeout)[0] != 0


def get(settings: Settings, path: Path, page: str, timeout: float) -> tuple[int, str]:
    """Request a page the way nginx does. Returns status and body; 0 and the reason when there is no answer."""
    connection = http.client.HTTPConnection(settings.domain, timeout=timeout)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(path))
        connection.request("GET", page, headers={"Host": settings.domain, "X-Forwarded-Proto": "https"})
        answer = connection.getresponse()
        return answer.status, answer.read(100_000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def warm_up(settings: Settings, path: Path, pages: list[str], rounds: int = 8, at_most: float = 3) -> None:
    """Request pages several times, so that each of a few processes has rendered them once. `at_most` is in seconds."""
    deadline = time.monotonic() + at_most
    for page in pages * rounds:
        if time.monotonic() < deadline:
            get(settings, path, page, timeout=at_most)


def wait_until_idle(path: Path, at_least: float = 1, at_most: float = 5) -> None:
    """Wait until no connection waits at a socket: nginx may have opened one before the switch. Times in seconds."""
    began = time.monotonic()
    while time.monotonic() - began < at_most:
        waiting = queued(path)
        if waiting == 0 and time.monotonic() - began >= at_least:
            return
        time.sleep(0.1)


def queued(path: Path) -> int:
    """Return how many connections wait at a listening socket to be accepted."""
    output = subprocess.run(["ss", "--no-header", "-xl"], capture_output=True, text=True, check=False).stdout
    return sum(int(line.split()[2]) for line in output.splitlines() if str(path) in line.split())
