"""What group_vars say of the processes changes: a worker is taken out, the other process manager takes over."""

from __future__ import annotations

from typing import Any

import pytest
from rollouts import Rollouts
from traffic import verdict

pytestmark = pytest.mark.os("debian13")
# Where each manager has its files and its processes, as a shell sees them.
TRACES = {
    "systemd": """
        ls /etc/systemd/system | grep -E '^{0}-(web|worker.*)@|^{0}-beat'
        systemctl list-units --all --plain --no-legend '{0}-*@*' '{0}-beat*'
    """,
    "supervisor": """
        find /etc/supervisor/conf.d /etc/{0}/supervisor -type f
        systemctl is-active supervisor | grep -x active
    """,
}


def traces(rollouts: Rollouts, manager: str) -> str:
    """What is to be seen of a process manager on the host; "" is nothing."""
    return rollouts.host.run(f"({TRACES[manager].format(rollouts.app.name)}) 2>/dev/null").stdout.strip()


def test_a_worker_that_is_taken_out_ends_when_its_queue_is_empty(
    rollouts: Rollouts, old: str, variables: dict[str, Any]
) -> None:
    workers = [worker for worker in variables["app_workers"] if worker["name"] != "heavy"]
    assert len(workers) < len(variables["app_workers"])
    source = rollouts.version("fewer")
    # The server was not given these settings yet, and this playbook does not.
    refused = rollouts.deploy(source, app_workers=workers).failed()
    refused.says("Run site.yml")
    assert rollouts.current == old
    # None of the flow's own tasks, some of which are for that queue: whoever takes it out sends nothing there any more.
    with rollouts.under_load(tasks=0.0) as traffic:
        # More than is done before the drain, which then has to wait for the rest.
        waiting = [traffic.start_task("ledger.sleep", 6) for _ in range(12)]
        run = rollouts.playbook("site.yml", app_source=str(source), app_workers=workers).wait().succeeded()
    ledger = rollouts.ledger()
    verdict.none_lost(waiting, ledger)
    verdict.none_ran_twice(ledger, {task.id for task in waiting})
    assert {entry.release for entry in ledger.entries if entry.id in {task.id for task in waiting}} == {old}
    run.says("No longer taken, and empty: heavy.")
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered(traffic.samples, [old, rollouts.current])
    assert not [name for name in rollouts.processes() if "heavy" in name]
    left = "ls /etc/systemd/system /etc/supervisor/conf.d 2>/dev/null | grep worker-heavy"
    assert rollouts.host.run(left).stdout == ""


def test_the_other_process_manager_takes_over(rollouts: Rollouts, old: str, variables: dict[str, Any]) -> None:
    """And leaves nothing of the first one behind. (The worker that was taken out is back.)"""
    first, other = sorted(TRACES, key=lambda manager: manager != variables["app_process_manager"])
    assert traces(rollouts, first)
    with rollouts.under_load() as traffic:
        source = str(rollouts.version("managed"))
        rollouts.playbook("site.yml", app_source=source, app_process_manager=other).wait().succeeded()
        traffic.pause(2)
    assert traces(rollouts, other)
    assert traces(rollouts, first) == ""
    kept = rollouts.host.check_output(f"ls /srv/{rollouts.app.name}/releases").split()
    assert rollouts.current in kept
    assert len(kept) <= variables["app_keep_releases"]
    rollouts.nothing_suffered(traffic, [old, rollouts.current])
