"""Return unacknowledged messages to their queues; those of a worker that died count a return (returns.py).

kombu keeps a message that a worker holds as [message, exchange, routing key] in a Redis hash, by its delivery tag, and
the tags in a sorted set, by the time of their delivery. Here each worker has a hash and a set of its own, its slot, so
that the messages of a dead worker can be told from those that another one works on. A slot is named for the node.

What a dead worker held goes behind the messages that wait: one of them may have ended it.

Everything here may run in several processes at once: each message is moved in a transaction, by one of them.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from . import compat, parking, returns, smoke_test
from .locks import dead_worker

# The Redis set with the nodes that have a slot.
SLOTS = "unacked_slots"
# Seconds after its last sign of life for which a worker of another host counts as living; or visibility_timeout, if
# that is longer.
ALIVE_SECONDS = 180

logger = logging.getLogger("celery.hostctl")


def slot_options(node: str) -> dict[str, str]:
    """Return the broker transport options that give a worker its slot."""
    return {f"{name}_key": f"{name}:{node}" for name in ("unacked", "unacked_index", "unacked_mutex")}


def alive_key(node: str) -> str:
    """Return the key that a worker sets again and again while it lives."""
    return f"worker-alive:{node}"


def note_alive(channel: Any, node: str) -> None:
    """Tell the workers of other hosts that this one lives: they cannot see its lock file."""
    with channel.conn_or_acquire() as client:
        client.set(alive_key(node), str(time.time()), ex=max(ALIVE_SECONDS, int(channel.visibility_timeout)))


def requeue_dead_workers(channel: Any, releases: Path, but: str = "") -> int:
    """Requeue what dead workers of this host held, and messages of lost hosts that exceed the visibility timeout.

    Returns the number of messages; `but` is the node of the worker that asks.
    """
    count = 0
    with channel.conn_or_acquire() as client:
        for node in sorted({node.decode() for node in client.smembers(SLOTS)} - {but}):
            if node.rpartition("@")[2] != socket.gethostname():
                if client.get(parking.full_name(channel, alive_key(node))):
                    continue
                count += requeue_unacknowledged(channel, node, before=time.time() - channel.visibility_timeout)
                continue
            with dead_worker(node, releases) as is_dead:
                if is_dead:
                    count += requeue_of_dead_worker(channel, node)
                    if not client.hlen(slot_options(node)["unacked_key"]):
                        client.srem(SLOTS, node)
    return count


def requeue_of_dead_worker(channel: Any, node: str) -> int:
    """Requeue what a worker held that has ended, and count it; park what has ended too many; return the number."""
    options, state = slot_options(node), returns.state_key(node)
    unacked, index = options["unacked_key"], options["unacked_index_key"]
    requeued = counted = 0
    with channel.conn_or_acquire() as client:
        was_told = client.hget(state, "stopping")
        alone = (client.hget(state, "alone") or b"").decode()
        # Oldest first, each behind the others.
        for tag in tags_of(channel, client, index):
            move = return_one(channel, unacked, index, tag, counts=not was_told, is_alone=tag == alone)
            was_requeued, was_counted = client.transaction(move, unacked, value_from_callable=True)
            requeued += was_requeued
            counted += was_counted
        client.delete(state)
        if counted:
            client.set(returns.crash_key(node), str(time.time()), ex=returns.CRASH_SECONDS)
    return requeued


def requeue_counted(channel: Any, tag: str) -> None:
    """Requeue, or park, a message that this worker holds and whose task has ended a process."""
    keys = channel.unacked_key, channel.unacked_index_key
    with channel.conn_or_acquire() as client:
        client.transaction(return_one(channel, *keys, tag, counts=True, is_alone=True), keys[0])
        if client.hget(keys[0], tag):
            parking.park(channel, tag, parking.RETURNED, "it ended its process, and no queue is bound to its exchange")
    # The message is gone from the slot; this makes room for the next one.
    channel.basic_reject(tag, requeue=False)


def return_one(
    channel: Any, unacked: str, index: str, tag: str, *, counts: bool, is_alone: bool
) -> Callable[[Any], tuple[bool, bool]]:
    """Return the transaction that counts a message's return, and requeues it or parks it.

    Its value: whether it was requeued, and whether it was counted. A message that has a last chance is counted only if
    its task was running (`is_alone`).
    """

    def move(pipe: Any) -> tuple[bool, bool]:
        found = pipe.hget(unacked, tag)
        entry = json.loads(found) if found else None
        if entry and not compat.queues_of(channel, *entry[1:]):
            return False, False  # No queue is bound to its exchange: kombu would drop the message.
        is_counted = bool(entry) and counts and (is_alone or not returns.is_last_chance(entry[0]["properties"]))
        number = returns.add(entry[0]) if is_counted else 0
        pipe.multi()
        pipe.zrem(index, tag).hdel(unacked, tag)
        if number >= returns.LIMIT:
            park_returned(channel, entry, number, pipe)
        elif entry:
            compat.restore_message(channel, *entry, pipe, behind=True)
        return bool(entry) and number < returns.LIMIT, is_counted

    return move


def park_returned(channel: Any, entry: list[Any], number: int, pipe: Any) -> None:
    name, task_id = parking.task_name_and_id(channel, entry[0])
    if name == smoke_test.TASK:
        return  # Its deployment no longer waits for it.
    parking.add(pipe, entry, parking.RETURNED, f"it ended its process {number} times")
    logger.error("Parked the message %s (task %s): it ended its process %d times.", task_id, name, number)


def requeue_unacknowledged(channel: Any, node: str, *, before: float | str = "+inf", keep: Collection[str] = ()) -> int:
    """Requeue the messages of a slot that were delivered before a time, except the tags to keep; count them."""
    options = slot_options(node)
    unacked, index = options["unacked_key"], options["unacked_index_key"]
    with channel.conn_or_acquire() as client:
        # Newest first, each to the front of its queue: the oldest is then the next to run.
        return sum(
            client.transaction(requeue_one(channel, unacked, index, tag), unacked, value_from_callable=True)
            for tag in reversed(tags_of(channel, client, index, before))
            if tag not in keep
        )


def tags_of(channel: Any, client: Any, index: str, before: float | str = "+inf") -> list[str]:
    """Return the delivery tags of a slot, oldest first."""
    # kombu adds global_keyprefix to ZREVRANGEBYSCORE up to version 5.6 only, and to this command never.
    return [tag.decode() for tag in client.zrangebyscore(parking.full_name(channel, index), 0, before)]


def requeue_one(channel: Any, unacked: str, index: str, tag: str) -> Callable[[Any], bool]:
    """Return the transaction that moves one message back to its queue; its value is whether there was one to move."""

    def move(pipe: Any) -> bool:
        found = pipe.hget(unacked, tag)
        entry = json.loads(found) if found else None
        if entry and not compat.queues_of(channel, *entry[1:]):
            return False  # No queue is bound to its exchange: kombu would drop the message.
        pipe.multi()
        pipe.zrem(index, tag).hdel(unacked, tag)
        if entry:
            compat.restore_message(channel, *entry, pipe)
        return bool(entry)

    return move


def requeue_refused(channel: Any, refused: list[list[Any]]) -> int:
    """Requeue and forget messages that Redis refused to add to this worker's slot; raises what Redis answers."""
    count = len(refused)
    while refused:
        entry = refused[-1]
        tag = entry[0]["properties"]["delivery_tag"]

        def move(pipe: Any, entry: list[Any] = entry, tag: str = tag) -> None:
            # Not HEXISTS: kombu does not add global_keyprefix to it.
            is_in_slot = pipe.hget(channel.unacked_key, tag) is not None  # Only the answer was lost.
            pipe.multi()
            if not is_in_slot:
                compat.restore_message(channel, *entry, pipe)

        with channel.conn_or_acquire() as client:
            client.transaction(move, channel.unacked_key)
        refused.pop()
    return count
