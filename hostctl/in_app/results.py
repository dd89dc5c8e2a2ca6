"""Record the start and the outcome of tasks, also when the result backend does not answer.

Celery takes an error of the result backend for a failure of the task: it acknowledges a task that never ran, and a
thread of its pool never becomes free. Here:

- In the pool, a task waits until its start is recorded; when that takes too long, its message is requeued. A task that
  ran waits until its outcome is recorded, much longer, since requeued it runs a second time.
- In the worker's main process, which must not wait, outcomes such as a time limit are recorded later (Unrecorded).
- A task that is acknowledged before it runs cannot be requeued: it runs without a record of its start, and an outcome
  that cannot be recorded is lost.
- A worker that is told to stop does not wait for the result backend.
"""

from __future__ import annotations

import logging
import mmap
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, wraps
from typing import Any, ClassVar

# Seconds to wait for the result backend before a task; at most a tenth of the task's time limit, which runs meanwhile.
START_SECONDS = 30
# Seconds to wait with the outcome of a task; at most until its hard time limit, less LIMIT_SECONDS.
OUTCOME_SECONDS = 300
LIMIT_SECONDS = 5
# The same in a worker that has been told to stop.
STOPPING_SECONDS = 5
# Seconds to wait with the record of a retry, whose message is already sent.
RETRY_SECONDS = 1
# Seconds between two attempts: the first pause, doubled up to the longest one; in the pool and in the main process.
PAUSES = (0.2, 3)
MAIN_PAUSES = (1, 30)

# Errors of what is stored. With any other error the result backend does not answer, or refuses for now.
BUILTIN_ERRORS = (TypeError, ValueError, LookupError, AttributeError, NameError, ImportError, NotImplementedError)
# By their names in the database API (PEP 249), and kombu's.
ERROR_NAMES = {"DataError", "IntegrityError", "ProgrammingError", "NotSupportedError", "SerializationError"}

logger = logging.getLogger("celery.hostctl")

# Shared with the children of the pool: whether the worker has been told to stop.
stopping = mmap.mmap(-1, 1)


class Stage(Enum):
    """What is to be recorded, or read."""

    QUERY = "read an earlier outcome"
    START = "record the start"
    RETRY = "record the retry"
    OUTCOME = "record the outcome"


class NotRecorded(BaseException):
    """Ends a task that is requeued. Celery would take an Exception for a failure of the task."""


class OutcomeNotRecordedError(Exception):
    """Raised in the worker's main process."""


@dataclass
class Run:
    """A task that is run by this child, thread or greenlet of the pool."""

    # Does the pool enforce the time limits of messages and tasks, and those of the settings?
    has_limits: ClassVar[bool] = True
    has_default_limits: ClassVar[bool] = False

    task: Any
    task_id: str
    request: dict[str, Any]
    began: float = field(default_factory=time.monotonic)
    is_recording: bool = False

    def __str__(self) -> str:
        return f"{self.task.name}[{self.task_id}]"

    @property
    def ignores_result(self) -> bool:
        ignored = self.request.get("ignore_result")
        return self.task.ignore_result if ignored is None else ignored

    @property
    def is_redelivered(self) -> bool:
        return bool((self.request.get("delivery_info") or {}).get("redelivered"))

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Return the hard and the soft time limit, of the message, the task, or the settings; None without one."""
        if not self.has_limits:
            return None, None
        hard, soft = self.request.get("timelimit") or (None, None)
        hard, soft = hard or self.task.time_limit, soft or self.task.soft_time_limit
        if self.has_default_limits:
            settings = self.task.app.conf
            hard, soft = hard or settings.task_time_limit, soft or settings.task_soft_time_limit
        return hard, soft

    def deadline(self, stage: Stage) -> float:
        """Return when waiting ends, of time.monotonic()."""
        now = time.monotonic()
        hard, soft = self.limits
        if stage is Stage.QUERY and self.ignores_result:
            return now
        if stage in (Stage.QUERY, Stage.START):
            return now + min(START_SECONDS, *(limit / 10 for limit in (hard, soft, 10 * START_SECONDS) if limit))
        if stage is Stage.RETRY:
            return now + RETRY_SECONDS
        return min(now + OUTCOME_SECONDS, self.began + hard - LIMIT_SECONDS if hard else now + OUTCOME_SECONDS)


# What this child, thread or greenlet runs. A threading.local from before gevent's patch would be one for all greenlets.
current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)


# --- The result backend --------------------------------------------------------------------------------------------


def guard_backends(app: Any) -> None:
    """Have every result backend of an application wait, as this module describes."""
    for cls in {type(app.backend)} | {type(task.backend) for task in app.tasks.values()}:
        cls.store_result = guarded(cls.store_result, stage_of_state)
        cls.on_chord_part_return = guarded(cls.on_chord_part_return, lambda *_args, **_options: Stage.OUTCOME)
        cls.get_task_meta = guarded(cls.get_task_meta, stage_of_query)


def guarded(method: Callable[..., Any], stage_of: Callable[..., Stage | None]) -> Callable[..., Any]:
    """Wrap a method of a result backend, for calls with a stage."""

    @wraps(method)
    def call(backend: Any, *args: Any, **options: Any) -> Any:
        stage, run = stage_of(*args, **options), current_run.get()
        if not stage or (run and run.is_recording):
            return method(backend, *args, **options)
        record = partial(method, backend, *args, **options)
        return record_in_pool(run, stage, record) if run else record_in_main_process(stage, record)

    return call


def stage_of_state(_task_id: str, _result: Any, state: str, *_args: Any, **_options: Any) -> Stage | None:
    """Return the stage of a state; None for the states of the application itself, such as PROGRESS."""
    from celery import states

    stages = {states.STARTED: Stage.START, states.RETRY: Stage.RETRY}
    return Stage.OUTCOME if state in states.READY_STATES else stages.get(state)


def stage_of_query(*_args: Any, **_options: Any) -> Stage | None:
    """Return the stage of a question about a task's state: Celery asks it before it runs a redelivered task."""
    from celery import current_task

    return Stage.QUERY if current_run.get() and not current_task else None


