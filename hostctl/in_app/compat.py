"""Every private name of Celery, kombu and billiard that this package uses, and the versions it was tested with.

No other module of the package uses an attribute of theirs that begins with an underscore (tests/unit/test_in_app.py).
With versions outside TESTED, or without a name of REQUIRED, workers and beat run as Celery's command line runs them.
"""

from __future__ import annotations

import copy
import heapq
import importlib
import json
import re
import select
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from importlib import metadata
from queue import Empty
from typing import Any

# The lowest and the highest tested version of each package, both included (tests/in_app/requirements-celery*.txt).
TESTED = {"celery": ("5.4", "5.7"), "kombu": ("5.4", "5.7"), "billiard": ("4.2", "4.3")}

# module:class, and the names that the class or its methods must have.
REQUIRED = {
    "kombu.asynchronous.hub:Hub": ("_pop_ready",),
    "kombu.transport.virtual.base:Channel": ("_lookup", "do_restore"),
    "kombu.transport.virtual.base:QoS": ("_delivered", "_dirty"),
    "kombu.transport.virtual.base:Message": ("_raw",),
    "kombu.transport.redis:QoS": ("append", "restore_visible"),
    "kombu.transport.redis:Channel": (
        "QoS",
        *("_in_poll", "_q_for_pri", "_get_message_priority", "_brpop_read", "handlers", "sep"),
        *("conn_or_acquire", "unacked_key", "unacked_index_key", "unacked_mutex_key", "visibility_timeout"),
        "global_keyprefix",
    ),
    "celery.concurrency.prefork:TaskPool": ("_pool",),
    "celery.concurrency.asynpool:AsynPool": (
        *("_cache", "_busy_workers", "outbound_buffer", "on_timeout_set", "_ctx", "_on_ready_counters"),
    ),
    "billiard.pool:ApplyResult": ("_accept_callback", "_write_to"),
    "billiard.process:BaseProcess": ("_is_alive",),
    "celery.worker.consumer.consumer:Consumer": (
        *("on_unknown_task", "add_task_queue", "on_close", "shutdown", "perform_pending_operations"),
        *("ensure_connected", "on_connection_error_after_connected", "create_task_handler", "update_strategies"),
        *("on_decode_error", "on_unknown_message", "on_invalid_task", "register_with_event_loop"),
    ),
    "celery.beat:Scheduler": ("tick", "_do_sync", "close", "_heap", "_when"),
    "celery.apps.beat:Beat": ("install_sync_handler",),
}

FALLBACK = (
    "workers run as plain `celery worker`, beat as plain `celery beat`; "
    "tasks that a worker holds when it stops abruptly return after visibility_timeout only"
)


# --- Versions ------------------------------------------------------------------------------------------------------


def problems() -> list[str]:
    """Say what keeps this package from extending the installed Celery; empty when it is supported.

    Imports Celery, where its version is inside the tested range.
    """
    return outside_tested_range() or missing_names()


def outside_tested_range() -> list[str]:
    """Say which installed versions are outside TESTED."""
    found = []
    for package, (low, high) in TESTED.items():
        version = metadata.version(package)
        if not number(low) <= number(version) <= number(high):
            found.append(f"{package} {version} is outside the tested range {low} to {high}: {FALLBACK}.")
    return found


