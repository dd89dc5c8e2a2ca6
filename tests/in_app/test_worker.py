"""hostctl/in_app/celery_runner.py's worker: what it holds is lost by nobody and run by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord
from conftest import HOST, Broker, Site, wait_until


def hold_tasks(site: Site, broker: Broker, slot: str, number: int, taken: float | None = None) -> None:
    """As if a worker held tasks, taken at that time."""
    for _ in range(number):
        tag = site.send("sample.tick")
        raw = json.loads(broker.admin.rpop("default"))
        broker.admin.hset(f"unacked:{slot}", tag, json.dumps([raw, "", "default"]))
        broker.admin.zadd(f"unacked_index:{slot}", {tag: taken or time.time()})
    broker.admin.sadd("unacked_slots", slot)


def children(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def tell_to_stop(site: Site, worker: subprocess.Popen) -> None:
    """Tell it, and come back when it only waits for what runs."""
    worker.terminate()
    wait_until(lambda: "Warm shutdown" in site.output(worker))
    # The worker looks once a second whether it shall stop.
    time.sleep(3)


# --- Killed workers ------------------------------------------------------------------------------------------------


def test_what_a_killed_worker_held_runs_again(site: Site, broker: Broker) -> None:
    worker = site.worker()
    sent = {site.send(), site.send()}
    wait_until(lambda: set(site.lines("START")) == sent)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    again = site.worker()
    assert "Put back into their queues 2 tasks that dead workers held." in site.output(again)
    wait_until(lambda: len(site.lines("START")) == 4)
    site.gate.touch()
    wait_until(lambda: set(site.lines("END")) == sent)
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)


def test_another_worker_of_the_host_puts_back_too(site: Site, broker: Broker) -> None:
    dead = site.worker("one", release="r0")
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    site.kill(dead)
    site.worker("two")
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])
    assert site.slots() == {f"two.r1@{HOST}"}


def test_what_a_live_worker_holds_is_left_to_it(site: Site, broker: Broker) -> None:
    site.worker("one", release="r0")
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    site.worker("two")
    assert site.ask(["rescue", "sample"]) == {"restored": 0, "put_back": {}}
    assert site.slots() == {f"one.r0@{HOST}", f"two.r1@{HOST}"}
    time.sleep(1)
    assert site.lines("START") == [sent]
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])


def test_a_worker_does_not_start_twice(site: Site, broker: Broker) -> None:
    program = site.library / "hostctl/in_app/celery_runner.py"
    program.write_text(program.read_text().replace("LOCK_PATIENCE = 10", "LOCK_PATIENCE = 1"))
    site.worker()
    second = site.worker(wait=False)
    assert second.wait(30) == 1
    assert f"The worker one.r1@{HOST} runs already." in site.output(second)


def test_of_other_hosts_only_what_is_too_old(site: Site, broker: Broker) -> None:
    hold_tasks(site, broker, "one.r1@elsewhere", 2)
    hold_tasks(site, broker, "one.r1@elsewhere", 3, taken=time.time() - 43300)
    assert site.ask(["rescue", "sample"])["restored"] == 3
    assert (site.depth(), broker.admin.hlen("unacked:one.r1@elsewhere")) == (3, 2)
    assert site.slots() == {"one.r1@elsewhere"}


def test_two_rescuers_put_back_once(site: Site, broker: Broker) -> None:
    hold_tasks(site, broker, f"one.gone@{HOST}", 300)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: site.ask(["rescue", "sample"]), range(3)))
    assert sum(answer["restored"] for answer in answers) == 300
    assert site.depth() == 300
    assert site.slots() == set()


def test_tasks_that_wait_for_their_time_outlive_a_restart_of_redis(site: Site, broker: Broker) -> None:
    worker = site.worker()
    running = site.send()
    waiting = site.send(countdown=3600)
    wait_until(lambda: site.lines("START") == [running])
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 2)
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    wait_until(lambda: "Put back into their queues 1 tasks that dead" in site.output(worker))
    # It is taken again and waits again; what ran all the while was not put back.
    wait_until(lambda: site.output(worker).count(f"[{waiting}] received") == 2)
    assert site.lines("START") == [running]
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [running])


def test_a_worker_keeps_looking_for_what_others_left(site: Site, broker: Broker) -> None:
    program = site.library / "hostctl/in_app/celery_runner.py"
    program.write_text(program.read_text().replace("LOOK_SECONDS = 60", "LOOK_SECONDS = 1"))
    worker = site.worker(queues="other")
    hold_tasks(site, broker, "one.r1@elsewhere", 2, taken=time.time() - 43300)
    wait_until(lambda: "Put back into their queues 2 tasks that dead workers held." in site.output(worker))
    # With the next connection it looks on.
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    hold_tasks(site, broker, f"one.gone@{HOST}", 3)
    wait_until(lambda: "Put back into their queues 3 tasks that dead workers held." in site.output(worker))
    hold_tasks(site, broker, f"one.gone@{HOST}", 4)
    wait_until(lambda: "Put back into their queues 4 tasks that dead workers held." in site.output(worker))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_waits_in_the_worker_runs_once_after_a_restart_of_redis(site: Site, broker: Broker, pool: str) -> None:
    """Processes forget it, and it is put back; threads do not."""
    worker = site.worker(concurrency=1, pool=pool, PREFETCH="3")
    sent = [site.send() for _ in range(3)]
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 3)
    wait_until(lambda: site.output(worker).count("received") == 3)
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])
    last = site.send()
    wait_until(lambda: site.output(worker).count("received") >= 4 or broker.admin.llen("default"))
    site.gate.touch()
    wait_until(lambda: set(site.lines("END")) == {*sent, last})
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert sorted(site.lines("START")) == sorted([*sent, last])


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_ends_while_redis_is_away_has_ended(site: Site, broker: Broker, pool: str) -> None:
    worker = site.worker(pool=pool)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    site.gate.touch()
    wait_until(lambda: f"[{sent}] succeeded" in site.output(worker))
    broker.start()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])
    last = site.send()
    wait_until(lambda: last in site.lines("END"))
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)
    assert site.lines("START") == [sent, last]


# --- Unknown tasks -------------------------------------------------------------------------------------------------


def test_unknown_tasks_are_set_aside_until_they_are_known(site: Site, broker: Broker) -> None:
    worker = site.worker(concurrency=1)
    unknown = [site.send("sample.later") for _ in range(5)]
    site.gate.touch()
    known = site.send()
    wait_until(lambda: site.lines("END") == [known])
    for task in unknown:
        assert f"Set aside the task sample.later ({task}): this release does not know it." in site.output(worker)
        assert not list(site.results.glob(f"*{task}"))
    assert "Traceback" not in site.output(worker)
    assert site.ask(["set_aside", "sample"]) == {"tasks": {"sample.later": 5}}
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 0)

    assert site.stop(worker) == 0
    later = site.worker(concurrency=1, release="r2", LATER="1")
    wait_until(lambda: len(site.lines("END")) == 6)
    assert "Put back into their queues 5 tasks called sample.later that were set aside." in site.output(later)
    assert site.lines("END")[1:] == unknown
    assert site.ask(["set_aside", "sample"]) == {"tasks": {}}


def test_a_rollout_puts_back_what_its_release_knows(site: Site, broker: Broker) -> None:
    worker = site.worker()
    for _ in range(3):
        site.send("sample.later")
    wait_until(lambda: site.ask(["set_aside", "sample"]) == {"tasks": {"sample.later": 3}})
    site.stop(worker)
    assert site.ask(["rescue", "sample"])["put_back"] == {}
    assert site.ask(["rescue", "sample"], LATER="1") == {"restored": 0, "put_back": {"sample.later": 3}}
    assert site.depth() == 3


def put_aside(site: Site, broker: Broker, number: int) -> list[str]:
    """As if workers had set tasks aside, two of three of a later release; name those, the oldest first."""
    names = ["sample.later", "sample.gone", "sample.later"] * (number // 3)
    with site.client.connection_for_write() as connection:
        tags = [site.client.send_task(name, connection=connection).id for name in names]
    for raw in reversed(broker.admin.lrange("default", 0, -1)):
        broker.admin.rpush("celery-set-aside", json.dumps([json.loads(raw), "", "default"]))
    broker.admin.delete("default")
    return [tag for tag, name in zip(tags, names, strict=True) if name == "sample.later"]


def waiting(broker: Broker) -> list[str]:
    """The ids of the tasks in the queue, the next to run first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(broker.admin.lrange("default", 0, -1))]


