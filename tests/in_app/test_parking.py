"""parking.py: tasks that a release does not know."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import HOST, Broker, Site, wait_until


@pytest.mark.core
def test_unknown_tasks_are_parked_until_a_worker_knows_them(site: Site, broker: Broker) -> None:
    worker = site.worker(concurrency=1)
    unknown = [site.send("sample.later") for _ in range(5)]
    site.gate.touch()
    known = site.send()
    wait_until(lambda: site.lines("END") == [known])
    for task in unknown:
        line = f"Parked the message {task}: this release does not know its task sample.later."
        assert line in site.output(worker)
        assert not list(site.results.glob(f"*{task}"))
    assert "Traceback" not in site.output(worker)
    assert site.ask(["parked", "sample"]) == {"tasks": {"sample.later": 5}, "others": 0}
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)

    assert site.stop(worker) == 0
    later = site.worker(concurrency=1, release="r2", LATER="1")
    wait_until(lambda: len(site.lines("END")) == 6)
    assert "Requeued 5 parked messages of the task sample.later." in site.output(later)
    assert site.lines("END")[1:] == unknown
    assert site.ask(["parked", "sample"]) == {"tasks": {}, "others": 0}


def test_a_deployment_requeues_what_its_release_knows(site: Site, broker: Broker) -> None:
    worker = site.worker()
    for _ in range(3):
        site.send("sample.later")
    wait_until(lambda: site.ask(["parked", "sample"]) == {"tasks": {"sample.later": 3}, "others": 0})
    site.stop(worker)
    assert site.ask(["requeue_unacknowledged", "sample"])["known"] == {}
    known = site.ask(["requeue_unacknowledged", "sample"], LATER="1")
    assert known == {"requeued": 0, "known": {"sample.later": 3}}
    assert site.depth() == 3


def park(site: Site, broker: Broker, number: int, key: str = "celery-parked") -> list[str]:
    """Park messages, two of three of a later release; return the IDs of those, oldest first."""
    names = ["sample.later", "sample.gone", "sample.later"] * (number // 3)
    with site.client.connection_for_write() as connection:
        ids = [site.client.send_task(name, connection=connection).id for name in names]
    for raw in reversed(broker.admin.lrange("default", 0, -1)):
        broker.admin.rpush(key, json.dumps([json.loads(raw), "", "default"]))
    broker.admin.delete("default")
    return [task_id for task_id, name in zip(ids, names, strict=True) if name == "sample.later"]


def queued(broker: Broker) -> list[str]:
    """Return the IDs of the tasks in the queue, the next to run first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(broker.admin.lrange("default", 0, -1))]


@pytest.mark.parametrize("number", [3, 600, 603])
def test_a_long_list_is_read_in_pages(site: Site, broker: Broker, number: int) -> None:
    sent = park(site, broker, number)
    third = number // 3
    broker.admin.config_set("slowlog-max-len", 10_000)
    broker.admin.config_set("slowlog-log-slower-than", 0)
    broker.admin.slowlog_reset()
    assert site.ask(["parked", "sample"]) == {"tasks": {"sample.gone": third, "sample.later": 2 * third}, "others": 0}
    answer = site.ask(["requeue_unacknowledged", "sample"], LATER="1")
    assert answer["known"] == {"sample.later": 2 * third}
    broker.admin.config_set("slowlog-log-slower-than", -1)
    reads = [line["command"].split() for line in broker.admin.slowlog_get(10_000)]
    spans = [int(words[3]) - int(words[2]) + 1 for words in reads if words[0] == b"LRANGE"]
    assert spans
    assert set(spans) == {200}
    assert queued(broker) == sent
    assert site.ask(["parked", "sample"]) == {"tasks": {"sample.gone": third}, "others": 0}


def test_concurrent_processes_requeue_each_parked_message_once(site: Site, broker: Broker) -> None:
    """By three at once, while more messages are parked."""
    sent = park(site, broker, 900)
    more = broker.admin.lrange("celery-parked", 1, 1)[0].replace(b"sample.gone", b"sample.lost")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(site.ask, ["requeue_unacknowledged", "sample"], LATER="1") for _ in range(3)]
        added = 0
        while not all(one.done() for one in asked):
            # A limited number: each one has the transactions of the others repeated.
            if added < 100:
                broker.admin.rpush("celery-parked", more)
                added += 1
            time.sleep(0.01)
    assert sum(one.result()["known"].get("sample.later", 0) for one in asked) == 600
    assert sorted(queued(broker)) == sorted(sent)
    assert broker.admin.llen("celery-parked") == 300 + added


def test_messages_parked_before_0_1_0_are_kept(site: Site, broker: Broker) -> None:
    sent = park(site, broker, 6, key="celery-set-aside")
    site.worker(concurrency=1, LATER="1")
    wait_until(lambda: site.lines("END") == sent)
    assert not broker.admin.exists("celery-set-aside")
    assert site.ask(["parked", "sample"]) == {"tasks": {"sample.gone": 2}, "others": 0}


def test_a_deployment_adopts_what_old_workers_have_parked_meanwhile(site: Site, broker: Broker) -> None:
    park(site, broker, 6, key="celery-set-aside")
    assert site.ask(["requeue_unacknowledged", "sample"], LATER="1")["known"] == {"sample.later": 4}
    assert not broker.admin.exists("celery-set-aside")
