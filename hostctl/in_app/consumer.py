"""The worker's consumer: the application's own class, with what a server needs added."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import broker, compat, results
from .parking import park_unknown, task_name_and_id
from .requeue import requeue_one, requeue_refused

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

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self.send("basic_ack", delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.send("basic_reject", delivery_tag, requeue)

    def send(self, method: str, *arguments: Any) -> None:
        if self.channel:
            try:
                getattr(self.channel, method)(*arguments)
                return
            except self.connection_errors:
                self.hold()
        self.kept.append((method, arguments))

    def hold(self) -> None:
        """Keep acknowledgements from now on."""
        self.channel = None

    def release(self, channel: Any) -> None:
        """Send what was kept over a new channel, and later acknowledgements at once."""
        while self.kept:
            method, arguments = self.kept[0]
            getattr(channel, method)(*arguments)
            self.kept.pop(0)
        self.channel = channel


def consumer_class(app: Any, summary: Path) -> type:
    """Return the class; at its end the worker writes to `summary` how many tasks it held, finished and requeued."""
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
                on_task_request(request)

            super().__init__(process, *args, **kwargs)
            self.acknowledgements = Acknowledgements(self.connection_errors)
            self.unrecorded = results.Unrecorded()
            self.refused: list[list[Any]] = []
            compat.keep_refused_messages(self.refused)

        def ensure_connected(self, conn: Any) -> Any:
            broker.limit_reconnect_pause(conn)
            return super().ensure_connected(conn)

        def connect(self) -> Any:
            """Connect, and requeue first what Redis has refused; while it refuses anything, nothing more is taken."""
            try:
                connection = super().connect()
                if count := requeue_refused(connection.default_channel, self.refused):
                    logger.warning("Requeued %d messages that Redis had refused to record.", count)
            except (*self.connection_errors, *self.channel_errors) as error:
                if not self.refused:
                    raise
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
                self.in_pool |= tags(state.reserved_requests)
            else:
                self.in_pool = tags([compat.request_of(job) for job in jobs.values()])
            super().on_close()
            compat.remember_jobs(self.pool, jobs)

        def remembered_tags(self) -> frozenset[str]:
            """Return the tags of tasks that run or will run, after a lost connection."""
            return tags(state.active_requests) | tags(self.unrecorded.requests) | self.in_pool

        # -- consuming

        def update_strategies(self) -> None:
            """Called with each new connection."""
            results.extend_requests(self.app, self.unrecorded)
            self.unrecorded.resume(self.timer)
            super().update_strategies()

        def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
            name, task_id = task_name_and_id(message)
            park_unknown(message)
            # The message is gone from the slot; this makes room for the next one.
            message.reject_log_error(logger, self.connection_errors)
            logger.warning("Parked the message %s: this release does not know its task %s.", task_id, name)

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
            super().stop()
            # While a BRPOP of this worker is under way, it might take the same messages again.
            if self.hub and self.task_consumer and not compat.waits_for_messages(self.task_consumer.channel):
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
                        client.transaction(requeue_one(channel, *keys, tag), keys[0])
                        stays = client.hexists(keys[0], tag)  # No queue is bound to its exchange.
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
                    requeue_refused(channel, self.refused)
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