def record_in_pool(run: Run, stage: Stage, record: Callable[[], Any]) -> Any:
    """Call `record` until it succeeds; raises NotRecorded for a task that is to be requeued."""
    deadline, pause, is_told, is_stopping = run.deadline(stage), 0.0, False, False
    run.is_recording = True
    try:
        while True:
            try:
                time.sleep(pause)
                value = record()
            # Also the soft time limit, which says nothing about a task that has ended.
            except Exception as error:
                if not is_outage(error):
                    if stage is Stage.OUTCOME:
                        raise  # Celery records a failure.
                    return go_on_without(run, stage, error)
                reset_connections()
                if stopping[0] and not is_stopping:
                    is_stopping, deadline = True, min(deadline, time.monotonic() + STOPPING_SECONDS)
                left = deadline - time.monotonic()
                if left <= 0 or (is_stopping and stage in (Stage.QUERY, Stage.START)):
                    return give_up(run, stage, error)
                if not is_told:
                    is_told = True
                    logger.warning("%s waits up to %.0f s: cannot %s: %r", run, left, stage.value, error)
                pause = min(max(2 * pause, PAUSES[0]), PAUSES[1], left)
            else:
                if is_told:
                    logger.warning("%s no longer waits to %s.", run, stage.value)
                return value
    finally:
        run.is_recording = False


def give_up(run: Run, stage: Stage, error: Exception) -> None:
    """End a task whose message can be requeued; otherwise let it go on without the record."""
    is_needed = stage in (Stage.START, Stage.OUTCOME) or (stage is Stage.QUERY and not run.ignores_result)
    if is_needed and run.task.acks_late:
        raise NotRecorded(f"{run} is requeued: cannot {stage.value}: {error!r}")
    go_on_without(run, stage, error)


def go_on_without(run: Run, stage: Stage, error: Exception) -> None:
    """Let a task go on; raises BackendGetMetaError for a query, after which Celery runs the task."""
    from celery.exceptions import BackendGetMetaError

    logger.error("%s continues: cannot %s: %r", run, stage.value, error)
    if stage is Stage.QUERY:
        raise BackendGetMetaError(str(error), task_id=run.task_id) from error


def record_in_main_process(stage: Stage, record: Callable[[], Any]) -> Any:
    """Call `record`, a second time with a new connection; raises OutcomeNotRecordedError."""
    for is_last in (False, True):
        try:
            return record()
        except Exception as error:
            if not is_outage(error):
                raise
            reset_connections()
            if not is_last:
                continue
            if stage is Stage.OUTCOME:
                raise OutcomeNotRecordedError(repr(error)) from error
            logger.error("Cannot %s of a task: %r", stage.value, error)
    return None


def is_outage(error: BaseException) -> bool:
    """Return whether an error says that the result backend does not answer, rather than that it cannot store this."""
    from celery.exceptions import BackendError

    if isinstance(error, BackendError):
        return error.__cause__ is not None and is_outage(error.__cause__)
    return not isinstance(error, BUILTIN_ERRORS) and not ERROR_NAMES & {cls.__name__ for cls in type(error).__mro__}


def reset_connections() -> None:
    """Close what Django holds of connections that are lost: it does so between two tasks only."""
    if database := sys.modules.get("django.db"):
        with suppress(Exception):
            database.close_old_connections()