@pytest.mark.parametrize("number", [3, 600, 603])
def test_a_long_list_of_unknown_tasks_is_read_in_parts(site: Site, broker: Broker, number: int) -> None:
    sent = put_aside(site, broker, number)
    third = number // 3
    broker.admin.config_set("slowlog-max-len", 10_000)
    broker.admin.config_set("slowlog-log-slower-than", 0)
    assert site.ask(["set_aside", "sample"]) == {"tasks": {"sample.gone": third, "sample.later": 2 * third}}
    assert site.ask(["rescue", "sample"], LATER="1")["put_back"] == {"sample.later": 2 * third}
    broker.admin.config_set("slowlog-log-slower-than", -1)
    reads = [line["command"].split() for line in broker.admin.slowlog_get(10_000)]
    spans = [int(words[3]) - int(words[2]) + 1 for words in reads if words[0] == b"LRANGE"]
    assert spans
    assert set(spans) == {200}
    assert waiting(broker) == sent
    assert site.ask(["set_aside", "sample"]) == {"tasks": {"sample.gone": third}}


def test_what_was_set_aside_is_put_back_once(site: Site, broker: Broker) -> None:
    """By three at once, while more is set aside."""
    sent = put_aside(site, broker, 900)
    more = broker.admin.lrange("celery-set-aside", 1, 1)[0].replace(b"sample.gone", b"sample.lost")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(site.ask, ["rescue", "sample"], LATER="1") for _ in range(3)]
        added = 0
        while not all(one.done() for one in asked):
            # Not for ever: each addition has the others try again.
            if added < 100:
                broker.admin.rpush("celery-set-aside", more)
                added += 1
            time.sleep(0.01)
    assert sum(one.result()["put_back"].get("sample.later", 0) for one in asked) == 600
    assert sorted(waiting(broker)) == sorted(sent)
    assert broker.admin.llen("celery-set-aside") == 300 + added


