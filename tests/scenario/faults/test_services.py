"""A service is killed, away, frozen or full, under load: what was accepted is not lost, and the host recovers.

Processes of the application are tested under both process managers. Redis and PostgreSQL belong to systemd on every
host: for them one host is enough, mostly the one with fewer alerts to test. That the workers stay when the broker has
no memory left is shown under systemd. Tests that damage several services are in scenario/host/test_restarts.py and
scenario/deploy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from deployments import SETTLE_SECONDS, Deployments
from doctor_on_host import wait_until_well
from probes import Visitor, wait_for
from testinfra.host import Host
from traffic import Sample, Traffic, verdict

BROKER = "redis-server@broker.service"
# How soon a service must be back, and the site answer, after what kept them down has ended.
BACK_SECONDS = 30
ANSWER_SECONDS = 10
# How long beat, which ticks each second, may be silent.
TICK_SECONDS = 20
# How soon gunicorn replaces a frozen child, and how long it certainly does not: its `timeout` is 60 s.
REPLACED_SECONDS = 120
FROZEN_SECONDS = 30
RESTARTS = 5


def cluster(host: Host) -> str:
    """Return the unit of PostgreSQL."""
    return host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1")


def is_active(host: Host, unit: str) -> bool:
    return host.check_output(f"systemctl show --property=ActiveState --value {unit}") == "active"


def kill(host: Host, unit: str) -> None:
    host.check_output(f"systemctl kill --kill-whom=main --signal=KILL {unit}")


@contextmanager
def small_disk(host: Host, unit: str, folder: str, megabytes: int) -> Iterator[str]:
    """A service has its folder on a disk of its own, with so much room beyond what is there; yields the folder."""
    used = int(host.check_output(f"du -sm {folder}").split()[0])
    host.check_output(f"systemctl stop {unit}")
    try:
        host.check_output(
            f"mv {folder} {folder}.kept && mkdir {folder} && "
            f"mount -t tmpfs -o size={used + megabytes}m tmpfs {folder} && chown --reference={folder}.kept {folder} && "
            f"chmod --reference={folder}.kept {folder} && cp -a {folder}.kept/. {folder}/ && systemctl start {unit}"
        )
        yield folder
        host.check_output(f"systemctl stop {unit}; rm -rf {folder}.kept/* && cp -a {folder}/. {folder}.kept/")
    finally:
        host.check_output(
            f"systemctl stop {unit}; ! mountpoint -q {folder} || umount -l {folder} && rmdir {folder} && "
            f"mv {folder}.kept {folder} && systemctl reset-failed {unit}; systemctl start {unit}"
        )


def has_run(deployments: Deployments, worker: str, since: float) -> bool:
    """Return whether a worker has begun a task since that time."""
    return any(entry.worker.startswith(f"{worker}.") for entry in deployments.ledger().since(since).of("START"))


def fill(host: Host, folder: str) -> None:
    host.run(f"dd if=/dev/zero of={folder}/filler bs=1M 2>/dev/null")
    assert host.run(f"df --output=avail {folder} | tail -n 1").stdout.strip() == "0"


@pytest.mark.os("debian12")
def test_killed_broker_loses_no_task(deployments: Deployments, healthy: None) -> None:
    """Redis has written what it has confirmed to its append-only file, and loads it again."""
    host = deployments.host
    with deployments.under_load(tasks=4, slow_seconds=0) as traffic:
        traffic.pause(2)
        kill(host, BROKER)
        wait_for(lambda: is_active(host, BROKER), BACK_SECONDS, "the broker is back")
        traffic.pause(4)
        sent = list(traffic.sent)
    verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, SETTLE_SECONDS).since(traffic.samples[0].start))


@dataclass
class Disturbed:
    """What was seen while a child of gunicorn was frozen: a worker was restarted, and beat was killed."""

    # Requests that began and ended in the first 30 s, while it is certainly frozen.
    pages: Sequence[Sample]
    # The load during the restarts and the kill.
    tasks: Traffic
    # How often the worker was told to stop and ended with status 0.
    clean_stops: int


@pytest.fixture(scope="module")
def disturbed(deployments: Deployments, _well: None) -> Disturbed:
    """Disturb three processes of the application at once: none needs another, and each has assertions of its own."""
    host, before = deployments.host, deployments.clean_stops("worker-default")
    children = f"pgrep -P {deployments.processes()[deployments.unit('web')]}"
    [first, *_] = host.check_output(children).split()
    try:
        with deployments.under_load(tasks=0, slow_seconds=0) as pages:
            host.check_output(f"kill -STOP {first}")
            frozen = time.time()
            with deployments.under_load(rate=1, tasks=4, slow_seconds=0) as tasks:
                for _ in range(RESTARTS):
                    tasks.pause(1)
                    host.check_output(deployments.manage("restart", "worker-default"))
                    # Supervisor does not wait until it is ready.
                    restarted = time.time()
                    wait_for(
                        lambda since=restarted: has_run(deployments, "default", since), SETTLE_SECONDS, "it runs tasks"
                    )
                deployments.kill("beat")
                killed = time.time()
                wait_for(
                    lambda: [one for one in deployments.ledger().ticks if one.sent_at > killed],
                    TICK_SECONDS,
                    "beat ticks",
                )
                tasks.pause(3)
            rest = REPLACED_SECONDS - (time.time() - frozen)
            wait_for(
                lambda: first not in host.run(children).stdout.split(), rest, "the frozen one is replaced", pause=1
            )
        clean_stops = deployments.clean_stops("worker-default") - before
    finally:
        # If it was not replaced, it is still frozen.
        host.run(f"kill -CONT {first}")
        wait_until_well(deployments)
    early = [one for one in pages.samples if frozen < one.start and one.end < frozen + FROZEN_SECONDS]
    return Disturbed(early, tasks, clean_stops)


def test_worker_stops_and_starts_five_times(deployments: Deployments, disturbed: Disturbed) -> None:
    deployments.assert_no_task_lost(disturbed.tasks)
    assert disturbed.clean_stops == RESTARTS


def test_killed_beat_is_late_by_a_tick_at_most(deployments: Deployments, disturbed: Disturbed) -> None:
    deployments.assert_no_task_lost(disturbed.tasks, bound=TICK_SECONDS)


def test_frozen_web_process_is_replaced(disturbed: Disturbed) -> None:
    """The other one answers meanwhile."""
    assert any(not sample.failed for sample in disturbed.pages)


def test_everything_boots_without_redis(deployments: Deployments, visitor: Visitor, healthy: None) -> None:
    """The pages answer, processes stay up, and consume when Redis is there."""
    host, app = deployments.host, deployments.app
    units = "redis-server@broker redis-server@cache"
    host.check_output(f"systemctl stop {units}")
    try:
        host.check_output(f"systemctl restart {app.name}")
        wait_for(lambda: visitor.get("/healthz/").status == 200, 60, "the pages answer without Redis")
        # Longer than a process that ends at once takes for a restart.
        time.sleep(10)
        before = deployments.processes()
        assert {f"{app.name}-web@{deployments.current}", f"{app.name}-beat"} <= set(before)
        assert visitor.get("/").status == 200
        answer = visitor.post_json("/tasks/", {"task": "ledger.effect", "args": ["away", 0]})
        assert answer.status == 503, f"{answer.status}: {answer.body[:500]}"
    finally:
        host.check_output(f"systemctl start {units}")
    with deployments.under_load(tasks=1, slow_seconds=0) as traffic:
        wait_for(lambda: traffic.sent, BACK_SECONDS, "a task is accepted")
        sent = traffic.sent[:1]
        verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, BACK_SECONDS))
    assert before.items() <= deployments.processes().items(), "a process ended while Redis was away"


@pytest.mark.os("debian13")
def test_broker_without_memory_refuses_tasks(deployments: Deployments, visitor: Visitor, healthy: None) -> None:
    """The site says so, workers live, and all continues when there is room."""
    host = deployments.host
    file = "/etc/redis/redis-broker.conf"
    workers = {name: pid for name, pid in deployments.processes().items() if "worker" in name}
    before = host.check_output(f"cat {file}")
    try:
        host.check_output(f"echo maxmemory 1mb >>{file} && systemctl restart {BROKER}")
        wait_for(lambda: is_active(host, BROKER), BACK_SECONDS, "the broker runs")
        status = wait_for(
            lambda: visitor.post_json("/tasks/", {"task": "ledger.effect", "args": ["full", 0]}).status,
            BACK_SECONDS,
            "a task is refused",
            lambda seen: seen != 202,
        )
        assert status == 503
        assert visitor.get("/").status == 200
    finally:
        deployments.write(file, before + "\n")
        host.check_output(f"systemctl restart {BROKER}")
    with deployments.under_load(tasks=2, slow_seconds=0) as traffic:
        wait_for(lambda: len(traffic.sent) > 4, BACK_SECONDS, "tasks are accepted")
        sent = list(traffic.sent)
    verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, SETTLE_SECONDS))
    assert {name: pid for name, pid in deployments.processes().items() if "worker" in name} == workers


@pytest.mark.os("debian12")
def test_killed_postgresql_is_away_for_seconds(deployments: Deployments, healthy: None) -> None:
    """Requests fail in the gap alone; no task is lost."""
    host = deployments.host
    unit = cluster(host)
    with deployments.under_load(rate=5, tasks=2) as traffic:
        traffic.pause(2)
        killed = time.time()
        kill(host, unit)
        wait_for(lambda: is_active(host, unit), BACK_SECONDS, "PostgreSQL is back")
        back = time.time()
        traffic.pause(ANSWER_SECONDS + 3)
        sent = list(traffic.sent)
    failed = [sample for sample in traffic.samples if sample.failed]
    outside = [one for one in failed if not killed - 3 < one.start < back + ANSWER_SECONDS]
    assert not outside, verdict.offenders(outside, len(traffic.samples), "requests failed outside the gap")
    verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, SETTLE_SECONDS))


@pytest.mark.os("debian12")
def test_postgresql_is_back_when_its_full_disk_has_room(
    deployments: Deployments, visitor: Visitor, healthy: None
) -> None:
    host, unit = deployments.host, cluster(deployments.host)
    folder = re.sub(r"postgresql@(\d+)-main.service", r"/var/lib/postgresql/\1/main/pg_wal", unit)
    with small_disk(host, unit, folder, 32):
        wait_for(lambda: visitor.get("/readyz/").status == 200, BACK_SECONDS, "the site is ready")
        fill(host, folder)
        write = "CREATE TABLE IF NOT EXISTS filler AS SELECT repeat('x', 1000) FROM generate_series(1, 2000000)"
        host.run(f'cd / && runuser -u postgres -- psql -qc "{write}" {deployments.app.name}')
        wait_for(lambda: visitor.get("/readyz/").status != 200, BACK_SECONDS, "PostgreSQL has stopped")
        host.check_output(f"rm {folder}/filler")
        wait_for(lambda: visitor.get("/readyz/").status == 200, BACK_SECONDS, "the site is ready again")
        host.run(f"cd / && runuser -u postgres -- psql -qc 'DROP TABLE IF EXISTS filler' {deployments.app.name}")
    wait_for(lambda: visitor.get("/readyz/").status == 200, BACK_SECONDS, "the site is ready")


@pytest.mark.os("debian12")
def test_broker_recovers_when_its_full_disk_has_room(deployments: Deployments, visitor: Visitor, healthy: None) -> None:
    host = deployments.host
    with small_disk(host, "redis-server@broker redis-server@cache", "/var/lib/redis", 24):
        wait_for(lambda: visitor.get("/readyz/").status == 200, BACK_SECONDS, "the site is ready")
        with deployments.under_load(tasks=4, slow_seconds=0) as traffic:
            fill(host, "/var/lib/redis")
            traffic.pause(4)
            assert visitor.get("/").status == 200
            host.check_output("rm /var/lib/redis/filler")
            freed = len(traffic.sent)
            wait_for(lambda: len(traffic.sent) > freed + 3, BACK_SECONDS, "tasks are accepted again")
            sent = list(traffic.sent)
        verdict.none_lost(sent, verdict.settle(deployments.ledger, sent, SETTLE_SECONDS))
