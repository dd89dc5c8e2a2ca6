"""Count how often a message returned because its task ended a process; after a few returns it is parked.

Counted is what a worker held whose main process was killed or crashed, and a task whose child of the pool was lost, was
killed at its hard time limit, or ran out of memory. A worker that was told to stop counts nothing.

The count is in the message itself: it is written in the transaction that requeues the message, and ends with it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

# With this return a message is parked.
LIMIT = 3
# Seconds after its last return for which a message's returns are remembered.
REMEMBER_SECONDS = 24 * 3600
# Where the count is: a property of the message.
PROPERTY = "hostctl_returns"
# Seconds for which a deployment can ask when a worker returned messages.
CRASH_SECONDS = 3600

logger = logging.getLogger("celery.hostctl")


# --- Messages ------------------------------------------------------------------------------------------------------


def count(properties: Any) -> int:
    """Return how often a message with these properties returned."""
    found = properties.get(PROPERTY) if isinstance(properties, dict) else None
    if not isinstance(found, dict) or time.time() - found.get("last", 0) > REMEMBER_SECONDS:
        return 0
    return int(found.get("count", 0))


def add(message: dict[str, Any]) -> int:
    """Count one more return of a message, as it is in Redis; return the new number."""
    number = count(message["properties"]) + 1
    message["properties"][PROPERTY] = {"count": number, "last": int(time.time())}
    return number


def reset(message: dict[str, Any]) -> None:
    if isinstance(message.get("properties"), dict):
        message["properties"].pop(PROPERTY, None)


def is_last_chance(properties: Any) -> bool:
    """Return whether one more return parks the message."""
    return count(properties) >= LIMIT - 1


# --- Workers -------------------------------------------------------------------------------------------------------


def state_key(node: str) -> str:
    """Return the Redis hash in which a worker notes `stopping`, and the tag of the task that is `alone`."""
    return f"unacked_state:{node}"


def crash_key(node: str) -> str:
    """Return the Redis key with the time at which messages of this worker were last counted."""
    return f"unacked_crash:{node}"


class OneByOne:
    """Starts the tasks that have a last chance, one at a time: the next death of this worker is that one's fault.

    Tasks that only ran beside the one that ends the worker are thereby not parked.
    """

    def __init__(self, start: Callable[[Any], None], note: Callable[[str], None]) -> None:
        self.start, self.note = start, note
        self.running = ""
        self.waiting: deque[Any] = deque()

    def add(self, request: Any) -> None:
        self.waiting.append(request)
        self.start_next()

    def start_next(self) -> None:
        while self.waiting and not self.running:
            request = self.waiting.popleft()
            self.running = request.message.delivery_tag
            self.note(self.running)
            self.start(request)

    def ended(self, tag: str) -> None:
        """Called with the tag of each message that was acknowledged or rejected."""
        if tag == self.running:
            self.running = ""
            self.start_next()

    def forget(self, but: Collection[str]) -> None:
        """Forget the tasks that do not run, after a lost connection: their messages are requeued."""
        self.waiting.clear()
        self.running = self.running if self.running in but else ""


def extend_requests(app: Any, blame: Callable[[str], None]) -> None:
    """Have the requests of each task of an application tell which message's task ended a process."""
    from kombu.utils.imports import symbol_by_name

    for task in app.tasks.values():
        base = symbol_by_name(task.Request)
        if getattr(base, "blame", None) is None:
            task.Request = request_class(base, blame)
        else:
            base.blame = staticmethod(blame)


def request_class(base: type, blame_tag: Callable[[str], None]) -> type:
    """Return a class of requests (celery.worker.request.Request)."""
    from billiard.einfo import ExceptionWithTraceback
    from celery.exceptions import TimeLimitExceeded, WorkerLostError
    from celery.worker import state

    class Request(base):
        blame = staticmethod(blame_tag)

        def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
            error = exc_info.exception
            error = error.exc if isinstance(error, ExceptionWithTraceback) else error
            # Of the last two, Celery ends the whole worker with the first, and cannot record the other.
            ended_process = isinstance(error, (WorkerLostError, TimeLimitExceeded, MemoryError, SystemExit))
            was_ended = state.should_terminate is not None and state.should_terminate is not False
            if ended_process and self.task.acks_late and not was_ended:
                self.blame(self.message.delivery_tag)
            if isinstance(error, (MemoryError, SystemExit)):
                logger.error("The task %s raised %r, which ends its process.", self.humaninfo(), error)
                state.task_ready(self)
                # Does nothing if the message was acknowledged early.
                self.reject(requeue=True)
                return
            super().on_failure(exc_info, *args, **options)

    return Request
