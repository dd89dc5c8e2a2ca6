"""A release that dies after its deployment: status and the next run say so, and the way back works."""

from __future__ import annotations

import pytest
from deployments import Deployments
from probes import wait_for


@pytest.mark.os("debian12")
def test_beat_that_dies_after_the_switch_fails_the_run(deployments: Deployments, old: str) -> None:
    """The release serves, and stays live: the summary is printed, and then the run fails."""
    run = deployments.deploy_with_ansible(deployments.version("beatless", "beat-dies")).failed()
    beatless = deployments.current
    assert beatless != old
    run.says("Beat does not keep running, so no periodic task is sent.").says(f"Release {beatless} is live.")
    run.says("Site         ").says(f"Release {beatless} is live, but does not run: beat. On the server, ")
    run.says(f"`{deployments.app.name}ctl logs beat` shows why.").says(f"To roll back to {old}: playbooks/rollback.yml")
    assert {problem["process"] for problem in deployments.status()["problems"]} == {"beat"}
    # Migrations of other tests are still applied, which the older release does not have.
    deployments.rollback("--force").succeeded()
    assert (deployments.current, deployments.status()["problems"]) == (old, [])


@pytest.mark.os("debian12")
@pytest.mark.usefixtures("old")
def test_release_that_dies_is_reported_and_rolled_back(deployments: Deployments) -> None:
    # With every migration that the database has, so that it can be rolled back to.
    deployments.deploy(deployments.version("healthy")).succeeded()
    healthy = deployments.current
    version = deployments.version("mortal", "dies-when-told")
    deployments.deploy(version).succeeded()
    dead, status = deployments.current, f"{deployments.app.name}ctl status"
    assert deployments.host.run(status).rc == 0
    everything = {"web", *(f"worker-{worker['name']}" for worker in deployments.app.workers)}

    def problems() -> set[str]:
        return {problem["process"] for problem in deployments.status()["problems"]}

    deployments.host.check_output(f"touch {deployments.media}/die")
    try:
        wait_for(problems, 90, "status names every process", lambda found: found >= everything, pause=2)
        found = deployments.host.run(status)
        assert (found.rc, "restarted" in found.stdout) == (4, True), found.stdout
        again = deployments.deploy(version).failed()
        again.says(f"Release {dead} is live, but does not run: web").says("playbooks/rollback.yml")
        assert deployments.current == dead
        deployments.rollback().succeeded()
    finally:
        deployments.host.check_output(f"rm -f {deployments.media}/die")
    assert deployments.current == healthy
    assert deployments.host.run(status).rc == 0
    assert deployments.running_releases() == {healthy}
