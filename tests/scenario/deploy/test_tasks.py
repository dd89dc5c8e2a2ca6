"""Tasks that are longer than a deployment, and tasks that a release does not know."""

from __future__ import annotations

import re

import pytest
from deployments import Deployments, column
from probes import wait_for
from traffic import Traffic

from hostctl.deploy.drain import LONG_TASK

SECONDS = 90


def test_long_task_ends_once_and_keeps_no_deployment_waiting(
    deployments: Deployments, traffic: Traffic, old: str
) -> None:
    """It is named before the switch. The next deployment begins, and goes live, while it runs."""
    version = deployments.version("long")
    deployments.hold_tasks()
    try:
        task = traffic.start_task("ledger.wait")
        wait_for(
            lambda: task.id in {entry.id for entry in deployments.ledger().of("START")}, SECONDS, "the task has started"
        )
        # Until it counts as long.
        traffic.pause(LONG_TASK)
        run = deployments.begin(version)
        wait_for(
            deployments.stopping, 240, "its worker is told to stop", lambda names: "worker-heavy" in names, pause=1
        )
        # For the signal to arrive.
        traffic.pause(2)
        between, watch = deployments.current, deployments.watch("drain")
        following = deployments.begin(deployments.version("following"))
        run.wait().succeeded().says(f"worker-heavy@{old} has been running the task ledger.wait ({task.id})")
        run.says("Another deployment begins. Still finishing their tasks")
        assert watch.result()["step"] == "drain"
        assert deployments.current != between
        assert task.id not in deployments.ledger().ended
    finally:
        deployments.release_tasks()
    following.wait().succeeded()
    counts = r"Tasks of the old workers: [1-9]\d* finished, \d+ \w+(?: \w+)?, 0 lost\. Failed requests \(5xx\): 0\."
    assert re.search(counts, following.output), following.output
    wait_for(lambda: task.id in deployments.ledger().ended, SECONDS, "the long task has ended")
    entries = [(entry.event, entry.release) for entry in deployments.ledger().entries if entry.id == task.id]
    assert entries == [("START", old), ("END", old)]
    assert deployments.running_releases() == {deployments.current}
    deployments.assert_zero_downtime(traffic, [old, between, deployments.current])


@pytest.mark.os("debian12")
def test_rollback_parks_tasks_that_the_older_release_does_not_know(deployments: Deployments, old: str) -> None:
    """They wait behind a long task during the rollback; when the release that knows them returns, they run.

    That one has a migration that the older release lacks: the rollback is refused without `--force`.
    """
    newer = deployments.version("newer", "new-task", column("ahead"))
    deployments.deploy(newer).succeeded()
    ahead, processes = deployments.current, deployments.processes()
    with deployments.under_load(tasks=1) as traffic:
        refused = deployments.rollback().failed()
        refused.says("_ahead").says("release_force")
        assert (deployments.current, deployments.processes()) == (ahead, processes)

        deployments.hold_tasks()
        traffic.start_task("ledger.wait")
        unknown = [traffic.start_task("ledger.novelty") for _ in range(3)]
        watch = deployments.watch("drain")
        rollback = deployments.control("rollback", "--force")
        watch.result()
        deployments.release_tasks()
        rollback.wait().succeeded()
        assert deployments.current == old
        wait_for(lambda: "ledger.novelty" in deployments.parked(), SECONDS, "the unknown tasks are parked")
        assert not {task.id for task in unknown} & deployments.ledger().ended
        assert "ledger.novelty" in rollback.output + deployments.log(rollback.began)
        deployments.deploy(newer).succeeded()
    deployments.assert_zero_downtime(traffic, [old, ahead])
    assert {task.id for task in unknown} <= deployments.ledger().ended
    assert deployments.parked() == ""
