"""Changed settings of the processes: a worker is removed, the other process manager takes over."""

from __future__ import annotations

from typing import Any

import pytest
from deployments import Deployments
from traffic import verdict

pytestmark = pytest.mark.os("debian13")
# Where each manager has its files and its processes, for a shell.
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


def traces(deployments: Deployments, manager: str) -> str:
    """Return what exists of a process manager on the host; "" is nothing."""
    return deployments.host.run(f"({TRACES[manager].format(deployments.app.name)}) 2>/dev/null").stdout.strip()


def test_removed_worker_ends_when_its_queue_is_empty(
    deployments: Deployments, old: str, variables: dict[str, Any]
) -> None:
    workers = [worker for worker in variables["app_workers"] if worker["name"] != "heavy"]
    assert len(workers) < len(variables["app_workers"])
    source = deployments.version("fewer")
    # deploy.yml does not apply settings of the processes.
    refused = deployments.deploy_with_ansible(source, app_workers=workers).failed()
    refused.says("site.yml")
    assert deployments.current == old
    # Without the traffic's tasks, some of which are for that queue: a project that removes it sends nothing there.
    with deployments.under_load(tasks=0.0) as traffic:
        # More than is done before the drain, which has to wait for the rest.
        waiting = [traffic.start_task("ledger.sleep", 4) for _ in range(12)]
        run = deployments.playbook("site.yml", app_source=str(source), app_workers=workers).wait().succeeded()
    ledger = deployments.ledger().since(traffic.samples[0].start)
    verdict.none_lost(waiting, ledger)
    verdict.none_ran_twice(ledger, {task.id for task in waiting})
    assert {entry.release for entry in ledger.entries if entry.id in {task.id for task in waiting}} == {old}
    run.says("heavy")
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered(traffic.samples, [old, deployments.current])
    assert not [name for name in deployments.processes() if "heavy" in name]
    left = "ls /etc/systemd/system /etc/supervisor/conf.d 2>/dev/null | grep worker-heavy"
    assert deployments.host.run(left).stdout == ""


def test_other_process_manager_takes_over(deployments: Deployments, old: str, variables: dict[str, Any]) -> None:
    """Nothing of the first one is left. (The worker that the test before has removed is back.)"""
    first, other = sorted(TRACES, key=lambda manager: manager != deployments.manager)
    assert traces(deployments, first)
    with deployments.under_load() as traffic:
        source = str(deployments.version("managed"))
        deployments.playbook("site.yml", app_source=source, app_process_manager=other).wait().succeeded()
        traffic.pause(2)
    assert traces(deployments, other)
    assert traces(deployments, first) == ""
    kept = deployments.host.check_output(f"ls /srv/{deployments.app.name}/releases").split()
    assert deployments.current in kept
    assert len(kept) <= variables["app_keep_releases"]
    deployments.assert_zero_downtime(traffic, [old, deployments.current])