# --- The pool ------------------------------------------------------------------------------------------------------


def guard_pool(pool: Any) -> None:
    """Have a pool run tasks by `run_task`, and tell the worker about every end of a task."""
    from celery.concurrency import prefork, solo, thread

    is_prefork = isinstance(pool, prefork.TaskPool)
    Run.has_limits, Run.has_default_limits = not isinstance(pool, solo.TaskPool | thread.TaskPool), is_prefork
    apply_async = pool.apply_async

    def apply(target: Callable[..., Any], args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        if not is_prefork:
            options["callback"] = report(options["callback"], options["error_callback"])
            return apply_async(run_task_here, (target, *args), kwargs, **options)
        return apply_async(run_task, (target, *args), kwargs, **options)

    pool.apply_async = apply


def report(callback: Callable[..., Any], error_callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a callback for pools without one for errors, after which the worker would wait for ever."""
    from billiard.einfo import ExceptionInfo

    return lambda answer: error_callback(answer) if isinstance(answer, ExceptionInfo) else callback(answer)


def run_task_here(*args: Any) -> Any:
    """Run a task; return what went wrong around it."""
    from billiard.einfo import ExceptionInfo

    try:
        return run_task(*args)
    except Exception:
        return ExceptionInfo()


def run_task(target: Callable[..., Any], name: str, task_id: str, request: dict[str, Any], *args: Any) -> Any:
    """Run a task by Celery's function `target`; return its answer, or one that requeues the task."""
    from billiard.einfo import ExceptionInfo
    from celery import current_app
    from celery.exceptions import Reject

    run = Run(current_app.tasks[name], task_id, request)
    token = current_run.set(run)
    try:
        await_backend(run)
        return target(name, task_id, request, *args)
    except NotRecorded as error:
        logger.error("%s", error)
        try:
            raise Reject(str(error), requeue=True)
        except Reject:
            return 1, ExceptionInfo(internal=True), 0.0
    finally:
        current_run.reset(token)


def await_backend(run: Run) -> None:
    """Before a task that was requeued: otherwise it would run again and again, each time without a recorded outcome."""
    backend = run.task.backend
    if run.is_redelivered and not (run.ignores_result or run.task.track_started) and backend.persistent:
        with suppress(Exception):
            backend.get_task_meta(run.task_id)


# --- The worker's main process -------------------------------------------------------------------------------------


class Unrecorded:
    """Outcomes that the worker's main process records later; until then their messages are not acknowledged."""

    def __init__(self) -> None:
        self.timer: Any = None
        self.calls: dict[Any, Callable[[], Any]] = {}

    @property
    def requests(self) -> list[Any]:
        return list(self.calls)

    def resume(self, timer: Any) -> None:
        """Go on after the worker has lost its connection, and with it its timers."""
        self.timer = timer
        for request in self.requests:
            self.call_later(request, MAIN_PAUSES[0])

    def attempt(self, request: Any, call: Callable[[], Any], pause: float = MAIN_PAUSES[0]) -> Any:
        """Call a method of a request, later again if its outcome cannot be recorded; return its value or True."""
        try:
            value = call()
        except OutcomeNotRecordedError as error:
            if request not in self.calls:
                logger.warning("Cannot record the outcome of %s yet: %s", request.humaninfo(), error)
            self.calls[request] = call
            self.call_later(request, pause)
            return True
        if self.calls.pop(request, None):
            logger.warning("Recorded the outcome of %s.", request.humaninfo())
        return value

    def call_later(self, request: Any, pause: float) -> None:
        self.timer.call_after(pause, self.attempt_again, (request, min(2 * pause, MAIN_PAUSES[1])))

    def attempt_again(self, request: Any, pause: float) -> None:
        if call := self.calls.get(request):
            self.attempt(request, call, pause)


def extend_requests(app: Any, unrecorded: Unrecorded) -> None:
    """Have the requests of each task of an application record later what they cannot record now."""
    from kombu.utils.imports import symbol_by_name

    for task in app.tasks.values():
        base = symbol_by_name(task.Request)
        if not hasattr(base, "unrecorded"):
            task.Request = request_class(base, unrecorded)


def request_class(base: type, outcomes: Unrecorded) -> type:
    """Return a class of requests (celery.worker.request.Request)."""

    class Request(base):
        unrecorded = outcomes

        def revoked(self) -> bool:
            return self.unrecorded.attempt(self, super().revoked)

        def on_timeout(self, *args: Any, **options: Any) -> None:
            self.unrecorded.attempt(self, partial(super().on_timeout, *args, **options))

        def on_failure(self, *args: Any, **options: Any) -> None:
            self.unrecorded.attempt(self, partial(super().on_failure, *args, **options))

    return Request
