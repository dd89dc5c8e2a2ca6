"""Requests of visitors since the last run, from nginx's access log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..doctor.application import AGENT
from ..doctor.finding import Context
from ..settings import Settings, say
from . import pause

# The most that one run reads. Of a longer part, the end is read, and the counts are extrapolated.
BYTES = 8 * 2**20
# After so many seconds without a run, what the log has got meanwhile is no longer of interest.
FORGOTTEN = 600
# How long memory["requests"] goes back, in seconds.
KEPT = 900
# As in roles/nginx/templates/site.conf.j2. nginx escapes quotes in what clients send.
# (`*+` never tries again with less: the time is linear, whatever clients send.)
LINE = re.compile(
    rb'^(\S++) - [^"\n]*+"([^"\n]*+)" (\d{3}) \d++ "[^"\n]*+" "([^"\n]*+)" time=([\d.]++) upstream=(\S++)',
    re.MULTILINE,
)
# The scheme and host of a request line that has the whole URL.
ORIGIN = re.compile(rb"[a-zA-Z]+://[^/]*")
LOOPBACK = (b"127.0.0.1", b"::1")
# Their time is that of the client or of a WebSocket: closed by the client, and protocol switched.
WITHOUT_LATENCY = (b"499", b"101")


@dataclass
class Requests:
    """Counts, and the seconds that each answer took."""

    number: float = 0
    errors: float = 0
    seconds: list[float] = field(default_factory=list)


def measure(context: Context) -> dict[str, float]:
    """Return requests and 5xx per minute, and latency in seconds; {} on the first run and without a site.

    Adds the counts to memory["requests"], where errors count that nothing explains.
    """
    if not (context.settings.web and context.settings.access_log):
        return {}
    last = context.memory.get("access_log", {})
    age = context.now - last.get("time", 0)
    if not 0 < age <= FORGOTTEN:
        last = {}
    try:
        parts, place = new_parts(Path(context.settings.access_log), last)
    except FileNotFoundError:
        return {}
    context.memory["access_log"] = place | {"time": context.now}
    if not last:
        return {}
    found = Requests()
    for text, skipped in parts:
        count(found, text, skipped, context.settings)
    earlier = [entry for entry in context.memory.get("requests", []) if 0 <= context.now - entry[0] < KEPT]
    minutes = [*earlier, [context.now, round(found.number), round(found.errors)]]
    if pause.explains_errors(context):
        # Those of the minutes before, too: a restart of the host or a restore has ended before its errors are old.
        minutes = [[at, number, 0] for at, number, _ in minutes]
    context.memory["requests"] = minutes
    values = {"requests": found.number * 60 / age, "requests_5xx": found.errors * 60 / age}
    if found.seconds:
        found.seconds.sort()
        values |= {"latency_p50": quantile(found.seconds, 0.5), "latency_p95": quantile(found.seconds, 0.95)}
    return values


def new_parts(path: Path, last: dict[str, Any]) -> tuple[list[tuple[bytes, int]], dict[str, int]]:
    """Return what the log has got since the place `last`, as (text, bytes skipped before it), and the new place.

    A file that logrotate has renamed to PATH.1 meanwhile is read to its end. Raises FileNotFoundError.
    """
    parts = []
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        # Without a place: only what comes from now on.
        start = 0 if last else state.st_size
        if last.get("inode") == state.st_ino and last["offset"] <= state.st_size:
            start = last["offset"]
        elif last:
            parts += rest_of(path.with_name(f"{path.name}.1"), last)
        text, skipped, end = read(file, start, state.st_size)
        if skipped:
            say(f"{path}: {skipped} bytes of a minute were skipped; the counts are extrapolated.")
        parts.append((text, skipped))
    return parts, {"inode": state.st_ino, "offset": end}


def rest_of(rotated: Path, last: dict[str, Any]) -> list[tuple[bytes, int]]:
    """Return the end of a renamed file, as new_parts does; [] where it is another file or gone."""
    try:
        with rotated.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != last["inode"]:
                return []
            text, skipped, _ = read(file, last["offset"], state.st_size)
            return [(text, skipped)]
    except FileNotFoundError:
        return []


def read(file: BinaryIO, start: int, end: int) -> tuple[bytes, int, int]:
    """Return complete lines between two places, how many bytes before them were skipped, and where they end."""
    begin = max(start, end - BYTES)
    file.seek(begin)
    text = file.read(end - begin)
    if begin > start:
        cut = text.find(b"\n") + 1
        begin, text = begin + cut, text[cut:]
    text = text[: text.rfind(b"\n") + 1]
    return text, begin - start, begin + len(text)


def count(found: Requests, text: bytes, skipped: int, settings: Settings) -> None:
    """Count the requests of a part."""
    health_path = settings.health_path.encode()
    own_paths = tuple(path.encode() for path in (settings.status_path, settings.flower_path) if path)
    number = errors = 0
    for address, request, status, agent, seconds, upstream in LINE.findall(text):
        if is_own(address, path_of(request), agent, own_paths, health_path):
            continue
        number += 1
        # During maintenance nginx answers 503 without asking an upstream.
        errors += status.startswith(b"5") and not (status == b"503" and upstream == b"-")
        if status not in WITHOUT_LATENCY:
            found.seconds.append(float(seconds))
    factor = (skipped + len(text)) / len(text) if text else 1
    found.number += number * factor
    found.errors += errors * factor


def path_of(request: bytes) -> bytes:
    """Return the path of a request line: GET /PATH HTTP/2.0."""
    path = request.partition(b" ")[2].partition(b" ")[0]
    return path if path.startswith(b"/") else ORIGIN.sub(b"", path, count=1)


def is_own(address: bytes, path: bytes, agent: bytes, own_paths: tuple[bytes, ...], health_path: bytes) -> bool:
    """Return whether this is a request to the status page or Flower, or one of the doctor's."""
    if path.startswith(own_paths):
        return True
    # Any client can send the name of the doctor.
    return address in LOOPBACK and (agent == AGENT.encode() or (bool(health_path) and path == health_path))


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which a share of these sorted values is."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
