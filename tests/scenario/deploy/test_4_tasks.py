"""Tasks that are longer than a rollout, and tasks that a release does not know."""

from __future__ import annotations

import re

import pytest
from probes import wait_for
from rollouts import Rollouts
from traffic import Traffic

SECONDS = 90


@pytest.mark.os("debian13")
def test_a_long_task_ends_once(rollouts: Rollouts, traffic: Traffic, old: str) -> None:
    version = rollouts.version("long")
    rollouts.hold_tasks()
    task = traffic.start_task("ledger.wait")
    wait_for(lambda: task.id in {entry.id for entry in rollouts.ledger().of("START")}, 15, "the long task has started")
    run = rollouts.begin(version)
    wait_for(rollouts.stopping, 240, "its worker is told to stop", lambda names: "worker-heavy" in names)
    # So that it has heard it.
    traffic.pause(2)
    rollouts.let_tasks_end()
    run.wait().succeeded()
    counts = r"Tasks of the old workers: [1-9]\d* finished, \d+ handed back, 0 lost\. Failed requests \(5xx\): 0\."
    assert re.search(counts, run.output), run.output
    wait_for(lambda: task.id in rollouts.ledger().ended, SECONDS, "the long task has ended")
    entries = [(entry.event, entry.release) for entry in rollouts.ledger().entries if entry.id == task.id]
    assert entries == [("START", old), ("END", old)]
    rollouts.nothing_suffered(traffic, [old, rollouts.current])


@pytest.mark.os("debian12")
def test_a_task_that_the_release_before_does_not_know_is_set_aside(rollouts: Rollouts, old: str) -> None:
    """It waits behind a long one while the release that knows it goes; when that comes back, it is done."""
    newer = rollouts.version("newer", "new-task")
    rollouts.deploy(newer).succeeded()
    with rollouts.under_load(tasks=1) as traffic:
        rollouts.hold_tasks()
        traffic.start_task("ledger.wait")
        unknown = [traffic.start_task("ledger.novelty") for _ in range(3)]
        watch = rollouts.watch("drain")
        back = rollouts.playbook("playbooks/rollback.yml")
        watch.seen()
        rollouts.let_tasks_end()
        back.wait().succeeded()
        assert rollouts.current == old
        wait_for(lambda: "ledger.novelty" in rollouts.set_aside(), SECONDS, "the unknown tasks are set aside")
        assert not {task.id for task in unknown} & rollouts.ledger().ended
        assert "ledger.novelty" in back.output + rollouts.log(back.began)
        rollouts.deploy(newer).succeeded()
    ledger = rollouts.work_is_done(traffic)
    assert {task.id for task in unknown} <= ledger.ended
    assert rollouts.set_aside() == ""
