"""requeue.py: messages of killed workers, lost connections, what ran and what did not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import END_SECONDS, HOST, Broker, Site, children, wait_until


def add_unacknowledged(site: Site, broker: Broker, slot: str, number: int, delivered: float | None = None) -> None:
    """Put messages into a worker's slot, as if they had been delivered to it at that time."""
    client = site.client
    for _ in range(number):
        tag = client.send_task("sample.tick").id
        raw = json.loads(broker.admin.rpop("default"))
        broker.admin.hset(f"unacked:{slot}", tag, json.dumps([raw, "", "default"]))
        broker.admin.zadd(f"unacked_index:{slot}", {tag: delivered or time.time()})
    broker.admin.sadd("unacked_slots", slot)


def restart(site: Site, broker: Broker, worker: subprocess.Popen) -> None:
    """Restart Redis, and wait until the worker has lost its connection and has connected again."""
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])


# --- Killed workers ------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_tasks_of_a_killed_worker_run_again(site: Site, broker: Broker) -> None:
    worker = site.worker()
    sent = {site.send(), site.send()}
    wait_until(lambda: set(site.lines("START")) == sent)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    again = site.worker()
    assert "Requeued 2 unacknowledged messages." in site.output(again)
    wait_until(lambda: len(site.lines("START")) == 4)
    site.gate.touch()
    wait_until(lambda: set(site.lines("END")) == sent)
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)


@pytest.mark.core
def test_task_of_a_killed_child_runs_again(site: Site, broker: Broker) -> None:
    worker = site.worker(concurrency=1)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    (child,) = map(int, children(worker))
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: site.lines("START") == [sent, sent])
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert worker.poll() is None


def test_another_worker_of_the_host_requeues_too(site: Site, broker: Broker) -> None:
    dead = site.worker("one", release="r0")
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    site.kill(dead)
    site.worker("two")
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])
    assert site.slots() == {f"two.r1@{HOST}"}


@pytest.mark.core
def test_messages_of_a_live_worker_stay(site: Site, broker: Broker) -> None:
    site.worker("one", release="r0")
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    site.worker("two")
    assert site.ask(["requeue_unacknowledged", "sample"]) == {"requeued": 0, "known": {}}
    assert site.slots() == {f"one.r0@{HOST}", f"two.r1@{HOST}"}
    time.sleep(1)
    assert site.lines("START") == [sent]
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])


def test_a_worker_does_not_start_twice(site: Site, broker: Broker) -> None:
    site.change("worker", "LOCK_SECONDS = 10", "LOCK_SECONDS = 1")
    site.worker()
    second = site.worker(wait=False)
    assert second.wait(END_SECONDS) == 1
    assert f"The worker one.r1@{HOST} is already running." in site.output(second)


def test_messages_of_other_hosts_are_requeued_after_the_visibility_timeout(site: Site, broker: Broker) -> None:
    add_unacknowledged(site, broker, "one.r1@elsewhere", 2)
    add_unacknowledged(site, broker, "one.r1@elsewhere", 3, delivered=time.time() - 43300)
    assert site.ask(["requeue_unacknowledged", "sample"])["requeued"] == 3
    assert (site.depth(), broker.admin.hlen("unacked:one.r1@elsewhere")) == (3, 2)
    assert site.slots() == {"one.r1@elsewhere"}


@pytest.mark.core
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_living_worker_keeps_its_messages_beyond_the_visibility_timeout(
    site: Site, broker: Broker, pool: str
) -> None:
    """A task that runs, and one that waits for its ETA. The project has kombu look for such messages every 10 s."""
    worker = site.worker(concurrency=2, pool=pool, VISIBILITY="3")
    running, waiting = site.send(), site.send("sample.noop", countdown=15)
    wait_until(lambda: site.lines("START") == [running])
    wait_until(lambda: site.lines("END") == [waiting])
    assert site.lines("START") == [running]
    site.gate.touch()
    wait_until(lambda: set(site.lines("END")) == {running, waiting})
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert (len(site.lines("START")), len(site.lines("END"))) == (1, 2)
    assert site.stop(worker) == 0


def test_messages_of_a_living_worker_of_another_host_stay(site: Site, broker: Broker) -> None:
    site.change("worker", "REQUEUE_SECONDS = 60", "REQUEUE_SECONDS = 1")
    worker = site.worker(queues="other")
    mine = f"worker-alive:one.r1@{HOST}"
    first = broker.admin.get(mine)
    wait_until(lambda: broker.admin.get(mine) != first)
    assert broker.admin.ttl(mine) > 40_000
    add_unacknowledged(site, broker, "one.r1@elsewhere", 2, delivered=time.time() - 43300)
    broker.admin.set("worker-alive:one.r1@elsewhere", "1", ex=600)
    assert site.ask(["requeue_unacknowledged", "sample"])["requeued"] == 0
    broker.admin.delete("worker-alive:one.r1@elsewhere")
    wait_until(lambda: "Requeued 2 unacknowledged messages." in site.output(worker))


def test_concurrent_processes_requeue_each_message_once(site: Site, broker: Broker) -> None:
    add_unacknowledged(site, broker, f"one.gone@{HOST}", 300)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: site.ask(["requeue_unacknowledged", "sample"]), range(3)))
    assert sum(answer["requeued"] for answer in answers) == 300
    assert site.depth() == 300
    assert site.slots() == set()