# --- Probe, consumers, account -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_probe_comes_back(site: Site, broker: Broker, pool: str) -> None:
    site.worker(queues="default,other", pool=pool)
    answers = site.ask(
        ["ping", "sample", 10, f"one.r1@{HOST}"],
        ["probe", "sample", 10, "r1", {}, "default", "other"],
        ["probe", "sample", 3, "r2", {}, "default", "ticks"],
    )
    assert answers == [
        {"silent": []},
        {"silent": [], "other": {}, "busy": []},
        {"silent": ["ticks"], "other": {"default": "r1"}, "busy": []},
    ]
    assert list(site.results.iterdir()) == []


def test_a_probe_behind_a_long_task_finds_the_queue_busy(site: Site, broker: Broker) -> None:
    site.worker(concurrency=1)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    answer = site.ask(["probe", "sample", 20, "r1", {f"one.r1@{HOST}": ["default"]}, "default"])
    assert answer == {"silent": [], "other": {}, "busy": ["default"]}
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])


def test_a_worker_gives_up_its_queues_and_takes_them_again(site: Site, broker: Broker) -> None:
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
    # It still takes them when the connection was lost in between.
    broker.stop()
    wait_until(lambda: "Connection to broker lost" in site.output(worker))
    broker.start()
    sent += [site.send(), site.send(queue="other")]
    wait_until(lambda: set(site.lines("END")) == set(sent))


@pytest.mark.parametrize(
    ("pool", "numbers"),
    [
        ("prefork", {"held": 3, "finished": 1, "handed_back": 2}),
        # Threads begin all that they were given.
        ("threads", {"held": 3, "finished": 2, "handed_back": 1}),
    ],
)
def test_a_worker_that_stops_says_what_became_of_its_tasks(
    site: Site, broker: Broker, pool: str, numbers: dict[str, Any]
) -> None:
    worker = site.worker(concurrency=1, pool=pool, PREFETCH="3")
    site.send()
    site.send()
    site.send(countdown=3600)
    wait_until(lambda: site.lines("START") and broker.admin.hlen(f"unacked:one.r1@{HOST}") == 3)
    wait_until(lambda: site.output(worker).count("received") == 3)
    tell_to_stop(site, worker)
    site.gate.touch()
    assert worker.wait(20) == 0
    assert json.loads((site.run("r1") / "one.json").read_text()) == numbers
    assert site.depth() == numbers["handed_back"]
    # The account is of one life only.
    again = site.worker(queues="other")
    assert not (site.run("r1") / "one.json").exists()
    assert site.stop(again) == 0
    assert json.loads((site.run("r1") / "one.json").read_text()) == {"held": 0, "finished": 0, "handed_back": 0}


