"""worker.py and consumer.py: smoke test, queues, what a worker does at its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery, chord
from conftest import END_SECONDS, HOST, PROJECT, Broker, Site, children, wait_until


def begin_stop(site: Site, worker: subprocess.Popen) -> None:
    """Tell a worker to stop; return when it only waits for running tasks."""
    worker.terminate()
    admin = site.broker.admin
    # Once a second the worker checks whether it has to stop.
    wait_until(lambda: any(admin.hexists(key, "stopping") for key in admin.keys("unacked_state:*")))
    # It then gives no task to a child any more.
    time.sleep(2)


def summary(site: Site, release: str = "r1") -> dict[str, int]:
    """Return what the worker `one` wrote at its end."""
    return json.loads((site.run(release) / "one.json").read_text())


# --- Questions of a deployment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads", "solo"])
def test_smoke_test_returns(site: Site, broker: Broker, pool: str) -> None:
    site.worker(queues="default,other", pool=pool)
    answers = site.ask(
        ["ping", "sample", 60, f"one.r1@{HOST}"],
        ["smoke_test", "sample", 60, "r1", {}, "default", "other"],
        ["smoke_test", "sample", 10, "r2", {}, "default", "ticks"],
    )
    assert answers == [
        {"silent": []},
        {"silent": [], "other": {}, "busy": []},
        {"silent": ["ticks"], "other": {"default": "r1"}, "busy": []},
    ]
    assert list(site.results.iterdir()) == []


def test_smoke_test_behind_a_long_task_finds_the_queue_busy(site: Site, broker: Broker) -> None:
    site.worker(concurrency=1)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    answer = site.ask(["smoke_test", "sample", 60, "r1", {f"one.r1@{HOST}": ["default"]}, "default"])
    assert answer == {"silent": [], "other": {}, "busy": ["default"]}
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])


@pytest.mark.core
def test_workers_say_what_they_consume_and_run(site: Site, broker: Broker) -> None:
    site.worker(queues="default,other")
    node, sent, began = f"one.r1@{HOST}", site.send(), time.time()
    wait_until(lambda: site.lines("START") == [sent])
    expected = {node: ["default", "other", "ticks"], "two.r1@nowhere": ["default"]}
    consumed, running = site.ask(["consumed", "sample", 3, expected], ["running", "sample", 10, node])
    assert consumed == {"silent": ["two.r1@nowhere"], "missing": {node: ["ticks"]}}
    [task] = running[node]
    assert (task["name"], task["id"]) == ("sample.hold", sent)
    assert began - 1 < task["since"] < time.time() + 1
    site.gate.touch()


@pytest.mark.core
def test_worker_stops_consuming_and_resumes(site: Site, broker: Broker) -> None:
    node = f"one.r1@{HOST}"
    worker = site.worker(queues="default,other")
    before = children(worker)
    assert len(before) == 2
    assert site.ask(["consumers", "sample", "cancel", "default,other", node]) == {"silent": []}
    site.gate.touch()
    sent = [site.send(), site.send(queue="other"), site.send(queue="other", priority=9)]
    time.sleep(2)
    assert site.ask(["depths", "sample", "default", "other", "ticks"]) == {"default": 1, "other": 2, "ticks": 0}
    answer = site.ask(["consumers", "sample", "add", "default,other", node, "two.r1@nowhere"])
    assert answer == {"silent": ["two.r1@nowhere"]}
    wait_until(lambda: set(site.lines("END")) == set(sent))
    assert (worker.poll(), children(worker)) == (None, before)
    # It still consumes them after a lost connection.
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    sent += [site.send(), site.send(queue="other")]
    wait_until(lambda: set(site.lines("END")) == set(sent))


# --- Stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "numbers"),
    [
        pytest.param("prefork", {"held": 3, "finished": 1, "requeued": 2}, marks=pytest.mark.core),
        # Threads begin every task they were given (not from Celery 5.7 on).
        ("threads", {"held": 3, "finished": 2, "requeued": 1}),
    ],
)
def test_stopped_worker_writes_a_summary(site: Site, broker: Broker, pool: str, numbers: dict[str, Any]) -> None:
    worker = site.worker(concurrency=1, pool=pool, PREFETCH="3")
    site.send()
    site.send()
    site.send(countdown=3600)
    wait_until(lambda: site.lines("START") and broker.admin.hlen(f"unacked:one.r1@{HOST}") == 3)
    wait_until(lambda: site.output(worker).count("received") == 3)
    begin_stop(site, worker)
    site.gate.touch()
    assert worker.wait(END_SECONDS) == 0
    assert summary(site) == numbers
    assert site.depth() == numbers["requeued"]
    # The next start removes the summary.
    again = site.worker(queues="other")
    assert not (site.run("r1") / "one.json").exists()
    assert site.stop(again) == 0
    assert summary(site) == {"held": 0, "finished": 0, "requeued": 0}


def test_eta_tasks_are_requeued_at_once(site: Site, broker: Broker) -> None:
    """By a worker that a deployment stops: not when its longest task has ended.

    Celery 5.4 has dropped its timers by then, so there they are requeued when the worker ends.
    """
    old = site.worker(release="r0")
    running = site.send()
    # The old worker must be told to stop before this is due, and on a busy machine a question takes long.
    later = site.send(countdown=30)
    wait_until(lambda: site.lines("START") == [running] and site.output(old).count("received") == 2)
    site.ask(["consumers", "sample", "cancel", "default", f"one.r0@{HOST}"])
    wait_until(lambda: broker.admin.info("clients")["blocked_clients"] == 0)
    old.terminate()
    new = site.worker(queues="default,other")
    wait_until(lambda: f"[{later}] received" in site.output(new))
    assert old.poll() is None
    wait_until(lambda: site.lines("START") == [running, later])
    assert old.poll() is None
    site.gate.touch()
    assert old.wait(END_SECONDS) == 0
    wait_until(lambda: sorted(site.lines("END")) == sorted([running, later]))
    assert summary(site, "r0") == {"held": 2, "finished": 1, "requeued": 1}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_that_end_during_the_stop_are_not_requeued(site: Site, broker: Broker, pool: str) -> None:
    old = site.worker(release="r0", pool=pool)
    sent = [site.send(), site.send()]
    wait_until(lambda: sorted(site.lines("START")) == sorted(sent))
    site.ask(["consumers", "sample", "cancel", "default", f"one.r0@{HOST}"])
    wait_until(lambda: broker.admin.info("clients")["blocked_clients"] == 0)
    site.gate.touch()
    wait_until(lambda: site.lines("END"))
    assert site.stop(old) == 0
    numbers = summary(site, "r0")
    # If both had ended before, it held none.
    assert (numbers["finished"], numbers["requeued"]) == (numbers["held"], 0)
    assert site.depth() == 0


def send_to_stopped_child(site: Site, worker: subprocess.Popen) -> tuple[str, int]:
    """Send a task that the only child receives but does not begin; return the IDs of the task and of the process."""
    # A child can be given a task when its worker has read that it ended the previous one.
    site.send("sample.tick")
    wait_until(lambda: "succeeded" in site.output(worker) and not site.broker.admin.keys("unacked:*"))
    (child,) = map(int, children(worker))
    os.kill(child, signal.SIGSTOP)
    sent = site.send()
    wait_until(lambda: f"[{sent}] received" in site.output(worker))
    # A worker that answers has written to its children what it received before.
    wait_until(lambda: site.client.control.ping(timeout=1))
    return sent, child


@pytest.mark.core
def test_task_that_a_child_begins_during_the_stop_runs_once(site: Site, broker: Broker) -> None:
    """Until the child's confirmation is read, Celery takes the task for one that was not begun."""
    old = site.worker(release="r0", concurrency=1)
    sent, child = send_to_stopped_child(site, old)
    begin_stop(site, old)
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: site.lines("START") == [sent])
    site.gate.touch()
    assert old.wait(END_SECONDS) == 0
    assert site.lines("END") == [sent]
    assert site.depth() == 0
    assert summary(site, "r0") == {"held": 1, "finished": 1, "requeued": 0}


