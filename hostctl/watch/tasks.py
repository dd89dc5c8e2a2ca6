"""Tasks that have ended since the last run, from Flower's counters."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict

from ..doctor.finding import Context

SECONDS = 3
BYTES = 8 * 2**20
# As in roles/nginx, whose location is fixed.
PATH = "/flower/metrics"
COUNTER = re.compile(r"^flower_events_total\{([^}\n]*)\} ([\d.e+]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
TYPES = {"task-succeeded": "tasks_finished", "task-failed": "tasks_failed"}
# After so many seconds without a run, the difference says nothing of a minute.
FORGOTTEN = 600
Counters = dict[str, dict[str, float]]


def measure(context: Context) -> dict[str, float]:
    """Return tasks_finished and tasks_failed per minute; {} on the first run, and without Flower.

    Each worker has counters of its own: one that is new or smaller than before has begun at 0.
    """
    configuration = context.configuration
    if not configuration.flower or not {"web", "scheduler"} & set(configuration.groups):
        return {}
    try:
        counters = read(metrics(configuration.flower))
    except (OSError, http.client.HTTPException):
        return {}
    last = context.memory.get("tasks", {})
    context.memory["tasks"] = {"time": context.now, "counters": counters}
    age = context.now - last.get("time", 0)
    if not 0 < age <= FORGOTTEN:
        return {}
    return {name: increase(last["counters"].get(name, {}), counters[name]) * 60 / age for name in TYPES.values()}


def metrics(address: str) -> str:
    """Return what Flower shows to Prometheus. Raises OSError or HTTPException."""
    name, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(name.strip("[]"), int(port), timeout=SECONDS)
    try:
        connection.request("GET", PATH)
        answer = connection.getresponse()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
        return answer.read(BYTES).decode(errors="replace")
    finally:
        connection.close()


def read(text: str) -> Counters:
    """Return how many tasks of each worker have succeeded and failed."""
    counters: Counters = {name: defaultdict(float) for name in TYPES.values()}
    for labels, value in COUNTER.findall(text):
        found = dict(LABEL.findall(labels))
        if name := TYPES.get(found.get("type", "")):
            counters[name][found.get("worker", "")] += float(value)
    return counters


def increase(before: dict[str, float], after: dict[str, float]) -> float:
    """Return by how much the counters of all workers have grown."""
    return sum(
        value - before[worker] if value >= before.get(worker, float("inf")) else value
        for worker, value in after.items()
    )
