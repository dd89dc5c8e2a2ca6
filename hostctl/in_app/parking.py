"""Park messages that this worker cannot run: they wait in a Redis list, oldest first, in the format of requeue.py.

UNKNOWN     this release does not know its task: Celery drops such a message. A release that knows it requeues it.
UNREADABLE  it cannot be read: Celery drops it, or ends
RETURNED    its task ended a process again and again (returns.py)
WAITING     it waited in a queue when the database was restored to an earlier state, which may not have its rows

All but the first wait for an operator: `APPctl tasks parked`. Why and when a message was parked is in the message.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

from . import compat, returns

PARKED = "celery-parked"
# The list's name before version 0.1.0. A worker moves its messages over when it starts.
FORMER_LIST = "celery-set-aside"
# Messages read at once: the whole list may not fit into memory.
PAGE = 200

UNKNOWN, UNREADABLE, RETURNED, WAITING = "unknown", "unreadable", "returned", "waiting"
# In a parked message: kind, reason and since (seconds since 1970). Version 0.1.0 parked unknown tasks only, without it.
DETAILS = "hostctl_parked"

# A parked entry: as it is in the list; decoded into message, exchange and routing key.
Entry = tuple[bytes, list[Any]]


# --- Parking -------------------------------------------------------------------------------------------------------


def add(pipe: Any, entry: list[Any], kind: str, reason: str) -> None:
    """Add a message to the parked ones, in a Redis transaction."""
    entry[0][DETAILS] = {"kind": kind, "reason": reason, "since": int(time.time())}
    pipe.rpush(PARKED, json.dumps(entry))


def park(channel: Any, tag: str, kind: str, reason: str) -> None:
    """Move a message that this worker holds to the parked ones."""

    def move(pipe: Any) -> None:
        found = pipe.hget(channel.unacked_key, tag)
        pipe.multi()
        pipe.zrem(channel.unacked_index_key, tag).hdel(channel.unacked_key, tag)
        if found:
            add(pipe, json.loads(found), kind, reason)

    with channel.conn_or_acquire() as client:
        client.transaction(move, channel.unacked_key)


def entry_of(item: bytes, queue: str) -> list[Any]:
    """Return an entry for an item of a queue that is not a message, or not one that can be delivered."""
    tag = str(uuid.uuid4())
    properties = {"delivery_tag": tag, "delivery_info": {"exchange": "", "routing_key": queue}}
    # Earlier versions of this program read the list, too.
    message = {"headers": {"task": "", "id": tag}, "properties": properties, "raw": base64.b64encode(item).decode()}
    return [message, "", queue]


def park_entry(channel: Any, entry: list[Any], reason: str) -> None:
    with channel.conn_or_acquire() as client:
        add(client, entry, UNREADABLE, reason)


def park_queue(channel: Any, queue: str, reason: str) -> Counter[str]:
    """Move every message that waits in a queue to the parked ones, oldest first; count them by their task's name."""
    names: Counter[str] = Counter()
    with channel.conn_or_acquire() as client:
        for key in compat.keys_of(channel, queue):
            while name := client.transaction(park_oldest(channel, key, queue, reason), key, value_from_callable=True):
                names[name] += 1
    return names


def park_oldest(channel: Any, key: str, queue: str, reason: str) -> Callable[[Any], str]:
    """Return the transaction that parks the message which is next to be taken; its value is the task's name, or ""."""

    def move(pipe: Any) -> str:
        item = pipe.lindex(full_name(channel, key), -1)
        if item is None:
            pipe.multi()
            return ""
        try:
            message = json.loads(item)
            info = message["properties"]["delivery_info"]
            entry = [message, info["exchange"], info["routing_key"]]
        except (ValueError, LookupError, TypeError):
            entry = entry_of(item, queue)
        name = task_name_and_id(channel, entry[0])[0]
        pipe.multi()
        pipe.lrem(full_name(channel, key), -1, item)  # Searched from the end, where it is.
        add(pipe, entry, WAITING, reason)
        return name or "unknown"

    return move


def adopt_former_list(channel: Any) -> None:
    """Move messages over that workers of a version before 0.1.0 parked."""
    with channel.conn_or_acquire() as client:
        while client.rpoplpush(full_name(channel, FORMER_LIST), full_name(channel, PARKED)):
            pass


# --- What is parked ------------------------------------------------------------------------------------------------


def details_of(message: dict[str, Any]) -> dict[str, Any]:
    return message.get(DETAILS) or {"kind": UNKNOWN, "reason": "the release does not know its task", "since": None}


def parked_tasks(channel: Any, client: Any) -> Counter[str]:
    """Count the parked messages of unknown tasks by the name of their task."""
    # By their delivery tags: a message may be read twice while others are requeued.
    names = {
        delivery_tag(entry[0]): task_name_and_id(channel, entry[0])[0]
        for _, entry in parked_entries(channel, client)
        if details_of(entry[0])["kind"] == UNKNOWN
    }
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
    return [(line, json.loads(line)) for line in reversed(lines)]