@pytest.mark.core
def test_task_that_a_child_begins_without_redis_runs_once(site: Site, broker: Broker) -> None:
    worker = site.worker(concurrency=1)
    sent, child = send_to_stopped_child(site, worker)
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: site.lines("START") == [sent])
    site.gate.touch()
    last = site.send()
    wait_until(lambda: set(site.lines("END")) == {sent, last})
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert site.lines("START") == [sent, last]


# --- The process ---------------------------------------------------------------------------------------------------


def test_next_release_knows_revoked_tasks(site: Site, broker: Broker) -> None:
    old = site.worker(release="r0")
    sent = site.send(countdown=3600)
    wait_until(lambda: f"[{sent}] received" in site.output(old))
    site.client.control.revoke(sent)
    wait_until(lambda: f"flagged as revoked: {sent}" in site.output(old))
    new = site.worker()
    # It waits a second for the answer of the old one, which takes longer on a busy machine.
    for _ in range(5):
        if "mingle: all alone" not in site.output(new):
            break
        site.stop(new)
        new = site.worker()
    site.stop(old)
    wait_until(lambda: f"Discarding revoked task: sample.hold[{sent}]" in site.output(new))
    assert site.lines("START") == []


def test_results_and_chords_in_the_brokers_redis(site: Site, broker: Broker) -> None:
    """Many projects keep them there; the users of the role `redis` may do it."""
    site.worker(BACKEND=broker.url)
    client = Celery(broker=broker.url, backend=broker.url)
    client.conf.task_default_queue = "default"
    parts = [client.signature("sample.double", (number,)) for number in range(4)]
    assert chord(parts, app=client)(client.signature("sample.total")).get(timeout=240) == 12


@pytest.mark.core
def test_worker_waits_for_redis(site: Site, stopped_broker: Broker) -> None:
    worker = site.worker(wait=False)
    wait_until(lambda: "Cannot connect" in site.output(worker))
    time.sleep(2)
    stopped_broker.start()
    site.gate.touch()
    sent = site.send()
    wait_until(lambda: site.lines("END") == [sent])
    assert worker.poll() is None


def test_modules_of_the_project_are_found_first(site: Site, broker: Broker) -> None:
    site.worker()
    path = site.client.send_task("sample.path").get(timeout=240)
    assert (path[0], path[-1]) == (str(PROJECT), str(site.library))
    assert not [folder for folder in path if folder.endswith("in_app")]


def test_worker_does_not_load_celerys_command_line(site: Site, broker: Broker) -> None:
    site.worker()
    assert site.client.send_task("sample.modules").get(timeout=240) == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_frozen_worker_no_longer_notifies_systemd(site: Site, broker: Broker, pool: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address := str(site.folder / "notify"))
        systemd.settimeout(60)
        worker = site.worker(pool=pool, NOTIFY_SOCKET=address, WATCHDOG_USEC="1000000")
        assert systemd.recv(100) == b"WATCHDOG=1"
        os.kill(worker.pid, signal.SIGSTOP)
        systemd.settimeout(2)
        with suppress(TimeoutError):
            for _ in range(100):  # What it has sent before.
                systemd.recv(100)
            pytest.fail("A frozen worker notifies systemd.")
        os.kill(worker.pid, signal.SIGCONT)
        systemd.settimeout(60)
        assert systemd.recv(100) == b"WATCHDOG=1"