def number(version: str) -> tuple[int, ...]:
    """Return the major and minor number of a version such as 5.6.0rc1."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def missing_names() -> list[str]:
    """Say which names of REQUIRED the installed versions lack."""
    missing = []
    for place, names in REQUIRED.items():
        module, _, cls = place.partition(":")
        try:
            owner = getattr(importlib.import_module(module), cls)
        except (ImportError, AttributeError):
            missing.append(place)
        else:
            missing += [f"{place}.{name}" for name in names if not has_name(owner, name)]
    return [f"Celery lacks {', '.join(missing)}: {FALLBACK}."] if missing else []


def has_name(owner: type, name: str) -> bool:
    """Return whether a class has an attribute, or a method that sets or reads such an attribute of its instances."""
    return any(name in vars(cls) or any(name in code.co_names for code in method_codes(cls)) for cls in owner.__mro__)


def method_codes(cls: type) -> Iterator[Any]:
    for member in vars(cls).values():
        if code := getattr(member, "__code__", None):
            yield code


# --- kombu: messages in Redis --------------------------------------------------------------------------------------


def queues_of(channel: Any, exchange: str, routing_key: str) -> list[str]:
    """Return the queues that a message with this exchange and routing key is delivered to; empty without a binding."""
    if not isinstance(exchange, str | None) or not isinstance(routing_key, str | None):
        return []
    return list(channel._lookup(exchange, routing_key))


def keys_of(channel: Any, queue: str) -> list[str]:
    """Return the Redis lists of a queue, one for each priority."""
    return [channel._q_for_pri(queue, priority) for priority in channel.priority_steps]


def restore_message(
    channel: Any, message: dict[str, Any], exchange: str, routing_key: str, pipe: Any, *, behind: bool = False
) -> None:
    """Push a message to its queues, by its priority, marked as redelivered, in a Redis transaction.

    It is the next one to be taken; with `behind`, the last one.
    """
    for place in (message.get("headers"), (message.get("properties") or {}).get("delivery_info")):
        if isinstance(place, dict):
            place["redelivered"] = True
    for queue in queues_of(channel, exchange, routing_key):
        key = channel._q_for_pri(queue, channel._get_message_priority(message))
        (pipe.lpush if behind else pipe.rpush)(key, json.dumps(message))


def on_undelivered(channel: Any, take: Callable[[bytes, str, Exception], bool]) -> None:
    """Have `take` called with an item of a queue that was read from Redis and then raised an error, and its queue.

    kombu has no trace of such an item: it is lost unless `take` keeps it and returns True.
    """
    read, client = channel._brpop_read, channel.client

    def brpop_read(**options: Any) -> Any:
        answers: list[Any] = []
        parse = client.parse_response
        client.parse_response = lambda *args, **kwargs: answers.append(parse(*args, **kwargs)) or answers[0]
        try:
            return read(**options)
        except Empty:
            raise
        except Exception as error:
            if answers and answers[0]:
                key, item = answers[0]
                if take(item, bytes_to_str(key).rsplit(channel.sep, 1)[0], error):
                    return True
            raise
        finally:
            client.parse_response = parse

    channel._brpop_read = channel.handlers["BRPOP"] = brpop_read


def bytes_to_str(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def keep_own_messages(refused: list[list[Any]], content_errors: tuple[type[Exception], ...]) -> None:
    """Have kombu neither lose nor give out again what this process takes from Redis.

    A message that it took from a queue but cannot add to the slot, it adds to `refused`, as in requeue.py. kombu would
    lose it. Redis refuses, for instance, while its disk or its memory is full. A message that raises one of
    `content_errors` would never be added.

    After visibility_timeout kombu gives messages out again, also those of its own process, whose tasks run or wait for
    their ETA. Here each process has a slot of its own, and requeue.py requeues those of dead workers only.
    """
    from kombu.transport import redis

    class QoS(redis.QoS):
        def append(self, message: Any, delivery_tag: str) -> None:
            try:
                super().append(message, delivery_tag)
            except content_errors:
                raise
            except Exception as error:
                delivery = message.delivery_info
                refused.append([message._raw, delivery["exchange"], delivery["routing_key"]])
                # One from which the worker reconnects, whatever the project's settings are.
                raise ConnectionError(f"Redis refused to record a message that was taken: {error}") from error

        def restore_visible(self, *args: Any, **kwargs: Any) -> None:
            pass

    redis.Channel.QoS = QoS


def unacknowledged_tags(consumer: Any) -> set[str]:
    """Return the delivery tags that a worker's consumer has received and neither acknowledged nor rejected."""
    if not consumer.task_consumer:
        return set()
    qos = consumer.task_consumer.channel.qos
    return set(qos._delivered) - qos._dirty


def complete_callbacks(hub: Any) -> None:
    """Call now what waits for the event loop, such as acknowledgements of threads that ended while it did not run."""
    if hub:
        for callback in hub._pop_ready():
            callback()


def waits_for_messages(channel: Any) -> bool:
    """Return whether a BRPOP of this channel is under way, which may still take a message."""
    return bool(channel._in_poll)


def last_answer(channel: Any) -> float | None:
    """Return a value that changes with every answer to the channel's BRPOP (one a second); None when none is under way.

    redis-py notes when a connection is next due for a health check, each time it has read an answer.
    """
    connection = channel._in_poll
    return getattr(connection, "next_health_check", None) if connection else None


def has_unread_answer(channel: Any) -> bool:
    """Return whether an answer to the channel's BRPOP, maybe a message, has arrived and was not read yet."""
    sock = channel._in_poll._sock
    if not sock:
        return False
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def abandon_brpop(channel: Any) -> None:
    """Disconnect the socket of a BRPOP, whose answer kombu would otherwise wait for when it closes the channel."""
    channel._in_poll.disconnect()


def checks_brpop_itself() -> bool:
    """Return whether kombu notices a BRPOP without an answer, as it does from 5.7 on."""
    from kombu.transport.redis import MultiChannelPoller

    return hasattr(MultiChannelPoller, "maybe_check_brpop_health")


# --- billiard: jobs in the prefork pool ----------------------------------------------------------------------------