def summary(channel: Any, entry: list[Any]) -> dict[str, Any]:
    """Return what a list of parked messages says about one."""
    message, exchange, routing_key = entry
    name, task_id = task_name_and_id(channel, message)
    found = {"id": task_id or delivery_tag(message), "task": name, "queue": routing_key or exchange}
    return found | {key: details_of(message).get(key) for key in ("kind", "reason", "since")}


def content(channel: Any, entry: list[Any]) -> dict[str, Any]:
    """Return everything that is known about a parked message: its summary, headers, properties and body."""
    message = entry[0]
    if "raw" in message:
        return summary(channel, entry) | {"body": base64.b64decode(message["raw"]).decode(errors="backslashreplace")}
    try:
        body = channel.message_to_python(message).decode()
    except Exception:  # That may be why it is parked.
        body = message.get("body")
    found = {"headers": message.get("headers"), "properties": message.get("properties"), "body": body}
    return summary(channel, entry) | found


# --- Requeueing and dropping ---------------------------------------------------------------------------------------


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
        page = [(line, entry) for line, entry in read_page(channel, pipe, start) if is_requeued_when_known(entry[0])]
        names = [task_name_and_id(channel, entry[0])[0] for _, entry in page]
        known = [
            (name, *found)
            for name, found in zip(names, page, strict=True)
            if name in tasks and compat.queues_of(channel, *found[1][1:])
        ]
        pipe.multi()
        for _, line, entry in known:
            pipe.lrem(full_name(channel, PARKED), -1, line)  # Searched from the end, where it is.
            restore(channel, entry, pipe)
        return [name for name, _, _ in known]

    return move


def is_requeued_when_known(message: dict[str, Any]) -> bool:
    return details_of(message)["kind"] == UNKNOWN


def take(
    channel: Any, is_wanted: Callable[[list[Any]], bool], *, requeue: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Remove parked messages, oldest first, and requeue them behind the others, with their returns forgotten.

    Returns the summaries of those that were removed, and of those that stay: no queue is bound to their exchange.
    """
    taken: list[dict[str, Any]] = []
    stuck: list[dict[str, Any]] = []
    with channel.conn_or_acquire() as client:
        start, end = 0, client.llen(PARKED)
        while start < end:
            move = take_from_page(channel, is_wanted, start, min(PAGE, end - start), requeue=requeue)
            read, removed, staying = client.transaction(move, PARKED, value_from_callable=True)
            if not read:
                break
            taken += removed
            stuck += staying
            start, end = start + read - len(removed), end - len(removed)
    return taken, stuck


def take_from_page(
    channel: Any, is_wanted: Callable[[list[Any]], bool], start: int, size: int, *, requeue: bool
) -> Callable[[Any], tuple[int, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Return the transaction of `take` for one page; its value: how many were read, were removed, and stay."""

    def move(pipe: Any) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
        lines = pipe.lrange(full_name(channel, PARKED), start, start + size - 1)
        found = [(line, json.loads(line)) for line in lines]
        wanted = [(line, entry, summary(channel, entry)) for line, entry in found if is_wanted(entry)]
        stuck = [one for one in wanted if requeue and not compat.queues_of(channel, *one[1][1:])]
        removed = [one for one in wanted if one not in stuck]
        pipe.multi()
        for line, entry, _ in removed:
            pipe.lrem(full_name(channel, PARKED), 1, line)
            if requeue:
                restore(channel, entry, pipe, behind=True)
        return len(lines), [one[2] for one in removed], [one[2] for one in stuck]

    return move


def restore(channel: Any, entry: list[Any], pipe: Any, *, behind: bool = False) -> None:
    """Push a parked message back to its queue, in a Redis transaction."""
    message, exchange, routing_key = entry
    if "raw" in message:
        pipe.lpush(routing_key, base64.b64decode(message["raw"]))
        return
    message.pop(DETAILS, None)
    returns.reset(message)
    compat.restore_message(channel, message, exchange, routing_key, pipe, behind=behind)


# --- Helpers -------------------------------------------------------------------------------------------------------


def full_name(channel: Any, key: str) -> str:
    """Return a key with the transport option global_keyprefix, for commands to which kombu does not add it."""
    return f"{channel.global_keyprefix}{key}"


def delivery_tag(message: dict[str, Any]) -> str:
    return str((message.get("properties") or {}).get("delivery_tag"))


def task_name_and_id(channel: Any, message: dict[str, Any]) -> tuple[str, str]:
    """Return the name and ID of a message's task: from its headers, or its body in the old message protocol.

    Each is "" where the message does not have it, or cannot be read.
    """
    found = message.get("headers")
    if not isinstance(found, dict) or "task" not in found:
        try:
            found = channel.message_to_python(message).payload
        except Exception:  # Messages that cannot be read are parked, too.
            found = {}
    values = [found.get(key) if isinstance(found, dict) else None for key in ("task", "id")]
    return tuple(value if isinstance(value, str) else "" for value in values)