def test_what_waits_for_its_time_is_given_back_at_once(site: Site, broker: Broker) -> None:
    """By a worker that a rollout stops: not when its longest task has ended."""
    old = site.worker(release="r0")
    running = site.send()
    later = site.send(countdown=25)
    wait_until(lambda: site.lines("START") == [running] and site.output(old).count("received") == 2)
    site.ask(["consumers", "sample", "cancel", "default", f"one.r0@{HOST}"])
    wait_until(lambda: broker.admin.info("clients")["blocked_clients"] == 0)
    old.terminate()
    new = site.worker(queues="default,other")
    wait_until(lambda: f"[{later}] received" in site.output(new))
    assert old.poll() is None
    wait_until(lambda: site.lines("START") == [running, later], 50)
    assert old.poll() is None
    site.gate.touch()
    assert old.wait(20) == 0
    wait_until(lambda: sorted(site.lines("END")) == sorted([running, later]))
    assert json.loads((site.run("r0") / "one.json").read_text()) == {"held": 2, "finished": 1, "handed_back": 1}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_ends_while_the_worker_is_told_to_stop_has_ended(site: Site, broker: Broker, pool: str) -> None:
    old = site.worker(release="r0", pool=pool)
    sent = [site.send(), site.send()]
    wait_until(lambda: sorted(site.lines("START")) == sorted(sent))
    site.ask(["consumers", "sample", "cancel", "default", f"one.r0@{HOST}"])
    wait_until(lambda: broker.admin.info("clients")["blocked_clients"] == 0)
    site.gate.touch()
    wait_until(lambda: site.lines("END"))
    assert site.stop(old) == 0
    numbers = json.loads((site.run("r0") / "one.json").read_text())
    # Where both had ended before, it held none.
    assert (numbers["finished"], numbers["handed_back"]) == (numbers["held"], 0)
    assert site.depth() == 0


def hand_to_a_stopped_child(site: Site, worker: subprocess.Popen) -> tuple[str, int]:
    """A task that the only child of a worker was given and has not begun; its id, and the child's process ID."""
    # A child can be given a task when its worker has read that it did the one before.
    site.send("sample.tick")
    wait_until(lambda: "succeeded" in site.output(worker) and not site.broker.admin.keys("unacked:*"))
    (child,) = map(int, children(worker))
    os.kill(child, signal.SIGSTOP)
    sent = site.send()
    wait_until(lambda: f"[{sent}] received" in site.output(worker))
    # What answers has written to its children what it received before.
    wait_until(lambda: site.client.control.ping(timeout=1))
    return sent, child


def test_what_a_child_begins_while_its_worker_is_told_to_stop_runs_once(site: Site, broker: Broker) -> None:
    """Celery takes a task for one that was not begun until the child's own word of it has been read."""
    old = site.worker(release="r0", concurrency=1)
    sent, child = hand_to_a_stopped_child(site, old)
    tell_to_stop(site, old)
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: site.lines("START") == [sent])
    site.gate.touch()
    assert old.wait(20) == 0
    assert site.lines("END") == [sent]
    assert site.depth() == 0
    assert json.loads((site.run("r0") / "one.json").read_text()) == {"held": 1, "finished": 1, "handed_back": 0}


def test_what_a_child_begins_while_redis_is_away_runs_once(site: Site, broker: Broker) -> None:
    worker = site.worker(concurrency=1)
    sent, child = hand_to_a_stopped_child(site, worker)
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


def test_what_was_revoked_is_so_for_the_next_release(site: Site, broker: Broker) -> None:
    old = site.worker(release="r0")
    sent = site.send(countdown=3600)
    wait_until(lambda: f"[{sent}] received" in site.output(old))
    site.client.control.revoke(sent)
    wait_until(lambda: f"flagged as revoked: {sent}" in site.output(old))
    new = site.worker()
    # It waits a second for the old one's answer, which takes longer on a machine that is busy.
    for _ in range(5):
        if "mingle: all alone" not in site.output(new):
            break
        site.stop(new)
        new = site.worker()
    site.stop(old)
    wait_until(lambda: f"Discarding revoked task: sample.hold[{sent}]" in site.output(new))
    assert site.lines("START") == []


def test_results_and_chords_in_the_brokers_redis(site: Site, broker: Broker) -> None:
    """As many projects have it; the users of the role `redis` may do it."""
    site.worker(BACKEND=broker.url)
    client = Celery(broker=broker.url, backend=broker.url)
    client.conf.task_default_queue = "default"
    parts = [client.signature("sample.double", (number,)) for number in range(4)]
    assert chord(parts, app=client)(client.signature("sample.total")).get(timeout=60) == 12


# --- The process ---------------------------------------------------------------------------------------------------


def test_a_worker_waits_for_redis(site: Site, stopped_broker: Broker) -> None:
    worker = site.worker(wait=False)
    wait_until(lambda: "Cannot connect" in site.output(worker))
    time.sleep(2)
    stopped_broker.start()
    site.gate.touch()
    sent = site.send()
    wait_until(lambda: site.lines("END") == [sent])
    assert worker.poll() is None


def test_a_worker_does_without_celerys_command_line(site: Site, broker: Broker) -> None:
    site.worker()
    assert site.client.send_task("sample.modules").get(timeout=60) == []
