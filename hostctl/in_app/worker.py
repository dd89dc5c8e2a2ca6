"""A Celery worker of a release, with what its place on a server needs.

- Its unacknowledged messages are in Redis under its own name (requeue.py), and are not given out again while it lives,
  however long that is. Those of a killed worker are requeued when a worker of the host starts, at the latest after
  REQUEUE_SECONDS by one that runs.
- A message that ends its process again and again is parked (returns.py), as is one that cannot be read (reception.py)
  or whose task this release does not know (parking.py).
- It loses neither a task nor a place in its pool while the result backend does not answer (results.py).
- At its end it writes what became of the tasks it held to RUN/NAME.json.
- systemd restarts it when its process is frozen (watchdog.py).
- It notices a lost broker within seconds (broker.py).
- It leaves Celery's command line out, which costs megabytes, and lets the processes of a pool share memory.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import broker, compat, parking, requeue, results, smoke_test
from .consumer import consumer_class
from .locks import lock
from .watchdog import start_watchdog

# Seconds. Another process that requeues this worker's messages keeps it from starting for as long as that takes.
LOCK_SECONDS = 10
# Seconds between two searches for messages of dead workers: on a host that is gone, no worker starts that would search.
REQUEUE_SECONDS = 60

logger = logging.getLogger("celery.hostctl")


def run_worker(arguments: argparse.Namespace) -> int:
    """Run a worker until it is told to stop; return its exit status."""
    start_watchdog()
    import celery

    celery.maybe_patch_concurrency(["--pool", arguments.pool])
    node = f"{arguments.name}.{arguments.release}@{socket.gethostname()}"
    if not lock(arguments.run / f"{arguments.name}.lock", LOCK_SECONDS):
        sys.exit(f"The worker {node} is already running.")
    summary = arguments.run / f"{arguments.name}.json"
    summary.unlink(missing_ok=True)
    if problems := compat.problems():
        return run_plain_worker(arguments, node, problems)
    return run_extended_worker(arguments, node, summary)


def run_extended_worker(arguments: argparse.Namespace, node: str, summary: Path) -> int:
    import celery.signals
    from celery.app.utils import find_app
    from celery.concurrency import get_implementation

    app = find_app(arguments.app)
    broker.set_options(app, **requeue.slot_options(node))
    # Answers to remote control commands use the worker's connection, whose retries are limited (broker.limit_retries).
    app.control.mailbox.producer_pool = None
    smoke_test.add_task(app, arguments.release)
    app.steps["consumer"].add(requeue_step(node, arguments.run.parent.parent))
    create_process = celery.signals.worker_before_create_process
    create_process.connect(lambda sender, **_: compat.count_results_without_lock(sender), weak=False)
    create_process.connect(lambda **_: preload_and_freeze(app), weak=False)
    service = app.Worker(
        hostname=node,
        queues=arguments.queues.split(","),
        pool_cls=get_implementation(arguments.pool),
        concurrency=arguments.concurrency,
        consumer_cls=consumer_class(app, summary),
        loglevel="INFO",
        task_events=True,
        # Mingle stays on: it tells this worker which tasks were revoked before it started.
        without_gossip=True,
        quiet=True,
    )
    results.guard_backends(app)
    results.guard_pool(service.pool)
    service.start()
    return service.exitcode or 0


def run_plain_worker(arguments: argparse.Namespace, node: str, problems: list[str]) -> int:
    """Run the worker as `celery worker` does, through public names of Celery only."""
    from celery.app.utils import find_app

    for problem in problems:
        print(problem, file=sys.stderr, flush=True)
    app = find_app(arguments.app)
    smoke_test.add_task(app, arguments.release)
    options = {
        "--hostname": node,
        "--queues": arguments.queues,
        "--pool": arguments.pool,
        "--concurrency": str(arguments.concurrency),
        "--loglevel": "INFO",
    }
    words = [word for option in options.items() for word in option]
    return app.worker_main(["worker", *words, "--task-events", "--without-gossip"]) or 0


def preload_and_freeze(app: Any) -> None:
    """Before the first fork: preload what tasks import lazily, then gc.freeze(), so that children share these pages.

    What is loaded after the fork, each child has in memory of its own: with the first database query 5 MiB.
    """
    import gc

    if gc.get_freeze_count():
        return
    _ = app.backend
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        from django.db import connections

        for database in connections.all():
            # Without a database the worker starts all the same.
            with suppress(Exception), database.cursor() as cursor:
                cursor.execute("SELECT 1")
            # Children must share neither a connection nor a connection pool.
            database.close()
            if getattr(database, "pool", None):
                database.close_pool()
    gc.collect()
    gc.freeze()


def requeue_step(node: str, releases: Path) -> type:
    """Return the bootstep that requeues messages: on each connection, before it takes any, and every minute."""
    from celery import bootsteps

    class Requeue(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)
        is_first_connection = True
        timers: tuple[Any, ...] = ()

        def start(self, consumer: Any) -> None:
            channel = consumer.connection.default_channel
            # First, so that tasks that ended without a connection are not requeued. (Those of threads wait in the hub.)
            compat.complete_callbacks(consumer.hub)
            consumer.acknowledgements.release(consumer.task_consumer.channel)
            compat.on_undelivered(consumer.task_consumer.channel, consumer.park_undelivered)
            try:
                self.requeue(consumer, channel)
            except consumer.connection_errors:
                raise  # The worker reconnects and starts this step again.
            except Exception:
                logger.exception("Cannot requeue messages of dead workers. This worker runs without that.")
            self.stop(consumer)
            self.timers = (consumer.timer.call_repeatedly(REQUEUE_SECONDS, self.look_after_slots, (channel,)),)
            if consumer.hub and not compat.checks_brpop_itself():
                watch = broker.BrokerWatch(consumer.task_consumer.channel)
                self.timers += (consumer.timer.call_repeatedly(broker.CHECK_SECONDS, watch.check),)

        def stop(self, consumer: Any) -> None:
            for timer in self.timers:
                timer.cancel()

        def requeue(self, consumer: Any, channel: Any) -> None:
            with channel.conn_or_acquire() as client:
                client.sadd(requeue.SLOTS, node)
            requeue.note_alive(channel, node)
            self.requeue_dead(channel)
            if self.is_first_connection or consumer.hub:
                # With the connection Celery has forgotten the other tasks it held. (Without an event loop, as with
                # gevent, it still knows those that wait for their ETA.)
                if self.is_first_connection:
                    self.log(requeue.requeue_of_dead_worker(channel, node))
                else:
                    self.log(requeue.requeue_unacknowledged(channel, node, keep=consumer.remembered_tags()))
            self.is_first_connection = False
            parking.adopt_former_list(channel)
            for name, number in parking.requeue_known(channel, consumer.app.tasks).items():
                logger.warning("Requeued %d parked messages of the task %s.", number, name)

        def look_after_slots(self, channel: Any) -> None:
            requeue.note_alive(channel, node)
            self.requeue_dead(channel)

        def requeue_dead(self, channel: Any) -> None:
            self.log(requeue.requeue_dead_workers(channel, releases, but=node))

        def log(self, count: int) -> None:
            if count:
                logger.warning("Requeued %d unacknowledged messages.", count)

    return Requeue
