"""returns.py, reception.py: messages that end a process or cannot be read are parked, and others run."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import poisons
import pytest
from conftest import HOST, Broker, Site, wait_until

SLOT = f"unacked:one.r1@{HOST}"


def parked(broker: Broker) -> list[dict[str, Any]]:
    return [json.loads(line)[0] for line in broker.admin.lrange("celery-parked", 0, -1)]


def reasons(broker: Broker) -> list[str]:
    return [message["hostctl_parked"]["reason"] for message in parked(broker)]


def held(broker: Broker) -> set[str]:
    """Return the IDs of the tasks whose messages the worker holds."""
    return {json.loads(entry)[0]["headers"]["id"] for entry in broker.admin.hvals(SLOT)}


def keep_alive(site: Site, until: Callable[[], Any], **options: Any) -> list[subprocess.Popen]:
    """Restart a worker whenever it has ended, as a process manager does, until a condition is met."""
    workers = [site.worker(wait=False, **options)]

    def met() -> bool:
        if workers[-1].poll() is not None:
            with suppress(ProcessLookupError):
                site.kill(workers[-1])
            workers.append(site.worker(wait=False, **options))
        return until()

    try:
        # Each worker takes a minute to start on a busy machine.
        wait_until(met, 600)
    except AssertionError:
        for worker in workers:
            print(f"--- A worker, ended with {worker.poll()}:\n{site.output(worker)[-3000:]}")
        print("started:", site.lines("START"), "ended:", site.lines("END"))
        raise
    return workers


# --- Messages that cannot be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads"])
def test_what_cannot_be_read_is_parked_and_others_run(site: Site, broker: Broker, pool: str) -> None:
    worker = site.worker(pool=pool)
    good = []
    for name, message in poisons.UNREADABLE.items():
        broker.admin.lpush("default", message)
        good.append(site.send("sample.noop"))
        wait_until(lambda: len(site.lines("END")) == len(good) or worker.poll() is not None)
        assert worker.poll() is None, f"{name}: {site.output(worker)[-3000:]}"
        wait_until(lambda: broker.admin.llen("celery-parked") == len(good))
    for message in poisons.RUN.values():
        broker.admin.lpush("default", message)
    good += [site.send("sample.noop") for _ in range(5)]
    wait_until(lambda: set(good) <= set(site.lines("END")))
    assert worker.poll() is None
    assert broker.admin.llen("celery-parked") == len(poisons.UNREADABLE), reasons(broker)
    # All but the task that waits for the year 9999.
    wait_until(lambda: broker.admin.hlen(SLOT) == 1)
    entries = site.ask(["list_parked", "sample"])["messages"]
    assert {entry["kind"] for entry in entries} == {"unreadable"}
    assert all(entry["id"] and entry["reason"] and entry["queue"] for entry in entries), entries
    # Each is kept as it was.
    raw = {base64.b64decode(message["raw"]) for message in parked(broker) if "raw" in message}
    assert b"not JSON at all" in raw
    assert b"\xff\xfe\x00" in raw


# --- Tasks that end a process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["memory", "exit", "child", pytest.param("segfault", marks=pytest.mark.core)])
def test_a_task_that_ends_its_child_is_parked_after_three_times(site: Site, broker: Broker, how: str) -> None:
    worker = site.worker()
    poison = site.send("sample.poison", args=[how])
    good = [site.send("sample.noop") for _ in range(5)]
    wait_until(lambda: set(site.lines("END")) == set(good))
    wait_until(lambda: broker.admin.llen("celery-parked") == 1)
    assert site.lines("START") == [poison] * 3
    assert f"Parked the message {poison} (task sample.poison): it ended its process 3 times." in site.output(worker)
    good.append(site.send("sample.noop"))
    wait_until(lambda: set(site.lines("END")) == set(good))
    wait_until(lambda: broker.admin.hlen(SLOT) == 0)
    assert worker.poll() is None
    (entry,) = site.ask(["list_parked", "sample"])["messages"]
    assert (entry["id"], entry["task"], entry["queue"]) == (poison, "sample.poison", "default")


@pytest.mark.parametrize("how", ["memory", "exit"])
def test_a_task_that_ends_its_thread_is_parked_after_three_times(site: Site, broker: Broker, how: str) -> None:
    worker = site.worker(pool="threads")
    poison = site.send("sample.poison", args=[how])
    good = [site.send("sample.noop") for _ in range(5)]
    wait_until(lambda: set(site.lines("END")) == set(good))
    wait_until(lambda: broker.admin.llen("celery-parked") == 1)
    assert site.lines("START") == [poison] * 3
    wait_until(lambda: broker.admin.hlen(SLOT) == 0)
    assert worker.poll() is None


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads"])
def test_a_task_that_kills_its_worker_is_parked_after_three_times(site: Site, broker: Broker, pool: str) -> None:
    """What runs beside it, and so returned with it, is not."""
    poison, beside = site.send("sample.poison", args=["main"]), site.send("sample.hold")
    good = [site.send("sample.noop") for _ in range(5)]
    kills = 0

    def met() -> bool:
        nonlocal kills
        # Both have returned twice by then, and run one after the other from now on.
        if site.lines("START").count(poison) >= 2:
            site.gate.touch()
        # A worker that is killed loses the message that it is just taking. It takes none while it holds these two.
        all_held = {poison, beside} <= held(broker)
        if site.lines("START").count(poison) > kills and (all_held or {*good, beside} <= set(site.lines("END"))):
            site.kill_file.touch()
            kills += 1
        return broker.admin.llen("celery-parked") == 1 and {*good, beside} <= set(site.lines("END"))

    workers = keep_alive(site, met, pool=pool)
    assert site.lines("START").count(poison) == 3
    assert len(workers) == 4
    assert [message["headers"]["id"] for message in parked(broker)] == [poison]
    assert reasons(broker) == ["it ended its process 3 times"]
    wait_until(lambda: broker.admin.hlen(SLOT) == 0)


def returned(broker: Broker) -> list[int]:
    """Return how often each waiting message returned."""
    messages = [json.loads(raw)["properties"] for raw in broker.admin.lrange("default", 0, -1)]
    return [properties.get("hostctl_returns", {}).get("count", 0) for properties in messages]


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.core), "threads"])
def test_a_worker_that_is_told_to_stop_counts_no_return(site: Site, broker: Broker, pool: str) -> None:
    """Not even if it is killed before its tasks have ended, as when its stop_timeout is over."""
    for _ in range(4):
        worker = site.worker(pool=pool)
        if not site.lines("START"):
            sent = [site.send() for _ in range(3)]
        wait_until(lambda: broker.admin.hlen(SLOT) == 2)
        worker.terminate()
        wait_until(lambda: broker.admin.hexists(f"unacked_state:one.r1@{HOST}", "stopping"))
        site.kill(worker)
        assert site.ask(["requeue_unacknowledged", "sample"])["requeued"] == 2
        assert returned(broker) == [0, 0, 0]
    worker = site.worker(pool=pool)
    wait_until(lambda: broker.admin.hlen(SLOT) == 2)
    site.gate.touch()
    assert site.stop(worker) == 0
    assert set(returned(broker)) <= {0}
    site.worker(pool=pool)
    wait_until(lambda: set(site.lines("END")) == set(sent))
    assert not broker.admin.exists("celery-parked")


# --- Parked messages -----------------------------------------------------------------------------------------------


def test_parked_messages_are_shown_requeued_and_dropped(site: Site, broker: Broker) -> None:
    worker = site.worker()
    broker.admin.lpush("default", "not JSON at all", poisons.UNREADABLE["body is 42"])
    poison, later = site.send("sample.poison", args=["child"]), site.send("sample.later")
    wait_until(lambda: broker.admin.llen("celery-parked") == 4)
    site.stop(worker)
    entries = {entry["kind"]: entry for entry in site.ask(["list_parked", "sample"])["messages"]}
    assert set(entries) == {"unreadable", "unknown", "returned"}
    assert site.ask(["parked", "sample"]) == {"tasks": {"sample.later": 1}, "others": 3}
    assert site.ask(["show_parked", "sample", "gone"]) == {"messages": []}
    (shown,) = site.ask(["show_parked", "sample", poison])["messages"]
    assert (shown["body"][0], shown["headers"]["task"]) == (["child"], "sample.poison")
    # A release that knows the unknown task requeues it alone.
    assert site.ask(["requeue_unacknowledged", "sample"], LATER="1")["known"] == {"sample.later": 1}
    broker.admin.delete("default")

    good = site.send("sample.noop")
    answer = site.ask(["take_parked", "sample", "requeue", poison])
    assert ([entry["id"] for entry in answer["taken"]], answer["stuck"]) == ([poison], [])
    # Behind the others, with its returns forgotten.
    assert [json.loads(raw)["headers"]["id"] for raw in broker.admin.lrange("default", 0, -1)] == [poison, good]
    assert returned(broker) == [0, 0]
    assert "hostctl_parked" not in broker.admin.lindex("default", 0).decode()
    broker.admin.delete("default")
    assert len(site.ask(["take_parked", "sample", "requeue", ""])["taken"]) == 2
    assert b"not JSON at all" in broker.admin.lrange("default", 0, -1)
    assert broker.admin.llen("default") == 2
    site.worker()
    wait_until(lambda: broker.admin.llen("celery-parked") == 2)
    first, second = [entry["id"] for entry in site.ask(["list_parked", "sample"])["messages"]]
    assert [entry["id"] for entry in site.ask(["take_parked", "sample", "drop", first])["taken"]] == [first]
    assert site.ask(["take_parked", "sample", "drop", first])["taken"] == []
    assert [entry["id"] for entry in site.ask(["take_parked", "sample", "drop", ""])["taken"]] == [second]
    assert not broker.admin.exists("celery-parked")
    assert later not in site.lines("END")


def test_many_parked_messages_are_requeued_in_their_order(site: Site, broker: Broker) -> None:
    with site.client.connection_for_write() as connection:
        sent = [site.client.send_task("sample.noop", connection=connection).id for _ in range(450)]
    for raw in reversed(broker.admin.lrange("default", 0, -1)):
        broker.admin.rpush("celery-parked", json.dumps([json.loads(raw), "", "default"]))
    broker.admin.rpush("celery-parked", json.dumps([json.loads(raw), "gone", "default"]))
    broker.admin.delete("default")
    assert [entry["id"] for entry in site.ask(["list_parked", "sample"])["messages"]][:450] == sent
    answer = site.ask(["take_parked", "sample", "requeue", ""])
    assert ([entry["id"] for entry in answer["taken"]], len(answer["stuck"])) == (sent, 1)
    assert [json.loads(raw)["headers"]["id"] for raw in reversed(broker.admin.lrange("default", 0, -1))] == sent
    assert len(site.ask(["take_parked", "sample", "drop", ""])["taken"]) == 1


# --- Time limits ---------------------------------------------------------------------------------------------------


def test_a_hard_limit_below_the_soft_limit_of_the_settings_is_enforced(site: Site, broker: Broker) -> None:
    worker = site.worker()
    sent = [site.send("sample.limited"), site.send("sample.hold", time_limit=2)]
    for task in sent:
        wait_until(lambda task=task: re.search(rf"Hard time limit \(2.*\) exceeded for .*{task}", site.output(worker)))
    assert "Soft time limit" not in site.output(worker)
    wait_until(lambda: broker.admin.hlen(SLOT) == 0)


@pytest.mark.core
def test_a_child_that_is_killed_while_it_reads_the_count_of_its_results_does_not_block_the_worker(
    site: Site, broker: Broker
) -> None:
    """Its task has ended when its time limit is over: its result is still to be read."""
    worker = site.worker(HOLD_COUNTER="1")
    good = []
    for _ in range(3):
        late = site.send("sample.noop", time_limit=-1)
        good.append(site.send("sample.noop"))
        wait_until(lambda: set(good) <= set(site.lines("END")))
        wait_until(lambda late=late: f"Hard time limit (-1s) exceeded for sample.noop[{late}]" in site.output(worker))
    wait_until(lambda: broker.admin.hlen(SLOT) == 0)
    assert worker.poll() is None


@pytest.mark.core
def test_a_child_that_ends_after_its_last_task_sees_that_its_results_were_read(site: Site, broker: Broker) -> None:
    """It would wait 30 s otherwise."""
    worker = site.worker(concurrency=1, MAX_TASKS="1")
    sent = [site.send("sample.noop") for _ in range(4)]
    wait_until(lambda: set(site.lines("END")) == set(sent), 80)
    assert site.stop(worker) == 0


def test_threads_warn_of_a_time_limit(site: Site, broker: Broker) -> None:
    site.gate.touch()
    worker = site.worker(pool="threads")
    sent = {site.send(), site.send(time_limit=5), site.send(time_limit=5)}
    wait_until(lambda: set(site.lines("END")) == sent)
    warning = "The task sample.hold has a time limit, which the pool of threads cannot enforce."
    assert site.output(worker).count(warning) == 1
