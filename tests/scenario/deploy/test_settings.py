"""Changed settings: a removed worker, the other process manager, each with the way back, and a run that fails."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from deployments import Deployments, between
from probes import Visitor, wait_for
from traffic import verdict

SECONDS = 90
# What of site.yml applies settings of the processes: no other role has one of workers or of the process manager.
PROCESSES = "services,release"
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


def environments(deployments: Deployments, name: str) -> dict[str, str]:
    """Return the value of a variable in each process that has it."""
    script = f"tr '\\0' '\\n' </proc/{{}}/environ | sed -n 's/^{name}=//p'"
    values = {
        process: deployments.host.run(script.format(number)).stdout.strip()
        for process, number in deployments.processes().items()
    }
    return {process: value for process, value in values.items() if value}


def test_removed_worker_ends_when_its_queue_is_empty(
    deployments: Deployments, old: str, variables: dict[str, Any]
) -> None:
    workers = [worker for worker in variables["app_workers"] if worker["name"] != "heavy"]
    assert len(workers) < len(variables["app_workers"])
    before = {name.partition("@")[0] for name in deployments.processes()}
    source = deployments.version("fewer")
    fewer = {"app_workers": workers, "app_external_queues": ["heavy"]}
    if deployments.manager == "systemd":
        # deploy.yml does not apply settings of the processes.
        deployments.deploy_with_ansible(source, **fewer).failed().says("site.yml")
        assert deployments.current == old
    # Without the traffic's tasks, some of which are for that queue: a project that removes it sends nothing there.
    with deployments.under_load(tasks=0.0) as traffic:
        deployments.hold_tasks()
        try:
            # The drain has to wait for those behind the first one.
            waiting = [traffic.start_task("ledger.wait"), *(traffic.start_task("ledger.sleep", 1) for _ in range(3))]
            watch = deployments.watch("drain")
            run = deployments.playbook("site.yml", tags=PROCESSES, app_source=str(source), **fewer)
            watch.result()
            traffic.pause(2)
        finally:
            deployments.release_tasks()
        run.wait().succeeded()
    ledger = deployments.ledger().since(traffic.samples[0].start)
    verdict.none_lost(waiting, ledger)
    verdict.none_ran_twice(ledger, {task.id for task in waiting})
    assert {entry.release for entry in ledger.entries if entry.id in {task.id for task in waiting}} == {old}
    run.says("heavy")
    release = deployments.current
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered(traffic.samples, [old, deployments.current])
    assert not [name for name in deployments.processes() if "heavy" in name]
    left = "ls /etc/systemd/system /etc/supervisor/conf.d 2>/dev/null | grep worker-heavy"
    assert deployments.host.run(left).stdout == ""
    # It is back with the release that had it, and a queue without a worker is named.
    url = f'"$(. /etc/{deployments.app.name}/next/app.env && echo "$CELERY_BROKER_URL")"'
    leave = 'from kombu import Connection; import sys; c = Connection(sys.argv[1]); c.SimpleQueue("legacy").put({})'
    python = f"/srv/{deployments.app.name}/current/.venv/bin/python"
    deployments.host.check_output(f"{python} -c '{leave}' {url}")
    with deployments.under_load() as traffic:
        back = deployments.rollback().succeeded()
    back.says("1 tasks wait in the queue legacy, which no worker consumes")
    assert deployments.current == old
    assert {name.partition("@")[0] for name in deployments.processes()} == before
    deployments.assert_zero_downtime(traffic, [old, release])


def test_other_process_manager_takes_over_and_a_poison_message_is_parked(
    deployments: Deployments, old: str, variables: dict[str, Any]
) -> None:
    """Nothing of the first one is left. (The worker that the test before has removed is back.)

    Then a deployment under the other one, while a message kills its worker again and again. It is parked after three
    times; what waits behind it runs.
    """
    first, other = sorted(TRACES, key=lambda manager: manager != deployments.manager)
    assert traces(deployments, first)
    # All of site.yml at one of the two.
    tags = "" if first == "systemd" else PROCESSES
    with deployments.under_load() as traffic:
        source = str(deployments.version("managed"))
        deployments.playbook("site.yml", tags=tags, app_source=source, app_process_manager=other).wait().succeeded()
        traffic.pause(2)
        assert traces(deployments, other)
        assert traces(deployments, first) == ""
        kept = deployments.host.check_output(f"ls /srv/{deployments.app.name}/releases").split()
        managed = deployments.current
        assert managed in kept
        assert len(kept) <= variables["app_keep_releases"]

        killer = traffic.start_task("ledger.kill")
        behind = [traffic.start_task("ledger.sleep", 0.1) for _ in range(5)]
        deployments.deploy(deployments.version("poisoned")).succeeded()
        poisoned, ids = deployments.current, {task.id for task in behind}
        wait_for(lambda: ids <= deployments.ledger().ended, SECONDS, "the tasks behind it have run")
        wait_for(deployments.parked, SECONDS, "the message is parked")
        (parked,) = json.loads(deployments.control("tasks", "parked", "list", "--json").wait().succeeded().output)
        assert (parked["id"], parked["task"], parked["kind"]) == (killer.id, "ledger.kill", "returned")
        assert [entry.event for entry in deployments.ledger().entries if entry.id == killer.id] == ["START"] * 3
        dropped = deployments.control("tasks", "parked", "drop", killer.id, "--yes").wait().succeeded()
        dropped.says("Dropped 1 message.")
        assert deployments.parked() == ""
        traffic.sent.remove(killer)

        # The older release, by its ID, comes back under its own manager.
        began = time.time()
        if first == "systemd":
            deployments.rollback_with_ansible(release_id=old).succeeded()
        else:
            deployments.rollback(old).succeeded()
    assert deployments.current == old
    assert traces(deployments, first)
    assert traces(deployments, other) == ""
    verdict.releases_took_turns(between(traffic.samples, 0, began), [old, managed, poisoned])
    deployments.assert_zero_downtime(traffic, [old, managed, poisoned])


# Last: the host has the settings of the run that failed, beside those of the live release.
@pytest.mark.os("debian13")
def test_failed_run_changes_nothing_that_serves(deployments: Deployments, old: str, variables: dict[str, Any]) -> None:
    """Other names, environment, workers and limits, with a release that fails after its switch; then all restart."""
    host, app = deployments.host, deployments.app
    before, hosts = set(deployments.processes()), environments(deployments, "ALLOWED_HOSTS")
    assert hosts
    changes: dict[str, Any] = {
        "app_domain": "changed.example.org",
        "app_domain_aliases": [],
        "app_environment": {"COLOUR": "changed"},
        "app_workers": [worker | {"name": f"{worker['name']}2"} for worker in variables["app_workers"]],
        "app_web": {"processes": 1, "memory_mb": 300},
    }
    source = deployments.version("broken", "health-500-once-current")
    run = deployments.playbook("site.yml", app_source=str(source), **changes).wait().failed()
    run.says(f"Traffic switched back to {old}.").says(f"Release {old} is live, as before.")
    kept = f"{app.certificate_folder}/kept/{urlsplit(app.url).hostname}.pem"
    visitor = Visitor(app.url, host.file(kept).content_string)
    assert visitor.get("/").status == 200, "the old name, with its certificate"
    host.check_output(f"systemctl restart {app.name}")
    wait_for(
        lambda: visitor.get("/healthz/").status, 60, "the site answers after a restart", lambda status: status == 200
    )
    assert old in visitor.get("/healthz/").body
    assert set(deployments.processes()) == before
    # A process that systemd has just forked has no environment of its own yet.
    wait_for(lambda: environments(deployments, "ALLOWED_HOSTS"), 60, "the old names", lambda found: found == hosts)
    assert environments(deployments, "COLOUR") == {}
