"""Run a Celery worker or beat of a release, with the release's own interpreter.

    worker --app CELERY --name NAME --release ID --run FOLDER --queues A,B --pool POOL --concurrency N
    beat   --app CELERY --release ID --schedule FILE

What it adds to `celery worker`:

- The messages that a worker holds lie in Redis under the worker's own name, its slot. So what a killed worker held goes
  back to its queue as soon as a worker starts, or within a minute by one that runs, and what another one is working on
  stays where it is.
- A message whose task this release does not know is set aside, and put back by a worker that knows the task.
- On its way out it writes down what became of the tasks it held.
- A beat that is told to stop first ends what it is at.
- It leaves out Celery's command line, which costs megabytes, and has a pool's processes share what they can.

gevent must patch before anything of Celery is imported, hence the imports inside functions.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SLOTS = "unacked_slots"
SET_ASIDE = "celery-set-aside"
# How many of these messages are read at once.
PART = 200
PROBE = "seedbed.probe"
# Seconds. Whoever puts back what a worker held keeps the worker from starting for as long as that takes.
LOCK_PATIENCE = 10
# What ends beat.
ENDING = (signal.SIGTERM, signal.SIGINT)
# Seconds after which a worker looks again for what dead ones held: on a host that is gone, none starts that would look.
LOOK_SECONDS = 60

logger = logging.getLogger("celery.service")


# --- Locks ---------------------------------------------------------------------------------------------------------


def lock(path: Path, seconds: float = 0) -> bool:
    """Lock a file for the life of this process; False when another process still has it after so many seconds.

    A POSIX lock (lockf, not flock) belongs to the process alone, so the children of a killed worker do not keep it.
    It goes when the process closes any descriptor of the file: nothing else here may open it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


