"""PostgreSQL restarts, is away, and is killed, under load: no task is lost, and no worker loses a place of its pool."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from deployments import Deployments
from probes import wait_for
from traffic import verdict

AWAY_SECONDS = 10
SETTLE_SECONDS = 240
# Long enough for all of a worker's places to be occupied at the same time.
HOLD_SECONDS = 8


@pytest.mark.os("debian13")
def test_no_task_is_lost_without_postgresql(deployments: Deployments, old: str) -> None:
    host = deployments.host
    unit = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1")
    workers = {name: pid for name, pid in deployments.processes().items() if "worker" in name}
    with deployments.under_load(rate=1, tasks=4, slow_seconds=0) as traffic:
        traffic.pause(2)
        host.check_output(f"systemctl restart {unit}")
        traffic.pause(3)
        host.check_output(f"systemctl stop {unit}")
        traffic.pause(AWAY_SECONDS)
        host.check_output(f"systemctl start {unit}")
        traffic.pause(3)
        host.check_output(f"systemctl kill --kill-whom=main --signal=KILL {unit}")
        time.sleep(3)
        wait_for(lambda: host.run(f"systemctl start {unit}").succeeded, 30, "PostgreSQL starts again")
        traffic.pause(3)
        sent = list(traffic.sent)
    # A task that failed without its database is retried some seconds later.
    verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, SETTLE_SECONDS).since(traffic.samples[0].start))
    assert {name: pid for name, pid in deployments.processes().items() if "worker" in name} == workers

    for task, queue in {"ledger.effect": "default", "ledger.effect_io": "io"}.items():
        places = next(one.get("concurrency", 2) for one in deployments.app.workers if queue in one.get("queues", []))
        keys = [uuid.uuid4().hex for _ in range(places)]
        # At once: one after another, a slow machine would take longer for them than each of them does.
        with ThreadPoolExecutor(places) as pool:
            list(pool.map(lambda key, task=task: traffic.start_task(task, key, HOLD_SECONDS), keys))
        held = [one.id for one in traffic.sent if one.key in keys]
        events = wait_for(
            lambda held=held: [one.event for one in deployments.ledger().entries if one.id in held],
            SETTLE_SECONDS,
            f"all tasks of the queue {queue} have ended",
            lambda found, places=places: found.count("END") == places,
        )
        assert events.index("END") >= places, f"the worker of {queue} runs fewer than {places} tasks at the same time"
