"""Requests to a release's own socket."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ..settings import Settings

# Where projects have their health page, in the order in which they are tried. Also known to nginx (wiring.yml).
CANDIDATES = ("/healthz/", "/healthz", "/health/", "/health", "/up", "/up/", "/")
# After so many answers of 500 or more in a row a page is not requested again.
BROKEN_ANSWERS = 3
# Seconds for the requests to the warm-up pages, and for the answer to each.
WARMUP_SECONDS = 3


class Answer(NamedTuple):
    """An answer: its status, the beginning of its body, and where it redirects. Without one, 0 and the reason."""

    status: int
    body: str
    location: str = ""


def problem(settings: Settings, path: Path, release: str, timeout: float = 5) -> str:
    """Request the health page. Returns what is wrong in a few words, or "". `timeout` is in seconds."""
    answer = get(settings, path, settings.health_path or "/", timeout)
    if answer.status != settings.health_status:
        return describe(settings, answer)
    if settings.health_names_release is True and release not in answer.body:
        return f"the answer does not name release {release}"
    return ""


def describe(settings: Settings, answer: Answer) -> str:
    """Return what is wrong with an answer that has not the status of a healthy page."""
    if answer.status == 0:
        return f"no answer ({answer.body})"
    text = f"status {answer.status} instead of {settings.health_status}"
    if answer.status == 400:
        return f"{text}: does ALLOWED_HOSTS have {settings.domain}?"
    if answer.location:
        https = answer.location.startswith("https:") and not local_path(settings, answer.location).strip("/")
        return f"{text}: it redirects to {answer.location}" + (
            ": does SECURE_PROXY_SSL_HEADER have another value?" if https else ""
        )
    return text


def detect(settings: Settings, path: Path, login_pages: list[str], timeout: float = 5) -> tuple[str, str]:
    """Return the first page that answers 200, and ""; or "", and what is wrong in a few words."""
    waiting, seen, followed = [*CANDIDATES, *login_pages], {}, {"/"}
    while waiting:
        page = waiting.pop(0)
        if page in seen:
            continue
        answer = get(settings, path, page, timeout)
        if answer.status == 200:
            return page, ""
        if answer.status in (0, 400):
            return "", describe(settings, answer)
        if answer.status >= 500:
            return "", f"{page}: {describe(settings, answer)}"
        seen[page] = describe(settings, answer)
        # A page that asks for a login, or for a language; it may redirect further.
        if page in followed and (target := local_path(settings, answer.location)):
            waiting.insert(0, target)
            followed.add(target)
    if "SECURE_PROXY_SSL_HEADER" in seen["/"]:
        return "", f"/: {seen['/']}"
    statuses = ", ".join(f"{page} {text.split()[1]}" for page, text in seen.items())
    return "", f"no page answered 200 ({statuses})"


def local_path(settings: Settings, location: str) -> str:
    """Return the path of a redirect that stays on the site, or ""."""
    parts = urlsplit(location)
    return parts.path if parts.hostname in (None, settings.domain, *settings.domains) else ""


def answers(settings: Settings, path: Path, timeout: float = 5) -> bool:
    """Return whether the socket answers, with any status. `timeout` is in seconds."""
    return get(settings, path, settings.health_path or "/", timeout).status != 0


def get(settings: Settings, path: Path, page: str, timeout: float) -> Answer:
    """Request a page the way nginx does."""
    connection = http.client.HTTPConnection(settings.domain, timeout=timeout)
    here = {"X-Real-IP": "127.0.0.1", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https"}
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(path))
        connection.request("GET", page, headers={"Host": settings.domain} | here)
        answer = connection.getresponse()
        body = answer.read(100_000).decode(errors="replace")
        return Answer(answer.status, body, answer.getheader("Location", ""))
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, str(error) or type(error).__name__)
    finally:
        connection.close()


def warm_up(
    settings: Settings, path: Path, pages: list[str], rounds: int = 8, at_most: float = WARMUP_SECONDS
) -> dict[str, list[int]]:
    """Request pages several times, so that each of a few processes has rendered them once; return the statuses.

    `at_most` is in seconds. Also after it each page is requested once, and one that answers 500 or more until it is
    known to be broken: the first requests may take seconds.
    """
    deadline = time.monotonic() + at_most
    seen: dict[str, list[int]] = {page: [] for page in pages}
    for page in pages * rounds:
        if time.monotonic() < deadline and not is_broken(seen[page]):
            seen[page].append(get(settings, path, page, timeout=at_most).status)
    for page, statuses in seen.items():
        while len(statuses) < BROKEN_ANSWERS and min(statuses, default=500) >= 500:
            statuses.append(get(settings, path, page, timeout=at_most).status)
    return seen


def is_broken(statuses: list[int]) -> bool:
    """Return whether a page steadily answers 500 or more."""
    last = statuses[-BROKEN_ANSWERS:]
    return len(last) == BROKEN_ANSWERS and min(last) >= 500


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
