"""Park messages whose task this release does not know, until a worker knows it.

Celery drops such a message. After a rollback an old release meets tasks of a newer one: they wait in a Redis list,
oldest first, in the format of requeue.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

from . import compat

PARKED = "celery-parked"
# The list's name before version 0.1.0. A worker moves its messages over when it starts.
FORMER_LIST = "celery-set-aside"
# Messages read at once: the whole list may not fit into memory.
PAGE = 200

# A parked entry: as it is in the list; decoded into message, exchange and routing key; the name of its task.
Entry = tuple[bytes, list[Any], str]


def park_unknown(message: Any) -> None:
    """Move a message that this worker holds to the parked ones."""
    channel, tag = message.channel, message.delivery_tag

    def move(pipe: Any) -> None:
        found = pipe.hget(channel.unacked_key, tag)
        pipe.multi()
        pipe.zrem(channel.unacked_index_key, tag).hdel(channel.unacked_key, tag)
        if found:
            pipe.rpush(PARKED, found)

    with channel.conn_or_acquire() as client:
        client.transaction(move, channel.unacked_key)


def adopt_former_list(channel: Any) -> None:
    """Move messages over that workers of a version before 0.1.0 parked."""
    with channel.conn_or_acquire() as client:
        while client.rpoplpush(full_name(channel, FORMER_LIST), full_name(channel, PARKED)):
            pass


def parked_tasks(channel: Any, client: Any) -> Counter[str]:
    """Count the parked messages by the name of their task."""
    # By their delivery tags: a message may be read twice while others are requeued.
    names = {entry[0]["properties"]["delivery_tag"]: name for _, entry, name in parked_entries(channel, client)}
    return Counter(sorted(names.values()))


def parked_entries(channel: Any, client: Any) -> Iterator[Entry]:
    """Yield the parked messages, newest first; none is left out, some may come twice while others are requeued."""
    for start in page_starts(client):
        yield from read_page(channel, client, start)


def page_starts(client: Any) -> range:
    """Return where the pages of the list begin, newest first.

    Requeued messages leave a gap that later ones fill: those move towards pages that are still to be read.
    """
    return range(client.llen(PARKED) // PAGE * PAGE, -1, -PAGE)


def read_page(channel: Any, client: Any, start: int) -> list[Entry]:
    """Return the parked messages of a page, newest first."""
    lines = client.lrange(full_name(channel, PARKED), start, start + PAGE - 1)
    entries = [(line, json.loads(line)) for line in reversed(lines)]
    return [(line, entry, task_name_and_id(channel.message_to_python(entry[0]))[0]) for line, entry in entries]


def requeue_known(channel: Any, tasks: Collection[str]) -> Counter[str]:
    """Requeue the parked messages whose task is known now; count them by the name of their task."""
    moved: Counter[str] = Counter()
    with channel.conn_or_acquire() as client:
        # Newest first, each to the front of its queue: the oldest is then the next to run.
        for start in page_starts(client):
            move = requeue_known_of_page(channel, tasks, start)
            moved.update(client.transaction(move, PARKED, value_from_callable=True))
    return moved


def requeue_known_of_page(channel: Any, tasks: Collection[str], start: int) -> Callable[[Any], list[str]]:
    """Return the transaction that requeues the known messages of a page; its value are the names of their tasks."""

    def move(pipe: Any) -> list[str]:
        known = [
            found
            for found in read_page(channel, pipe, start)
            if found[2] in tasks and compat.queues_of(channel, *found[1][1:])
        ]
        pipe.multi()
        for line, entry, _ in known:
            pipe.lrem(full_name(channel, PARKED), -1, line)  # Searched from the end, where it is.
            compat.restore_message(channel, *entry, pipe)
        return [name for _, _, name in known]

    return move


def full_name(channel: Any, key: str) -> str:
    """Return a key with the transport option global_keyprefix, for commands to which kombu does not add it."""
    return f"{channel.global_keyprefix}{key}"


def task_name_and_id(message: Any) -> tuple[str, str]:
    """Return the name and ID of a message's task: from its headers, or its body in the old message protocol."""
    headers = message.headers or {}
    found = headers if "task" in headers else message.payload
    return found["task"], found["id"]
