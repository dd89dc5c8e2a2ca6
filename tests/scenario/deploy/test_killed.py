"""Deployments that are killed, or whose control machine is, and two at once. The next run completes or reverts them."""

from __future__ import annotations

import re
import signal
from contextlib import nullcontext
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
    "bake": "switched, the old processes still running",
    "restart_beat": "beat stopped",
    "drain": "old workers finishing their tasks",
}
# Under Supervisor, whose processes start and stop in another way.
STATES_OF_PROCESSES = ("start", "stop_consuming", "bake", "drain")
# These continue what the kill before them has left; the others deploy a new version.
SAME_VERSION = ("stop_consuming", "restart_beat")
# Long enough for the kill to find it at this step, also through Ansible.
BAKE_SECONDS = 20
# Tries of a kill at exactly this step: the step may end before the signal arrives.
TRIES = 3


def kill_at(deployments: Deployments, step: str, releases: set[str], version: Path | None = None) -> Path:
    """Kill a deployment at exactly this step; of this version, or of a new one. Returns the version.

    Adds to `releases` those that have become current, also by a deployment that the kill has missed. That at `bake` is
    by Ansible under systemd.
    """
    for _ in range(TRIES):
        version = version or deployments.version(f"killed-at-{step}", column("kept") if step == "migrate" else "style")
        with_ansible = step == "bake" and deployments.manager == "systemd"
        watch = deployments.watch(step, kill=True)
        # Restored before the next deployment, which bakes as shortly as the others.
        with deployments.settings(bake=BAKE_SECONDS) if step == "bake" else nullcontext():
            if with_ansible:
                run = deployments.begin_with_ansible(version, app_bake_seconds=BAKE_SECONDS)
            else:
                run = deployments.begin(version)
            found = watch.result()
            run.wait()
        releases.add(deployments.current)
        if found.get("step") == step:
            run.failed()
            assert not with_ansible or "killed" in run.output, run.output
            return version
        print(f"the kill at {step} came at {found['missed']}: once more, with a new version")
        version = None
    pytest.fail(f"no deployment could be killed at {step} in {TRIES} tries")


def test_next_deployment_completes_a_killed_one(deployments: Deployments, old: str) -> None:
    """The next one is killed too, in the next state, and so on; the last one is not.

    Some are of the version that was killed before, the others of a new one. The last one is of the same version under
    systemd, by Ansible, and of a new one under Supervisor.
    """
    under_systemd, releases = deployments.manager == "systemd", {old}
    with deployments.under_load() as traffic:
        version = None
        for step in STATES if under_systemd else STATES_OF_PROCESSES:
            version = kill_at(deployments, step, releases, version if step in SAME_VERSION else None)
        killed = deployments.current
        if under_systemd:
            deployments.deploy_with_ansible(version).succeeded()
            assert deployments.current == killed, "Ansible has deployed another release than the one that was killed"
        else:
            deployments.deploy(deployments.version("completed")).succeeded()
        traffic.pause(2)
    new = deployments.current
    assert new != old
    assert deployments.is_idle(), deployments.status()
    assert deployments.running_releases() == {new}
    deployments.assert_zero_downtime(traffic, sorted(releases | {new}))


@pytest.mark.os("debian12")
def test_deployment_survives_its_control_machine(deployments: Deployments, old: str) -> None:
    """The connection is cut by Ctrl-C, or the control machine is killed, and with it the connection.

    Meanwhile another deployment is refused. After Ctrl-C the same command again changes nothing.
    """
    releases, other = [old], deployments.version("other")
    with deployments.under_load() as traffic:
        for number, step in {signal.SIGINT: "migrate", signal.SIGKILL: "drain"}.items():
            version = deployments.version(f"left-at-{step}", column("left"))
            watch = deployments.watch(step)
            run = deployments.begin_with_ansible(version)
            seen = watch.result()
            assert STEPS.index(seen["step"]) >= STEPS.index(step)
            run.signal(number)
            if number == signal.SIGINT:
                # The first one stands still meanwhile: from its step `drain` on, the second would take over.
                deployments.host.check_output(f"kill -STOP {seen['pid']}")
                try:
                    refused = " ".join(deployments.deploy(other).failed().output.split())
                finally:
                    deployments.host.check_output(f"kill -CONT {seen['pid']}")
                named = r"Another deployment is running: deploy \S+, started \d+ s ago by \S+, now at step \w+"
                assert re.search(named, refused), refused
            run.wait(120)
            deployments.wait_until_idle()
            releases.append(deployments.current)
            if number == signal.SIGINT:
                before = deployments.processes(), deployments.status()
                again = deployments.deploy_with_ansible(version).succeeded()
                assert again.changed == 0, again.output
                assert (deployments.processes(), deployments.status()) == before
    assert len({*releases}) == 3
    assert deployments.running_releases() == {releases[-1]}
    verdict.releases_took_turns(traffic.samples, releases)
    deployments.assert_zero_downtime(traffic, releases)