@contextmanager
def kept_from_running(node: str, releases: Path) -> Iterator[bool]:
    """Keep a worker of this host from starting; False when it runs."""
    name, _, release = node.rpartition("@")[0].partition(".")
    try:
        descriptor = os.open(releases / release / "run" / f"{name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        # Its release is gone.
        yield True
        return
    try:
        try:
            # Shared, for which reading is enough: a worker cannot write to other releases' folders.
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


# --- Messages in Redis ---------------------------------------------------------------------------------------------
#
# kombu keeps a message that a worker holds as [message, exchange, routing key] in a hash, by its delivery tag, and the
# tags in a sorted set, by the time they were taken. A channel of kombu's has the client, knows queues and priorities.


def slot_options(node: str) -> dict[str, str]:
    """The transport options that give a worker a slot of its own."""
    return {f"{name}_key": f"{name}:{node}" for name in ("unacked", "unacked_index", "unacked_mutex")}


def put_back(channel: Any, node: str, *, before: float | str = "+inf", keep: Collection[str] = ()) -> int:
    """Put back into their queues what a slot has held since before that time, but for the tags to keep; count it.

    Whoever comes second finds nothing to put back, so any number of processes may do this at once.
    """
    options = slot_options(node)
    held, index = options["unacked_key"], options["unacked_index_key"]
    with channel.conn_or_acquire() as client:
        # The newest first, each to the front of its queue: the oldest is then the next to run.
        tags = [tag.decode() for tag in client.zrevrangebyscore(index, before, 0)]
        return sum(
            client.transaction(return_of(channel, held, index, tag), held, value_from_callable=True)
            for tag in tags
            if tag not in keep
        )


def return_of(channel: Any, held: str, index: str, tag: str) -> Callable[[Any], bool]:
    """The transaction that moves a held message back to its queue; its value is whether there was one to move."""

    def move(pipe: Any) -> bool:
        found = pipe.hget(held, tag)
        message = json.loads(found) if found else None
        if message and not channel._lookup(*message[1:]):
            # No queue is bound to its exchange: kombu would drop it.
            return False
        pipe.multi()
        pipe.zrem(index, tag).hdel(held, tag)
        if message:
            channel._do_restore_message(*message, pipe)
        return bool(message)

    return move


def rescue(channel: Any, releases: Path, but: str = "") -> int:
    """Put back what dead workers held, and count it: of this host all, of others what is older than the timeout."""
    count = 0
    with channel.conn_or_acquire() as client:
        for node in sorted({node.decode() for node in client.smembers(SLOTS)} - {but}):
            if node.rpartition("@")[2] != socket.gethostname():
                count += put_back(channel, node, before=time.time() - channel.visibility_timeout)
                continue
            with kept_from_running(node, releases) as is_dead:
                if is_dead:
                    count += put_back(channel, node)
                    if not client.hlen(slot_options(node)["unacked_key"]):
                        client.srem(SLOTS, node)
    return count


def set_aside(message: Any) -> None:
    """Move a message that this worker holds to the list of those whose task is unknown."""
    channel, tag = message.channel, message.delivery_tag

    def move(pipe: Any) -> None:
        found = pipe.hget(channel.unacked_key, tag)
        pipe.multi()
        pipe.zrem(channel.unacked_index_key, tag).hdel(channel.unacked_key, tag)
        if found:
            pipe.rpush(SET_ASIDE, found)

    with channel.conn_or_acquire() as client:
        client.transaction(move, channel.unacked_key)


def list_set_aside(channel: Any, client: Any) -> Iterator[tuple[bytes, list[Any], str]]:
    """What is set aside, the newest first: as it lies there; its message, exchange and routing key; its task's name.

    None is left out, but some may come twice while others are put back.
    """
    for start in parts(client):
        yield from read_part(channel, client, start)


def parts(client: Any) -> range:
    """Where the parts begin in which the list is read, the newest first: as a whole it may not fit into the memory.

    What is put back in between moves the rest to the front, where it is still to be read.
    """
    return range(client.llen(SET_ASIDE) // PART * PART, -1, -PART)


def read_part(channel: Any, client: Any, start: int) -> list[tuple[bytes, list[Any], str]]:
    """A part of the list, the newest first."""
    lines = client.lrange(set_aside_key(channel), start, start + PART - 1)
    entries = [(line, json.loads(line)) for line in reversed(lines)]
    return [(line, message, name_and_id(channel.message_to_python(message[0]))[0]) for line, message in entries]


def put_back_known(channel: Any, tasks: Collection[str]) -> Counter[str]:
    """Put back into their queues the messages that were set aside and whose task is known now; count them by task.

    Whoever comes second finds them gone, so any number of processes may do this at once.
    """
    moved: Counter[str] = Counter()
    with channel.conn_or_acquire() as client:
        # The newest first, each to the front of its queue: the oldest is then the next to run.
        for start in parts(client):
            move = return_of_known(channel, tasks, start)
            moved.update(client.transaction(move, SET_ASIDE, value_from_callable=True))
    return moved


def return_of_known(channel: Any, tasks: Collection[str], start: int) -> Callable[[Any], list[str]]:
    """The transaction that moves the known messages of a part back to their queues; its value is their tasks' names."""

    def move(pipe: Any) -> list[str]:
        found = read_part(channel, pipe, start)
        wanted = [entry for entry in found if entry[2] in tasks and channel._lookup(*entry[1][1:])]
        pipe.multi()
        for line, message, _ in wanted:
            # Searched for from the end, where it lies.
            pipe.lrem(set_aside_key(channel), -1, line)
            channel._do_restore_message(*message, pipe)
        return [name for _, _, name in wanted]

    return move


def set_aside_key(channel: Any) -> str:
    """For the commands whose keys kombu gives no prefix (the transport option global_keyprefix)."""
    return f"{channel.global_keyprefix}{SET_ASIDE}"


def name_and_id(message: Any) -> tuple[str, str]:
    """The name and the id of a message's task: in its headers, or in its body from a client of the old protocol."""
    headers = message.headers or {}
    found = headers if "task" in headers else message.payload
    return found["task"], found["id"]


# --- The worker ----------------------------------------------------------------------------------------------------


def worker(arguments: argparse.Namespace) -> int:
    """Run a worker until it is told to stop, and return its exit status."""
    import celery
    import celery.signals

    celery.maybe_patch_concurrency(["--pool", arguments.pool])
    from celery.app.utils import find_app
    from celery.concurrency import get_implementation

    node = f"{arguments.name}.{arguments.release}@{socket.gethostname()}"
    if not lock(arguments.run / f"{arguments.name}.lock", LOCK_PATIENCE):
        sys.exit(f"The worker {node} runs already.")
    account = arguments.run / f"{arguments.name}.json"
    account.unlink(missing_ok=True)
    app = find_app(arguments.app)
    # In place: what is assigned loses against a setting with a prefix, such as Django's.
    app.conf.broker_transport_options.update(slot_options(node))
    add_probe(app, arguments.release)
    app.steps["consumer"].add(rescue_step(node, arguments.run.parent.parent))
    celery.signals.worker_before_create_process.connect(lambda **_: share_memory(app), weak=False)
    service = app.Worker(
        hostname=node,
        queues=arguments.queues.split(","),
        pool_cls=get_implementation(arguments.pool),
        concurrency=arguments.concurrency,
        consumer_cls=consumer_class(app, account),
        loglevel="INFO",
        task_events=True,
        # It mingles: otherwise it would run tasks that the workers before it know to be revoked.
        without_gossip=True,
        quiet=True,
    )
    service.start()
    return service.exitcode or 0


def share_memory(app: Any) -> None:
    """Before a pool's first fork: load what tasks will, then take it out of the garbage collector's sight.

    What is loaded after the fork, every process has to itself: with a first question to the database 5 MiB each.
    """
    import gc

    if gc.get_freeze_count():
        return
    _ = app.backend
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        from django.db import connections

        for connection in connections.all():
            # Without a database the worker waits for it all the same.
            with suppress(Exception), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            # A connection must not be shared, nor a pool of them.
            connection.close()
            if getattr(connection, "pool", None):
                connection.close_pool()
    gc.collect()
    gc.freeze()


def add_probe(app: Any, release: str) -> None:
    """A task with which a rollout sees that the tasks of a queue are taken, and by which release."""
    from celery.app.task import Task

    @app.task(name=PROBE, base=Task, ignore_result=True)
    def probe(nonce: str) -> None:
        with app.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
            client.set(f"celery-probe-{nonce}", release, ex=60)


def rescue_step(node: str, releases: Path) -> type:
    """The part of a worker that puts tasks back: with every connection, before it takes any, and every minute."""
    from celery import bootsteps

    class Rescue(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)
        first = True
        looking: Any = None

        def start(self, consumer: Any) -> None:
            channel = consumer.connection.default_channel
            try:
                self.put_back(consumer, channel)
            except consumer.connection_errors:
                # The worker connects anew and comes back here.
                raise
            except Exception:
                logger.exception("What dead workers held could not be put back. This worker runs all the same.")
            self.stop(consumer)
            self.looking = consumer.timer.call_repeatedly(LOOK_SECONDS, self.look, (channel,))

        def stop(self, consumer: Any) -> None:
            if self.looking:
                self.looking.cancel()

        def look(self, channel: Any) -> None:
            self.tell(rescue(channel, releases, but=node))

        def tell(self, count: int) -> None:
            if count:
                logger.warning("Put back into their queues %d tasks that dead workers held.", count)

        def put_back(self, consumer: Any, channel: Any) -> None:
            with channel.conn_or_acquire() as client:
                client.sadd(SLOTS, node)
            count = rescue(channel, releases, but=node)
            if self.first or consumer.hub:
                # With the connection Celery has forgotten the rest of what it held. (Without an event loop, as with
                # gevent, it still knows what waits for its time.)
                count += put_back(channel, node, keep=consumer.remembered())
            self.first = False
            self.tell(count)
            for name, number in put_back_known(channel, consumer.app.tasks).items():
                logger.warning("Put back into their queues %d tasks called %s that were set aside.", number, name)

    return Rescue


def consumer_class(app: Any, account: Path) -> type:
    """The application's own consumer, with what this program adds."""
    from celery.concurrency.base import BasePool
    from celery.worker import state
    from celery.worker.request import Request
    from kombu.utils.imports import symbol_by_name

    def tags(requests: Collection[Any]) -> frozenset[str]:
        return frozenset(request.message.delivery_tag for request in tuple(requests))

    def unacknowledged(consumer: Any) -> set[str]:
        if not consumer.task_consumer:
            return set()
        qos = consumer.task_consumer.channel.qos
        return set(qos._delivered) - qos._dirty

    class Consumer(symbol_by_name(app.conf.worker_consumer)):
        # All by their delivery tags: what it held when it was told to stop, what of that it gave back at once, and what
        # its pool runs although Celery has forgotten it.
        held: frozenset[str] = frozenset()
        given_back: frozenset[str] = frozenset()
        waiting: frozenset[str] = frozenset()

        def on_close(self) -> None:
            written = self.written()
            # A pool without a `flush` of its own, such as threads, still runs what waits in it.
            if getattr(self.pool.flush, "__func__", None) is BasePool.flush:
                self.waiting |= tags(state.reserved_requests)
            else:
                self.waiting = tags([job._accept_callback.__self__ for job in written.values()])
            super().on_close()
            if written:
                self.pool._pool._cache.update(written)

        def written(self) -> dict[int, Any]:
            """Jobs that a child of prefork was given and will run; until it has read so, Celery forgets them."""
            pool = getattr(self.pool, "_pool", None)
            return {
                number: job
                for number, job in getattr(pool, "_cache", {}).items()
                if job._write_to and job._write_to._is_alive() and job not in pool.outbound_buffer
                if job._accept_callback and not job._accepted
            }

        def remembered(self) -> frozenset[str]:
            """What it runs or will run, after a loss of the connection."""
            return tags(state.active_requests) | self.waiting

        def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
            name, task_id = name_and_id(message)
            set_aside(message)
            # It is no longer there; this makes room for the next one.
            message.reject_log_error(logger, self.connection_errors)
            logger.warning("Set aside the task %s (%s): this release does not know it.", name, task_id)

        def add_task_queue(self, queue: str, *args: Any, **kwargs: Any) -> None:
            super().add_task_queue(queue, *args, **kwargs)
            # Celery itself forgets a queue that it gave up and took again as soon as the connection drops.
            queues = self.app.amqp.queues
            queues.select_add(queues[queue])

        def stop(self) -> None:
            accepted = tags(state.reserved_requests) | tags(state.active_requests)
            self.held = accepted | unacknowledged(self)
            super().stop()
            # Where this worker still asks Redis for tasks, since nobody had it stop that, it would get them again.
            if self.hub and self.task_consumer and not self.task_consumer.channel._in_poll:
                with suppress(*self.connection_errors):
                    self.give_back_early()

        def give_back_early(self) -> None:
            """What waits for its time: it would do so here until the longest task has ended."""
            channel, mine = self.task_consumer.channel, unacknowledged(self)
            keys = channel.unacked_key, channel.unacked_index_key
            for entry in [item.entry for item in self.timer.schedule.queue]:
                request = entry.args[0] if entry.args else None
                # Of what has ended, the acknowledgement may still wait to be sent: that is in no timer.
                if isinstance(request, Request) and (tag := request.message.delivery_tag) in mine:
                    with channel.conn_or_acquire() as client:
                        client.transaction(return_of(channel, *keys, tag), keys[0])
                        # Where no queue is bound to its exchange.
                        stays = client.hexists(keys[0], tag)
                    if not stays:
                        entry.cancel()
                        channel.qos.ack(tag)
                        self.given_back |= {tag}

        def shutdown(self) -> None:
            # Acknowledgements may still wait to be sent.
            self.perform_pending_operations()
            back = self.held & (unacknowledged(self) | self.given_back)
            running = tags(state.active_requests)
            super().shutdown()
            numbers = {"held": len(self.held), "finished": len(self.held - back - running), "handed_back": len(back)}
            try:
                account.write_text(json.dumps(numbers) + "\n")
            except OSError as error:
                logger.warning("What became of the tasks could not be written down: %s.", error)
            logger.info("Held %(held)d tasks: %(finished)d finished, %(handed_back)d handed back.", numbers)

    return Consumer


# --- Beat ----------------------------------------------------------------------------------------------------------


def beat(arguments: argparse.Namespace) -> int:
    """Run beat until it is told to stop; never twice on a host, by a lock beside its schedule."""
    from celery.app.utils import find_app
    from celery.signals import beat_init

    file = arguments.schedule.with_name("lock")
    if not lock(file):
        sys.exit(f"Beat runs already: another process has locked {file}.")
    program = find_app(arguments.app).Beat(schedule=str(arguments.schedule), loglevel="INFO", quiet=True)
    # Until beat has read its schedule a signal just ends it: there is nothing to write.
    write_on_signal, program.install_sync_handler = program.install_sync_handler, lambda service: None

    def has_read_schedule(sender: Any, **_: Any) -> None:
        for name in ("tick", "_do_sync", "close"):
            setattr(sender.scheduler, name, undisturbed(getattr(sender.scheduler, name)))
        write_on_signal(sender)
        # This waits for Redis, and may be ended meanwhile.
        _ = sender.scheduler.producer

    beat_init.connect(has_read_schedule, weak=False)
    program.run()
    return 0


def undisturbed(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, but what is done on a signal that ends this process is done after it.

    On a signal Celery writes the schedule: in the middle of a query that would wait for ever for the connection to the
    database, and what is just being sent would be lost. (To block the signals would not do: another thread gets them.)
    """

    def wrapped() -> Any:
        came: list[Any] = []
        before = {number: signal.signal(number, lambda *call: came.append(call)) for number in ENDING}
        try:
            return work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for number, frame in came[:1]:
                before[number](number, frame)

    return wrapped


# --- Command line --------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a Celery worker or beat of a release.")
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--app", required=True, help="the Celery application, as `celery --app` takes it")
    common.add_argument("--release", required=True, help="the release's ID")

    of_worker = commands.add_parser("worker", parents=[common])
    of_worker.set_defaults(run_service=worker)
    of_worker.add_argument("--name", required=True)
    of_worker.add_argument("--run", required=True, type=Path, help="the folder RELEASES/ID/run, for lock and account")
    of_worker.add_argument("--queues", required=True, help="separated by commas")
    of_worker.add_argument("--pool", default="prefork")
    of_worker.add_argument("--concurrency", type=int, default=2)

    of_beat = commands.add_parser("beat", parents=[common])
    of_beat.set_defaults(run_service=beat)
    of_beat.add_argument("--schedule", required=True, type=Path, help="a file of beat's; its folder gets the lock")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    # The project's modules are where the process starts, as they are for `celery`.
    sys.path[0] = str(Path.cwd())
    sys.exit(arguments.run_service(arguments))


if __name__ == "__main__":
    main()
