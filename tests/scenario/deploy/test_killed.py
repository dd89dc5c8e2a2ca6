"""Deployments that are killed, or whose control machine is, and two at once. The next run completes or reverts them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from deployments import STEPS, Deployments, column
from traffic import verdict

# One step for each state that a kill leaves behind; tests/hostctl kills at every step.
STATES = {
    "build": "half a release in its folder",
    "migrate": "built, the database in the middle of its migrations",
    "start": "the new processes partly started",
    "stop_consuming": "workers told to stop consuming, not switched",
    "smoke_test": "switched, the old processes still running",
    "restart_beat": "beat stopped",
    "drain": "old workers finishing their tasks",
}
# Under Supervisor, whose processes start and stop in another way.
STATES_OF_PROCESSES = ("start", "stop_consuming", "smoke_test", "drain")
# These continue what the kill before them has left; the others deploy a new version.
SAME_VERSION = ("stop_consuming", "restart_beat")
# Tries of a kill at exactly this step: the step may end before the signal arrives.
TRIES = 3


def kill_at(deployments: Deployments, step: str, releases: set[str], version: Path | None = None) -> Path:
    """Kill a deployment at exactly this step; of this version, or of a new one. Returns the version.

    Adds to `releases` those that have become current, also by a deployment that the kill has missed.
    """
    for _ in range(TRIES):
        version = version or deployments.version(f"killed-at-{step}", column("kept") if step == "migrate" else "style")
        watch = deployments.watch(step, kill=True)
        run = deployments.begin(version)
        found = watch.result()
        run.wait()
        releases.add(deployments.current)
        if found.get("step") == step:
            run.failed()
            return version
        print(f"the kill at {step} came at {found['missed']}: once more, with a new version")
        version = None
    pytest.fail(f"no deployment could be killed at {step} in {TRIES} tries")


@pytest.mark.os("debian13")
def test_next_deployment_completes_a_killed_one(deployments: Deployments, old: str) -> None:
    """The next one is killed too, in the next state, and so on; the last one is not.

    Some are of the version that was killed before, the others of a new one.
    """
    states = [step for step in STATES if deployments.manager == "systemd" or step in STATES_OF_PROCESSES]
    releases = {old}
    with deployments.under_load() as traffic:
        version = None
        for step in states:
            version = kill_at(deployments, step, releases, version if step in SAME_VERSION else None)
        deployments.deploy(deployments.version("completed")).succeeded()
        traffic.pause(2)
    new = deployments.current
    assert new != old
    assert deployments.is_idle(), deployments.status()
    assert deployments.running_releases() == {new}
    deployments.assert_zero_downtime(traffic, sorted(releases | {new}))


@pytest.mark.os("debian13")
@pytest.mark.any_manager
def test_deploy_playbook_completes_a_killed_deployment(deployments: Deployments, old: str) -> None:
    version = deployments.version("killed", column("killed"))
    with deployments.under_load() as traffic:
        watch = deployments.watch("bake", kill=True)
        # Long enough for the kill to find it at this step.
        run = deployments.begin_with_ansible(version, app_bake_seconds=20)
        assert watch.result()["step"] == "bake"
        run.wait().failed().says("killed")
        deployments.deploy_with_ansible(version).succeeded()
    new = deployments.current
    assert new != old
    assert deployments.running_releases() == {new}
    deployments.assert_zero_downtime(traffic, [old, new])


# The connection is cut by Ctrl-C, or the control machine is killed, and with it the connection.
@pytest.mark.os("debian12")
@pytest.mark.any_manager
@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, "migrate"), (signal.SIGKILL, "drain")])
def test_deployment_survives_its_control_machine(
    deployments: Deployments, old: str, number: signal.Signals, step: str
) -> None:
    version = deployments.version(f"left-at-{step}", column("left"))
    with deployments.under_load() as traffic:
        watch = deployments.watch(step)
        run = deployments.begin_with_ansible(version)
        seen = watch.result()["step"]
        run.signal(number)
        run.wait(120)
        deployments.wait_until_idle()
        new = deployments.current
        if number == signal.SIGINT:
            again = deployments.deploy_with_ansible(version).succeeded()
            assert again.changed == 0, again.output
    assert seen == step or STEPS.index(seen) > STEPS.index(step)
    assert old != new == deployments.current
    verdict.releases_took_turns(traffic.samples, [old, new])
    deployments.assert_zero_downtime(traffic, [old, new])


@pytest.mark.os("debian13")
@pytest.mark.any_manager
def test_second_deployment_at_once_is_refused(deployments: Deployments, old: str) -> None:
    one, two = deployments.version("one"), deployments.version("two")
    with deployments.under_load() as traffic:
        watch = deployments.watch("build")
        first = deployments.begin(one)
        watch.result()
        second = deployments.deploy(two).failed()
        assert first.process.poll() is None, "the first had ended before the second was refused"
        first.wait().succeeded()
    named = r"Another deployment is running: deploy \S+, started \d+ s ago by \S+, now at step \w+"
    assert re.search(named, " ".join(second.output.split())), second.output
    new = deployments.current
    assert deployments.running_releases() == {new}
    deployments.assert_zero_downtime(traffic, [old, new])