def test_a_running_worker_requeues_every_minute(site: Site, broker: Broker) -> None:
    site.change("worker", "REQUEUE_SECONDS = 60", "REQUEUE_SECONDS = 1")
    worker = site.worker(queues="other")
    add_unacknowledged(site, broker, "one.r1@elsewhere", 2, delivered=time.time() - 43300)
    wait_until(lambda: "Requeued 2 unacknowledged messages." in site.output(worker))
    # It still does so on its next connection.
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    add_unacknowledged(site, broker, f"one.gone@{HOST}", 3)
    wait_until(lambda: "Requeued 3 unacknowledged messages." in site.output(worker))
    add_unacknowledged(site, broker, f"one.gone@{HOST}", 4)
    wait_until(lambda: "Requeued 4 unacknowledged messages." in site.output(worker))


# --- Restarts of Redis ---------------------------------------------------------------------------------------------


@pytest.mark.core
def test_eta_tasks_survive_a_restart_of_redis(site: Site, broker: Broker) -> None:
    worker = site.worker()
    running = site.send()
    waiting = site.send(countdown=25)
    wait_until(lambda: site.lines("START") == [running])
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 2)
    restart(site, broker, worker)
    wait_until(lambda: "Requeued 1 unacknowledged messages." in site.output(worker))
    # The worker takes it again, and it waits again. The running task was not requeued.
    wait_until(lambda: site.output(worker).count(f"[{waiting}] received") == 2)
    wait_until(lambda: site.lines("START") == [running, waiting])
    site.gate.touch()
    wait_until(lambda: sorted(site.lines("END")) == sorted([running, waiting]))
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert (worker.poll(), site.lines("START")) == (None, [running, waiting])


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads"])
def test_prefetched_tasks_run_once_after_a_restart_of_redis(site: Site, broker: Broker, pool: str) -> None:
    """A prefork pool forgets them, and they are requeued; threads still run them."""
    worker = site.worker(concurrency=1, pool=pool, PREFETCH="3")
    sent = [site.send() for _ in range(3)]
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 3)
    wait_until(lambda: site.output(worker).count("received") == 3)
    restart(site, broker, worker)
    last = site.send()
    wait_until(lambda: site.output(worker).count("received") >= 4 or broker.admin.llen("default"))
    site.gate.touch()
    wait_until(lambda: set(site.lines("END")) == {*sent, last})
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert sorted(site.lines("START")) == sorted([*sent, last])


def assert_acknowledged_when_redis_returns(site: Site, broker: Broker, worker: subprocess.Popen, sent: str) -> None:
    """Start Redis, and assert that the task that has ended does not run again, and a new one does."""
    broker.start()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])
    last = site.send()
    wait_until(lambda: last in site.lines("END"))
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert site.lines("START") == [sent, last]


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads"])
def test_task_that_ends_without_redis_is_acknowledged_later(site: Site, broker: Broker, pool: str) -> None:
    worker = site.worker(pool=pool)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    site.gate.touch()
    wait_until(lambda: f"[{sent}] succeeded" in site.output(worker))
    assert_acknowledged_when_redis_returns(site, broker, worker, sent)
    assert worker.poll() is None


@pytest.mark.core
def test_thread_that_ends_while_the_lost_connection_is_noticed(site: Site, broker: Broker) -> None:
    """Its acknowledgement waits for the event loop, which runs again after messages were requeued."""
    worker = site.worker(pool="threads", WORKER_CONSUMER="sample.slow_loss:Consumer")
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    broker.stop()
    wait_until(lambda: f"[{sent}] succeeded" in site.output(worker))
    assert_acknowledged_when_redis_returns(site, broker, worker, sent)


@pytest.mark.core
def test_task_that_ends_after_a_restart_of_redis_is_acknowledged(site: Site, broker: Broker) -> None:
    """Celery 5.7 would end the worker here."""
    worker = site.worker()
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    restart(site, broker, worker)
    site.gate.touch()
    wait_until(lambda: f"[{sent}] succeeded" in site.output(worker))
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert (worker.poll(), site.lines("START")) == (None, [sent])


@pytest.mark.core
def test_a_message_that_redis_refuses_to_record_is_not_lost(site: Site, broker: Broker) -> None:
    """Redis answers a waiting worker with the message, and then its memory or its disk is full."""
    worker = site.worker()
    wait_until(lambda: broker.admin.info("clients")["blocked_clients"] == 1)
    os.kill(worker.pid, signal.SIGSTOP)
    sent = [site.send(), site.send()]
    broker.admin.config_set("maxmemory", 1)
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: "Redis refuses to take 1 messages back" in site.output(worker))
    broker.admin.config_set("maxmemory", 0)
    wait_until(lambda: sorted(site.lines("START")) == sorted(sent))
    site.gate.touch()
    wait_until(lambda: not broker.admin.keys("unacked:*"))
    assert sorted(site.lines("END")) == sorted(sent)
    assert worker.poll() is None


def test_a_task_whose_acknowledgement_redis_refuses_runs_once(site: Site, broker: Broker) -> None:
    """A full disk makes it refuse every command that writes."""
    worker = site.worker()
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    broker.admin.execute_command("ACL", "SETUSER", "app", "-zrem")
    site.gate.touch()
    wait_until(lambda: "no permissions" in site.output(worker))
    broker.admin.execute_command("ACL", "SETUSER", "app", "+zrem")
    wait_until(lambda: not broker.admin.keys("unacked:*"))
    last = site.send()
    wait_until(lambda: site.lines("END") == [sent, last])
    assert worker.poll() is None
    broker.admin.acl_log_reset()
