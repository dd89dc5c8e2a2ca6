"""The worker's consumer: the application's own class, with what a server needs added."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import broker, compat, parking, reception, requeue, results, returns

logger = logging.getLogger("celery.hostctl")


class Acknowledgements:
    """The channel of messages whose tasks run: keeps acknowledgements while the connection is lost.

    kombu's own channel raises an error for each, which ends the worker or has the task run a second time.
    """

    no_ack_consumers = None

    def __init__(self, connection_errors: tuple[type[Exception], ...]) -> None:
        self.connection_errors = connection_errors
        self.channel: Any = None
        self.kept: list[tuple[str, tuple[Any, ...]]] = []
        # Delivery tags of messages whose task has ended a process.
        self.blamed: set[str] = set()
        # Tasks that have ended their process before.
        self.suspects: Any = None

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self.send("basic_ack", delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.send("basic_reject", delivery_tag, requeue)

    def send(self, method: str, delivery_tag: str, *arguments: Any) -> None:
        self.kept.append((method, (delivery_tag, *arguments)))
        if self.channel:
            try:
                self.send_kept(self.channel)
            except self.connection_errors:
                self.hold()
        if self.suspects:
            self.suspects.ended(delivery_tag)

    def send_kept(self, channel: Any) -> None:
        while self.kept:
            method, (tag, *arguments) = self.kept[0]
            if method == "basic_reject" and arguments == [True] and tag in self.blamed:
                requeue.requeue_counted(channel, tag)
            else:
                getattr(channel, method)(tag, *arguments)
            self.blamed.discard(tag)
            self.kept.pop(0)

    def hold(self) -> None:
        """Keep acknowledgements from now on."""
        self.channel = None

    def release(self, channel: Any) -> None:
        """Send what was kept over a new channel, and later acknowledgements at once."""
        self.send_kept(channel)
        self.channel = channel


def consumer_class(app: Any, summary: Path) -> type:
    """Return the class; at its end the worker writes to `summary` how many tasks it held, finished and requeued."""
    from celery.exceptions import WorkerShutdown, WorkerTerminate
    from celery.worker import state
    from celery.worker.request import Request
    from kombu.utils.imports import symbol_by_name

    def tags(requests: Collection[Any]) -> frozenset[str]:
        return frozenset(request.message.delivery_tag for request in tuple(requests))

    class Consumer(symbol_by_name(app.conf.worker_consumer)):
        # Sets of delivery tags: unacknowledged at shutdown; requeued early; in the pool although Celery forgot them.
        held: frozenset[str] = frozenset()
        requeued: frozenset[str] = frozenset()
        in_pool: frozenset[str] = frozenset()

        # -- connecting

        def __init__(self, on_task_request: Callable[[Any], None], *args: Any, **kwargs: Any) -> None:
            def process(request: Any) -> None:
                request.message.channel = self.acknowledgements
                warn_of_limits(request)
                if returns.is_last_chance(request.message.properties):
                    self.suspects.add(request)
                else:
                    on_task_request(request)

            super().__init__(process, *args, **kwargs)
            self.acknowledgements = Acknowledgements(self.connection_errors)
            self.suspects = returns.OneByOne(on_task_request, self.note_alone)
            self.acknowledgements.suspects = self.suspects
            warn_of_limits = limits_warning(self.pool)
            self.unrecorded = results.Unrecorded()
            self.refused: list[list[Any]] = []
            compat.keep_own_messages(self.refused, reception.errors())

        def ensure_connected(self, conn: Any) -> Any:
            broker.limit_retries(conn)
            return super().ensure_connected(conn)

        def connect(self) -> Any:
            """Connect, and requeue first what Redis has refused; while it refuses anything, nothing more is taken."""
            connection = None
            try:
                connection = super().connect()
                if count := requeue.requeue_refused(connection.default_channel, self.refused):
                    logger.warning("Requeued %d messages that Redis had refused to record.", count)
            except (*self.connection_errors, *self.channel_errors) as error:
                if not self.refused:
                    raise
                if connection:
                    # Celery does not know it yet: after hours, no file descriptor would be left.
                    with suppress(Exception):
                        connection.close()
                time.sleep(broker.RECONNECT_SECONDS)
                raise ConnectionError(f"Redis refuses to take {len(self.refused)} messages back: {error}") from error
            return connection

        def on_connection_error_after_connected(self, exc: Exception) -> None:
            self.acknowledgements.hold()
            if self.hub:
                # They are requeued and received again. (Before Celery 5.6 both copies would run.)
                for entry, _ in self.eta_tasks():
                    entry.cancel()
            if self.task_consumer:
                compat.keep_unacknowledged(self.task_consumer.channel)
            super().on_connection_error_after_connected(exc)

        def on_close(self) -> None:
            """Called after a lost connection and at shutdown; Celery forgets here what its pool has not begun."""
            jobs = compat.delivered_jobs(self.pool)
            if compat.starts_what_it_was_given(self.pool):
                self.in_pool |= tags(state.reserved_requests) - tags(self.suspects.waiting)
            else:
                self.in_pool = tags([compat.request_of(job) for job in jobs.values()])
            self.suspects.forget(but=self.remembered_tags())
            super().on_close()
            compat.remember_jobs(self.pool, jobs)

        def remembered_tags(self) -> frozenset[str]:
            """Return the tags of tasks that run or will run, after a lost connection."""
            return tags(state.active_requests) | tags(self.unrecorded.requests) | self.in_pool

        # -- consuming

        def update_strategies(self) -> None:
            """Called with each new connection."""
            results.extend_requests(self.app, self.unrecorded)
            returns.extend_requests(self.app, self.acknowledgements.blamed.add)
            self.unrecorded.resume(self.timer)
            super().update_strategies()

        def register_with_event_loop(self, hub: Any) -> None:
            super().register_with_event_loop(hub)
            compat.enforce_hard_limits(self.pool)

        def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
            handle, content_errors = super().create_task_handler(*args, **kwargs), reception.errors()

            def on_task_received(message: Any) -> None:
                try:
                    if problem := reception.problem(message):
                        self.park(message, problem)
                    else:
                        handle(message)
                except content_errors as error:
                    self.park(message, reception.describe(error))

            return on_task_received

        def note_alone(self, tag: str) -> None:
            """Note in Redis which task's fault the next death of this worker is."""
            self.note("alone", tag)

        def note(self, field: str, value: str) -> None:
            # Without the note, a death of this worker is counted for the wrong messages; that is all.
            errors = (*self.connection_errors, *self.channel_errors)
            with suppress(*errors), self.task_consumer.channel.conn_or_acquire() as client:
                client.hset(returns.state_key(self.hostname), field, value)

        # -- parking

        def park(self, message: Any, reason: str, kind: str = parking.UNREADABLE, *, named: bool = True) -> None:
            channel = self.task_consumer.channel
            parking.park(channel, message.delivery_tag, kind, reason)
            # The message is gone from the slot; this makes room for the next one.
            channel.basic_reject(message.delivery_tag, requeue=False)
            name, task_id = message_name_and_id(message)
            level = logging.WARNING if kind == parking.UNKNOWN else logging.ERROR
            logger.log(
                level, "Parked the message %s%s: %s.", task_id, f" (task {name})" if named and name else "", reason
            )

        def park_undelivered(self, item: bytes, queue: str, error: Exception) -> bool:
            """Park an item of a queue with which kombu can do nothing; return False if the error is another one."""
            if not isinstance(error, reception.errors()):
                return False
            reason = reception.describe(error)
            entry = parking.entry_of(item, queue)
            try:
                parking.park_entry(self.task_consumer.channel, entry, reason)
            except Exception as refusal:
                self.refused.append(entry)
                raise ConnectionError(f"Redis refused to park a message that was taken: {refusal}") from refusal
            message_id = entry[0]["headers"]["id"]
            logger.error("Parked the message %s of the queue %s, which cannot be read: %s.", message_id, queue, reason)
            return True

        def on_decode_error(self, message: Any, exc: Exception) -> None:
            self.park(message, reception.describe(exc))

        def on_unknown_message(self, body: Any, message: Any) -> None:
            self.park(message, "it is not a task")

        def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
            self.park(message, reception.describe(exc))

        def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
            name, _ = message_name_and_id(message)
            self.park(message, f"this release does not know its task {name}", parking.UNKNOWN, named=False)

        def add_task_queue(self, queue: str, *args: Any, **kwargs: Any) -> None:
            super().add_task_queue(queue, *args, **kwargs)
            # Before Celery 5.7 a worker loses a queue that was cancelled and added again with its next lost connection.
            queues = self.app.amqp.queues
            queues.select_add(queues[queue])

        # -- stopping

        def stop(self) -> None:
            accepted = tags(state.reserved_requests) | tags(state.active_requests)
            self.held = accepted | compat.unacknowledged_tags(self)
            results.stopping[0] = 1
            was_told = isinstance(sys.exc_info()[1], WorkerShutdown | WorkerTerminate | None)
            if self.task_consumer and was_told:
                # What it still holds when it is killed is then not at fault.
                self.note("stopping", "1")
            elif self.task_consumer:
                # After an error of this process. The messages it holds are counted when it starts again.
                compat.keep_unacknowledged(self.task_consumer.channel)
            super().stop()
            # While a BRPOP of this worker is under way, it might take the same messages again.
            if (
                was_told
                and self.hub
                and self.task_consumer
                and not compat.waits_for_messages(self.task_consumer.channel)
            ):
                with suppress(*self.connection_errors):
                    self.requeue_eta()

        def eta_tasks(self) -> list[tuple[Any, Request]]:
            """Return the timer entries and requests of tasks that wait for their ETA."""
            entries = [item.entry for item in self.timer.schedule.queue]
            return [(entry, entry.args[0]) for entry in entries if entry.args and isinstance(entry.args[0], Request)]

        def requeue_eta(self) -> None:
            """Requeue ETA messages now; otherwise, as in Celery 5.4, they stay here until the longest task ends."""
            channel, mine = self.task_consumer.channel, compat.unacknowledged_tags(self)
            keys = channel.unacked_key, channel.unacked_index_key
            for entry, request in self.eta_tasks():
                # A finished task whose acknowledgement is not sent yet is in no timer.
                if (tag := request.message.delivery_tag) in mine:
                    with channel.conn_or_acquire() as client:
                        client.transaction(requeue.requeue_one(channel, *keys, tag), keys[0])
                        stays = client.hget(keys[0], tag) is not None  # No queue is bound to its exchange.
                    if not stays:
                        entry.cancel()
                        channel.qos.ack(tag)
                        self.requeued |= {tag}

        def shutdown(self) -> None:
            # Acknowledgements may still wait to be sent.
            self.perform_pending_operations()
            requeued = self.held & (compat.unacknowledged_tags(self) | self.requeued)
            running = tags(state.active_requests)
            if self.refused:
                self.requeue_refused_at_last()
            super().shutdown()
            finished = len(self.held - requeued - running)
            self.write_summary({"held": len(self.held), "finished": finished, "requeued": len(requeued)})

        def requeue_refused_at_last(self) -> None:
            try:
                with broker.open_channel(self.app) as (channel, _):
                    requeue.requeue_refused(channel, self.refused)
            except Exception as error:
                headers = [message["headers"] for message, *_ in self.refused]
                lost = [f"{each.get('task')}[{each.get('id')}]" for each in headers]
                logger.critical("Lost %s, which Redis refuses to take back: %s", ", ".join(lost), error)

        def write_summary(self, numbers: dict[str, int]) -> None:
            try:
                summary.write_text(json.dumps(numbers) + "\n")
            except OSError as error:
                logger.warning("Cannot write the summary of held tasks: %s.", error)
            logger.info("Held %(held)d tasks: %(finished)d finished, %(requeued)d requeued.", numbers)

    return Consumer


def message_name_and_id(message: Any) -> tuple[str, str]:
    """Return the name and ID of a message's task, "" where it has none; its delivery tag for an ID that it lacks."""
    headers = message.headers or {}
    name, task_id = headers.get("task"), headers.get("id")
    if "task" not in headers:
        with suppress(Exception):
            name, task_id = message.payload["task"], message.payload["id"]
    return str(name or ""), str(task_id or message.delivery_tag)


def limits_warning(pool: Any) -> Callable[[Any], None]:
    """Return a function that warns once per task of a time limit of its own, which a pool of threads cannot enforce."""
    from celery.concurrency.thread import TaskPool

    warned: set[str] = set()

    def warn(request: Any) -> None:
        limits = (*request.time_limits, request.task.time_limit, request.task.soft_time_limit)
        if isinstance(pool, TaskPool) and any(limits) and request.task.name not in warned:
            warned.add(request.task.name)
            logger.warning("The task %s has a time limit, which the pool of threads cannot enforce.", request.task.name)

    return warn
