"""The queues of the installation: how many tasks wait, for how long, and what the workers have in hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..parked import LIST, number_of
from ..redis_connection import Large, RedisConnection, RedisError, is_redis
from ..settings import read_environment
from .finding import BAD, OK, WARN, Context, Finding, duration, plural

# Celery's list of a queue for each of its priorities, highest first: the name, or the name and one of these.
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
# The nodes of the workers, each of which has keys of its own for what it holds (in_app/requeue.py).
SLOTS = "unacked_slots"
# Seconds that the next task of a queue may wait: one minute and five, less what two runs of the watch may be closer.
AGE_WARN, AGE_BAD = 57, 297
TIMEOUT = 3


def queues(context: Context) -> Finding | None:
    """Return how many tasks wait in each queue, and for how long the next one has waited.

    The broker does not know how old a message is: the same one is still the next, as the watch sees every minute.
    """
    settings = context.settings
    if not context.release or not settings.celery_app or not tells(context):
        return None
    url = broker_url(context)
    if not url:
        return Finding(WARN, "the address of the broker is not known yet", "ansible-playbook -i INVENTORY site.yml")
    if not is_redis(url):
        return Finding(OK, "the broker is not Redis: how many tasks wait is not known")
    try:
        with RedisConnection(url, TIMEOUT) as redis:
            prefix = context.host.facts(context.release).get("key_prefix", "")
            waiting = {queue: look(redis, prefix + queue) for queue in dict.fromkeys(settings.queues)}
            held = in_hand(redis, prefix)
            [parked] = redis.ask(["LLEN", prefix + LIST])
    except (OSError, RedisError) as error:
        remedy = f"{context.program} logs worker\n# see the line redis, too"
        return Finding(BAD, f"the broker cannot be asked: {error}", remedy)
    ages = {queue: age_of(context, queue, identity) for queue, (_, identity) in waiting.items()}
    if context.watches:
        for queue in set(context.memory.get("queues", {})) - set(waiting):
            del context.memory["queues"][queue]
    values = {f"queue_waiting:{queue}": float(number) for queue, (number, _) in waiting.items()}
    values |= {f"queue_age:{queue}": round(age, 1) for queue, age in ages.items()}
    return judge(context, {queue: number for queue, (number, _) in waiting.items()}, ages, held, parked, values)


def judge(
    context: Context, waiting: dict[str, int], ages: dict[str, float], held: dict[str, tuple[int, float]],
    parked: Any, values: dict[str, float],
) -> Finding:  # fmt: skip
    """Return the finding: a queue is broken when its tasks wait and its workers have nothing in hand."""
    late = {queue: age for queue, age in ages.items() if age >= AGE_WARN}
    hands = {queue: hand_of(context, queue, held) for queue in late}
    stuck = [queue for queue, age in late.items() if age >= AGE_BAD and not hands[queue][0]]
    if late:
        lines = [
            f"{queue}: {plural(waiting[queue], 'task')} waiting, the next one for {duration(age)} "
            f"(limit {duration(AGE_BAD if age >= AGE_BAD else AGE_WARN)}), " + in_words(context, hands[queue])
            for queue, age in late.items()
        ]  # fmt: skip
        remedy = f"{context.program} logs worker; {context.program} celery inspect active"
        # Tasks that take minutes let the next one wait.
        alert = any(age >= AGE_BAD or not hands[queue][0] for queue, age in late.items())
        return Finding(BAD if stuck else WARN, "; ".join(lines), remedy, values, alert=alert)
    total = sum(waiting.values())
    text = f"{', '.join(waiting) or 'none'}: {plural(total, 'task')} waiting"
    text += f", {in_words(context, total_of(held))}"
    if parked:
        text += f"; {number_of(parked)} parked, which no worker runs"
        return Finding(WARN, text, f"{context.program} tasks parked list", values)
    return Finding(OK, text, values=values)


def tells(context: Context) -> bool:
    """Return whether this host tells of the queues: that of beat, and without beat, the one that migrates."""
    settings = context.settings
    return settings.beat if settings.has_beat else settings.leader


def broker_url(context: Context) -> str:
    """Return the broker of the current release, or else the one in the settings of the monitoring."""
    try:
        environment = read_environment(context.settings.configuration(context.release) / "app.env")
    except FileNotFoundError:
        environment = {}
    return environment.get("CELERY_BROKER_URL") or context.configuration.secrets()["BROKER_URL"]


def look(redis: RedisConnection, key: str) -> tuple[int, str]:
    """Return how many tasks wait in a queue, and what identifies the one that a worker gets next ("" without one)."""
    lists = [key + priority for priority in PRIORITIES]
    lengths = [int(number) for number in redis.ask(*(["LLEN", name] for name in lists))]
    for name, length in zip(lists, lengths, strict=True):
        if length:
            [message] = redis.ask(["LINDEX", name, "-1"])
            return sum(lengths), identity(message) if message else ""
    return 0, ""


def identity(message: bytes | Large) -> str:
    """Return what tells one message from another."""
    if isinstance(message, Large):
        return message.digest
    try:
        return str(json.loads(message)["properties"]["delivery_tag"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return hashlib.sha256(message).hexdigest()


def age_of(context: Context, queue: str, identity: str) -> float:
    """Return for how many seconds the same message has been the next one, at least."""
    known = context.memory.get("queues", {}).get(queue, {})
    since = known["since"] if identity and known.get("id") == identity else context.now
    if context.watches:
        memory = context.memory.setdefault("queues", {})
        if identity:
            memory[queue] = {"id": identity, "since": since}
        else:
            memory.pop(queue, None)
    return max(0.0, context.now - since)


# --- What workers have in hand -------------------------------------------------------------------------------------


def in_hand(redis: RedisConnection, prefix: str) -> dict[str, tuple[int, float]]:
    """Return the messages that each worker node holds, running or taken in advance, and since when the oldest one."""
    [nodes] = redis.ask(["SMEMBERS", prefix + SLOTS])
    found = {}
    for node in sorted(one.decode(errors="replace") for one in nodes or []):
        key = f"{prefix}unacked_index:{node}"
        number, oldest = redis.ask(["ZCARD", key], ["ZRANGE", key, "0", "0", "WITHSCORES"])
        if number and oldest:
            found[node] = int(number), float(oldest[1])
    return found


def hand_of(context: Context, queue: str, held: dict[str, tuple[int, float]]) -> tuple[int, float]:
    """Return what the workers of a queue hold; that of all workers where this host does not know which these are."""
    names = {worker.name for worker in context.settings.workers if queue in worker.queues}
    own = {node: one for node, one in held.items() if node.partition(".")[0] in names}
    return total_of(own if names else held)


def total_of(held: dict[str, tuple[int, float]]) -> tuple[int, float]:
    return sum(number for number, _ in held.values()), min((since for _, since in held.values()), default=0.0)


def in_words(context: Context, hand: tuple[int, float]) -> str:
    number, since = hand
    return f"{number} in hand, the oldest for {duration(max(0.0, context.now - since))}" if number else "none in hand"
