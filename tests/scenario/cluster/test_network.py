"""Tasks of one host are for the workers of another. If the network drops packets, what waits in queues is not lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster import Cluster
from deployments import SETTLE_SECONDS
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host
from traffic import verdict
from traffic.load import Sent

DROPPED_SECONDS = 30
# How soon a worker must consume when packets arrive again (docs/reliability.md), and as long again on a busy machine.
BACK_SECONDS = 25 + 25
# Each has a connection that waits for the next message: what Redis is just writing to it is in no queue any more.
WORKERS = ("default", "heavy", "io")

pytestmark = pytest.mark.usefixtures("without_own_workers")


@contextmanager
def broker_unreachable(cluster: Cluster) -> Iterator[None]:
    """The broker's host drops every packet between the broker and the other worker host."""
    work = cluster.at("work").host.ansible.get_variables()["ansible_host"]
    rules = [f"INPUT -s {work} -p tcp --dport 6379 -j DROP", f"OUTPUT -d {work} -p tcp --sport 6379 -j DROP"]
    cluster.database.check_output(" && ".join(f"iptables -I {rule}" for rule in rules))
    try:
        yield
    finally:
        cluster.database.check_output("; ".join(f"iptables -D {rule}" for rule in rules))


def test_order_on_one_host_is_processed_on_another(
    app: Installation, hosts: dict[str, Host], visitor: Visitor, release: str
) -> None:
    steps = visitor.finished_order(visitor.order(), 60)["steps"]
    nodes = {visitor.finished_task(step["task"], 60)["worker"] for step in steps}
    node = hosts["work"].check_output("hostname")
    assert nodes == {f"{app.queues[queue]}.{release}@{node}" for queue in ("default", "io")}


def test_workers_consume_soon_after_packets_to_the_broker_were_dropped(cluster: Cluster) -> None:
    """Pages still reach the broker, and all tasks are for the workers that do not."""
    with cluster.under_load(tasks=2) as traffic:
        traffic.pause(3)
        begun = time.time()
        with broker_unreachable(cluster):
            traffic.pause(5)
            # A worker may still have had some before.
            unreachable = time.time()
            traffic.pause(DROPPED_SECONDS - 5)
            back = time.time()
        # The site is visited until what was queued has ended, and some that are sent now.
        traffic.pause(5)
        sent = list(traffic.sent)
        handed_over = [one for one in sent if begun - 1 < one.at < unreachable]
        queued = [one for one in sent if one not in handed_over]
        ledger = verdict.settle(cluster.ledger, queued, BACK_SECONDS + SETTLE_SECONDS)
    ledger = ledger.since(traffic.samples[0].start)
    verdict.no_request_failed(traffic.samples)
    waited = {one.id for one in sent if unreachable < one.at < back}
    assert len(waited) > DROPPED_SECONDS - 5, "too few tasks were accepted meanwhile"
    began = sorted(entry.at for entry in ledger.of("START") if entry.id in waited)
    assert began, "none of these tasks began"
    assert began[0] > back - 1, "packets were not dropped"
    print(f"Consuming {began[0] - back:.1f} s after the broker's return.")
    assert began[0] < back + BACK_SECONDS
    verdict.none_lost(queued, ledger)
    verdict.each_effect_once(queued, ledger)

    def unfinished() -> list[Sent]:
        ended = cluster.ledger().ended
        return [one for one in handed_over if one.id not in ended]

    wait_for(unfinished, SETTLE_SECONDS, "at most one of each worker is lost", lambda lost: len(lost) <= len(WORKERS))
