"""The watchdog of a gunicorn process: logs requests that do not return with their stack, and replaces the process.

gunicorn's own `timeout` watches the loop that accepts connections, not the threads that serve them. The watchdog uses
documented hooks and attributes only (roles/services/templates/gunicorn.conf.py.j2).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

# Seconds after a limit until the watchdog acts: by then nginx, with the same limit, has answered the visitor.
MARGIN = 2
# Seconds for the other requests of the process to end, at least and at most.
GRACE = (1, 5)
# The innermost frames of a stack that are logged.
FRAMES = 40


class Running(NamedTuple):
    """A request that has begun and not returned."""

    began: float
    request: Any


class Watchdog:
    """The requests of this process by thread; a response counts until it has been sent."""

    def __init__(self, limit: float, long_requests: Mapping[str, float], margin: float = MARGIN) -> None:
        self.limit = limit
        # The longest prefix first, as nginx chooses.
        self.long = sorted(long_requests.items(), key=lambda item: -len(item[0]))
        self.margin = margin
        self.running: dict[int, Running] = {}

    # -- gunicorn's hooks

    def pre_request(self, worker: Any, request: Any) -> None:
        self.running[threading.get_ident()] = Running(time.monotonic(), request)

    def post_request(self, worker: Any, request: Any, environ: Any, response: Any) -> None:
        self.running.pop(threading.get_ident(), None)

    def post_worker_init(self, worker: Any) -> None:
        """Watch this process, which the hooks above run in."""
        threading.Thread(target=self.watch, args=[worker.log.error], name="request-watchdog", daemon=True).start()

    # -- the watch

    def watch(self, log: Callable[[str], None]) -> None:
        while not (stuck := self.stuck()):
            time.sleep(1)
        # From here on this process ends, also where logging blocks or a C extension keeps the interpreter's lock.
        faulthandler.dump_traceback_later(GRACE[1] + 5, exit=True, file=2)
        # Accept no more: the other processes take what comes, and the requests of this one are finished.
        os.kill(os.getpid(), signal.SIGTERM)
        for thread, running in stuck.items():
            log(self.report(thread, running))
        self.wait_for_others(set(stuck))
        log(f"Replacing the process {os.getpid()}: {len(stuck)} of its requests did not return.")
        # Python would wait for the threads, forever. gunicorn starts another process.
        os._exit(1)

    def stuck(self) -> dict[int, Running]:
        now = time.monotonic()
        return {
            thread: running
            for thread, running in self.running.copy().items()
            if now - running.began > self.limit_of(running.request.path) + self.margin
        }

    def limit_of(self, path: str) -> float:
        path = unquote(path)
        return next((seconds for prefix, seconds in self.long if path.startswith(prefix)), self.limit)

    def report(self, thread: int, running: Running) -> str:
        """Return what is logged of a request: without its query, which may hold secrets."""
        request = running.request
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else "  It has just ended.\n"
        age, limit = time.monotonic() - running.began, self.limit_of(request.path)
        return (
            f"{request.method} {request.path} has not returned after {age:.0f} s; its limit is {limit:g} s "
            f"(app_request_timeout, app_long_requests). It is at:\n{stack.rstrip()}"
        )

    def wait_for_others(self, stuck: set[int]) -> None:
        """Wait until only requests that were stuck are left, and at most the grace."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < GRACE[1]:
            if waited >= GRACE[0] and not set(self.running) - stuck:
                return
            time.sleep(0.1)
