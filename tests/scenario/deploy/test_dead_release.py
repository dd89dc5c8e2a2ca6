"""A release that dies after its deployment: status and the next run say so, and the way back works."""

from __future__ import annotations

import re
from pathlib import Path

from deployments import Deployments, Run
from probes import wait_for

SILENT = "Beat does not keep running, so no periodic task is sent."
# Seconds until `verify` fails for what it has started. Under systemd, the inventory has it: deploy.yml writes it.
CHECK_SECONDS = 30


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
        # The summary is printed before.
        run = deployments.deploy_with_ansible(version).failed().says(SILENT).says("Site         ")
        return run.says(f"Release {deployments.current} is live.")
    # Recorded with the release.
    with deployments.settings(health_check_timeout=CHECK_SECONDS):
        deployments.deploy(version).succeeded().says(SILENT)
    return deployments.control("verify").wait().failed()


def test_release_that_dies_is_reported_and_rolled_back(deployments: Deployments, old: str) -> None:
    """At first only its beat, then everything. With Ansible under systemd; with the program on the host elsewhere."""
    healthy = release_with_every_migration(deployments)
    version, status = deployments.version("mortal", "beat-dies", "dies-when-told"), f"{deployments.app.name}ctl status"
    die, beat_lives = f"{deployments.media}/die", f"{deployments.media}/beat-lives"
    deployments.host.check_output(f"rm -f {beat_lives}")
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
    # Beat is restarted until it runs. (If it did not, it would only keep the machine busy.)
    deployments.host.check_output(f"touch {beat_lives} {die}")
    try:
        wait_for(problems, 90, "status names every process", lambda found: found >= everything, pause=2)
        found = deployments.host.run(status)
        assert found.rc == 4, found.stdout
        assert re.search(r"(web|worker-\w+): .*restarted", found.stdout), found.stdout
        again = deployments.deploy(version).failed()
        again.says(f"Release {dead} is live, but does not run: web").says("playbooks/rollback.yml")
        assert deployments.current == dead
        deployments.rollback().succeeded()
    finally:
        deployments.host.check_output(f"rm -f {die} {beat_lives}")
    assert deployments.current == healthy
    assert deployments.host.run(status).rc == 0
    assert deployments.status()["problems"] == []
    assert deployments.running_releases() == {healthy}
