"""A release that dies after its deployment: status and the next run say so, and the way back works."""

from __future__ import annotations

import pytest
from deployments import Deployments
from probes import wait_for


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
        wait_for(problems, 90, "status names every process", lambda found: found >= everything)
        found = deployments.host.run(status)
        assert (found.rc, "restarted" in found.stdout) == (4, True), found.stdout
        again = deployments.deploy_with_ansible(version).failed()
        again.says(f"Release {dead} is live, but does not run: web").says("playbooks/rollback.yml")
        assert deployments.current == dead
        deployments.rollback().succeeded()
    finally:
        deployments.host.check_output(f"rm -f {deployments.media}/die")
    assert deployments.current == healthy
    assert deployments.host.run(status).rc == 0
    assert deployments.running_releases() == {healthy}