def delivered_jobs(pool: Any) -> dict[int, Any]:
    """Return the jobs of the prefork pool that a living child runs or will run, since they were written to it.

    At shutdown and with a lost connection Celery forgets those that the child has not confirmed, before 5.6 all.
    """
    processes = getattr(pool, "_pool", None)
    return {
        key: job
        for key, job in getattr(processes, "_cache", {}).items()
        if job._write_to and job._write_to._is_alive() and job not in processes.outbound_buffer
        if job._accept_callback
    }


def remember_jobs(pool: Any, jobs: dict[int, Any]) -> None:
    """Give the prefork pool its jobs back after it has forgotten them, and mark their children as busy.

    Before Celery 5.7 the next task might otherwise wait behind a running one although another child is free.
    """
    if jobs:
        pool._pool._cache.update(jobs)
        pool._pool._busy_workers.update(job._write_to.inqW_fd for job in jobs.values())


def request_of(job: Any) -> Any:
    """Return the request (celery.worker.request.Request) of a prefork job."""
    return job._accept_callback.__self__


def enforce_hard_limits(pool: Any) -> None:
    """Have the prefork pool enforce hard time limits below the soft one, which it would wait for first.

    A task's own hard limit may be below the soft limit of the settings. Called after each registration with the loop.
    """
    processes = getattr(pool, "_pool", None)
    set_limits = getattr(processes, "on_timeout_set", None)
    if set_limits:
        processes.on_timeout_set = lambda job, soft, hard: set_limits(
            job, None if soft and hard and soft >= hard else soft, hard
        )


class ResultCount:
    """How many results of a child the main process has read: billiard's shared integer, without its lock.

    A child that ends reads it every 0.1 s until all are read. If it is killed at that moment, as 0.1 s after its hard
    time limit, it keeps the lock, for which the main process then waits forever. None is needed: only that one writes.
    """

    def __init__(self, kind: str) -> None:
        from billiard.sharedctypes import RawValue

        self.raw = RawValue(kind)

    @property
    def value(self) -> int:
        return self.raw.value

    @value.setter
    def value(self, number: int) -> None:
        self.raw.value = number

    def get_lock(self) -> AbstractContextManager[None]:
        return nullcontext()


def count_results_without_lock(processes: Any) -> None:
    """Have billiard's pool count the results of the children that it creates from now on by ResultCount."""
    context = copy.copy(processes._ctx)
    context.Value = ResultCount
    processes._ctx = context


def starts_what_it_was_given(pool: Any) -> bool:
    """Return whether a pool still runs the tasks that wait in it when it is told to stop, as threads do."""
    from celery.concurrency.base import BasePool

    return getattr(pool.flush, "__func__", None) is BasePool.flush


# --- Celery: lost connections --------------------------------------------------------------------------------------


def keep_unacknowledged(channel: Any) -> None:
    """Have a channel that is closed leave its unacknowledged messages where they are.

    kombu requeues them all, also those whose tasks still run here. The worker requeues the others when it reconnects.
    """
    channel.do_restore = False


# --- Celery: beat --------------------------------------------------------------------------------------------------


def wrap_scheduler(scheduler: Any, wrap: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
    """Wrap the methods of beat's scheduler that send tasks or write the schedule."""
    for name in ("tick", "_do_sync", "close"):
        setattr(scheduler, name, wrap(getattr(scheduler, name)))


def runs_celerys_tick(scheduler: Any) -> bool:
    """Return whether a scheduler takes its entries from Celery's heap, as the persistent and the database one do."""
    from celery.beat import Scheduler

    return type(scheduler).tick is Scheduler.tick


def waiting_entries(scheduler: Any) -> list[Any]:
    """Return the entries that beat waits for; before the first tick, those of the schedule."""
    return [event[2] for event in scheduler._heap or ()] or list(scheduler.schedule.values())


def set_last_run(scheduler: Any, entry: Any, moment: datetime) -> None:
    """Change when an entry has run last; a scheduler that keeps its entries in a database writes it there."""
    entry.last_run_at = moment
    if hasattr(entry, "model"):
        entry.model.last_run_at = moment
        # Celery's scheduler has no such set: it writes all entries.
        getattr(scheduler, "_dirty", set()).add(entry.name)


def reschedule(scheduler: Any) -> None:
    """Compute again when each entry is due, after the clock was set back."""
    from celery.beat import event_t

    heap = []
    for _, priority, entry in scheduler._heap or ():
        is_due, seconds = entry.is_due()
        heap.append(event_t(scheduler._when(entry, 0 if is_due else seconds), priority, entry))
    heapq.heapify(heap)
    # None has the next tick fill it.
    scheduler._heap = heap or None
    # The database scheduler reads its table every five minutes, by the clock: not only when that has caught up.
    if getattr(scheduler, "_last_full_sync", None):
        scheduler._last_full_sync = datetime.min
