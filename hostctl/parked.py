"""Parked messages: list, show, requeue, drop; and how many there are. See in_app/parking.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from .application import Application
from .redis_connection import RedisConnection, RedisError, is_redis
from .settings import ReleaseError, Settings, read_environment, say

# The Redis list of parked messages.
LIST = "celery-parked"
# Seconds for which `status` waits for Redis.
TIMEOUT = 2


def run(application: Application, options: argparse.Namespace) -> int:
    """Run `tasks parked ACTION`. Raises ReleaseError."""
    celery = application.settings.celery_app
    if options.action == "list":
        messages = application.ask("list_parked", celery)["messages"]
        say(json.dumps(messages) if options.json else table(messages))
        return 0
    if options.action == "show":
        messages = application.ask("show_parked", celery, options.id)["messages"]
        if not messages:
            raise unknown(application.settings, options.id)
        text = "\n".join(json.dumps(message, indent=2, ensure_ascii=False) for message in messages)
        say(json.dumps(messages) if options.json else text)
        return 0
    if options.action == "drop" and not options.yes:
        confirm("every parked message" if options.all else f"the parked message {options.id}")
    answer = application.ask("take_parked", celery, options.action, options.id)
    return report(application.settings, options, answer)


def report(settings: Settings, options: argparse.Namespace, answer: dict[str, Any]) -> int:
    taken, stuck = answer["taken"], answer["stuck"]
    if options.id and not taken and not stuck:
        raise unknown(settings, options.id)
    if stuck:
        ids = ", ".join(message["id"] for message in stuck)
        raise ReleaseError(f"{len(taken)} requeued; no queue is bound to the exchange of: {ids}. They stay parked.")
    done = {"requeue": "Requeued", "drop": "Dropped"}[options.action]
    say(json.dumps(taken) if options.json else f"{done} {number_of(len(taken))}.")
    return 0


def unknown(settings: Settings, message_id: str) -> ReleaseError:
    return ReleaseError(f"No parked message has the ID {message_id}: see {settings.name}ctl tasks parked list.")


def confirm(what: str) -> None:
    """Ask on the terminal; raises ReleaseError without a yes, or without a terminal."""
    if not sys.stdin.isatty():
        raise ReleaseError(f"This deletes {what} for good: add --yes.")
    print(f"Delete {what} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ReleaseError("Nothing was deleted.")


def number_of(messages: int) -> str:
    return f"{messages} message{'' if messages == 1 else 's'}"


def table(messages: list[dict[str, Any]]) -> str:
    """Format parked messages for a terminal, oldest first."""
    if not messages:
        return "No message is parked."
    rows = [("parked", "queue", "task", "ID", "reason")]
    for one in messages:
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(one["since"])) if one["since"] else "-"
        rows.append(
            (since, printable(one["queue"]), printable(one["task"]) or "-", one["id"], printable(one["reason"]))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: Any) -> str:
    """Return a text from a message without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


# --- The number of parked messages, without loading the application


def number(settings: Settings, release: str, prefix: str = "") -> int | None:
    """Return how many messages are parked; None if there is no Celery, or Redis cannot be asked within TIMEOUT."""
    try:
        file = settings.configuration(release) / "app.env"
        url = read_environment(file).get("CELERY_BROKER_URL", "") if settings.celery_app else ""
        return length(url, f"{prefix}{LIST}") if is_redis(url) else None
    except (OSError, ValueError):
        return None


def length(url: str, key: str) -> int:
    """Return the length of a list in the Redis of a URL. Raises OSError or ValueError."""
    with RedisConnection(url, TIMEOUT) as redis:
        [number] = redis.ask(["LLEN", key])
    if not isinstance(number, int):
        raise RedisError(f"Redis answers {number!r}")
    return number
