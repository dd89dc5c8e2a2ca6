"""A release that dies after its deployment: status and the next run say so, and the way back works."""

from __future__ import annotations

import re
from pathlib import Path

from deployments import Deployments, Run
from probes import wait_for

# Seconds for what never runs again: no need to wait as long as a release gets.
TIMEOUT = 10
SILENT = "Beat does not keep running, so no periodic task is sent."


def release_with_every_migration(deployments: Deployments) -> str:
    """Return the current release if it can be rolled back to, or deploy such a one."""
    applied = deployments.columns()
    had = deployments.host.check_output(f"ls /srv/{deployments.app.name}/current/ledger/migrations")
    if not all(f"_{name}.py" in had for name in applied):
        deployments.deploy(deployments.version("healthy")).succeeded()
    return deployments.current


def deploy_without_beat(deployments: Deployments, version: Path) -> Run:
    """Deploy a version whose beat dies. Its release is live; the run, or `verify` on the host, fails in the end."""
    if deployments.manager == "systemd":
        watch = deployments.watch("drain")
        run = deployments.begin_with_ansible(version)
        watch.result()
        with deployments.settings(health_check_timeout=TIMEOUT):
            # The summary is printed before.
            return (
                run.wait().failed().says(SILENT).says("Site         ").says(f"Release {deployments.current} is live.")
            )
    deployments.deploy(version).succeeded().says(SILENT)
    with deployments.settings(health_check_timeout=TIMEOUT):
        return deployments.control("verify").wait().failed()


def test_release_that_dies_is_reported_and_rolled_back(deployments: Deployments, old: str) -> None:
    """At first only its beat, then everything. With Ansible under systemd; with the program on the host elsewhere."""
    healthy = release_with_every_migration(deployments)
    version, status = deployments.version("mortal", "beat-dies", "dies-when-told"), f"{deployments.app.name}ctl status"
    run = deploy_without_beat(deployments, version)
    dead = deployments.current
    assert dead not in (old, healthy)
    run.says(f"Release {dead} is live, but does not run: beat. On the server, ")
    run.says(f"`{deployments.app.name}ctl logs beat` shows why.")
    run.says(f"To roll back to {healthy}: playbooks/rollback.yml")

    def problems() -> set[str]:
        return {problem["process"] for problem in deployments.status()["problems"]}

    assert problems() == {"beat"}
    everything = {"web", *(f"worker-{worker['name']}" for worker in deployments.app.workers)}
    deployments.host.check_output(f"touch {deployments.media}/die")
    try:
        wait_for(problems, 90, "status names every process", lambda found: found >= everything, pause=2)
        found = deployments.host.run(status)
        assert (found.rc, "restarted" in found.stdout) == (4, True), found.stdout
        with deployments.settings(health_check_timeout=TIMEOUT):
            again = deployments.deploy(version).failed()
        named = re.search(rf"Release {dead} is live, but does not run: (.+)\. On the server", again.output)
        assert named, again.output
        assert set(named[1].split(", ")) >= {"web"}, named[0]
        again.says("playbooks/rollback.yml")
        assert deployments.current == dead
        deployments.rollback().succeeded()
    finally:
        deployments.host.check_output(f"rm -f {deployments.media}/die")
    assert deployments.current == healthy
    assert deployments.host.run(status).rc == 0
    assert deployments.status()["problems"] == []
    assert deployments.running_releases() == {healthy}
