"""Releases that are broken in every way: none answers a request, and the current release is not touched."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
from deployments import Deployments, Run, between, column
from traffic import verdict
from traffic.load import OVERLAY_PAGES

# What is broken, and what the deployment prints about it.
BROKEN = {
    "import-error": "a_module_that_is_not_there",
    "import-error-in-web": "a_module_that_is_not_there",
    "import-error-in-worker": "a_module_that_is_not_there",
    "missing-dependency": "9999.",
    "health-500": "status 500",
    "health-hangs": "health check",
    "health-names-another": "does not name release",
}
# These fail in a process that the manager starts. (On Debian 13, the scenario `cluster` has health-500.)
STARTED = ("import-error-in-web", "import-error-in-worker")
# Where the health check itself fails, its page does not count.
OTHER_PAGES = [page for page in OVERLAY_PAGES if page != "/healthz/"]


def deploy(deployments: Deployments, change: str) -> Run:
    # A page that never answers is waited for no longer than needed; a wrong answer is told at once.
    with deployments.settings(health_check_timeout=8) if change == "health-hangs" else nullcontext():
        return deployments.deploy(deployments.version(change, change))


def state(deployments: Deployments) -> tuple[object, ...]:
    """Return what a failed deployment leaves as it is; none is running or unfinished."""
    status = deployments.status()
    assert deployments.is_idle(status), status
    return deployments.processes(), deployments.schema(), status


def test_broken_releases_touch_nothing(deployments: Deployments, old: str) -> None:
    """One after another. (Failed migrations have a test of their own below.)"""
    before = state(deployments)
    with deployments.under_load() as traffic:
        for change in STARTED if deployments.manager == "systemd" else BROKEN:
            run = deploy(deployments, change).failed().says(BROKEN[change])
            if change in STARTED:
                run.says(f"Last log lines of {deployments.app.name}-{change.rpartition('-')[2]}")
            traffic.pause(1)
            assert state(deployments) == before, change
    deployments.assert_zero_downtime(traffic, [old])


@pytest.mark.os("debian13")
def test_release_that_fails_after_the_switch_is_reverted(deployments: Deployments, old: str) -> None:
    processes = deployments.processes()
    with deployments.under_load(paths=OTHER_PAGES) as traffic:
        run = deployments.deploy(deployments.version("ill", "health-500-once-current")).failed()
        after = traffic.pause(2)
    run.says("status 500")
    assert deployments.current == old
    assert deployments.processes() == processes
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered([one for one in traffic.samples if one.start > after[0]], [old])
    deployments.assert_no_task_lost(traffic)


@pytest.mark.os("debian12")
def test_failing_hook_reverts_the_release(deployments: Deployments, old: str) -> None:
    """Each hook runs at its time, as the application; one that fails after the switch reverts it."""
    processes = deployments.processes()
    names = ["before_migrate", "after_migrate", "before_switch", "after_switch"]
    hooks = {name: [f'echo "{name} $(id -un) $RELEASE_ID" >>"$MEDIA_ROOT/hooks"'] for name in names}
    deployments.host.check_output(f"rm -f {deployments.media}/hooks")
    hooks["after_switch"].append("echo it went wrong on purpose; exit 3")
    with deployments.under_load() as traffic:
        with deployments.settings(hooks=hooks):
            run = deployments.deploy(deployments.version("hooks", column("hooked"))).failed()
        after = traffic.pause(2)
    run.says("it went wrong on purpose")
    ran = [line.split() for line in deployments.host.check_output(f"cat {deployments.media}/hooks").splitlines()]
    assert [name for name, *_ in ran] == names
    assert {user for _, user, _ in ran} == {deployments.app.name}
    assert len({release for *_, release in ran} - {old}) == 1
    assert deployments.current == old
    assert deployments.processes() == processes
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered([one for one in traffic.samples if one.start > after[0]], [old])
    deployments.assert_no_task_lost(traffic)


# Last: its release has every migration, which saves test_dead_release.py a deployment.
@pytest.mark.os("debian12")
def test_migration_that_fails_or_waits_for_a_lock_changes_nothing(deployments: Deployments, old: str) -> None:
    """The site keeps answering meanwhile, including the page that reads the table. The fixed release deploys."""
    before, fixed = state(deployments), column("half")
    with deployments.under_load() as traffic:
        run = deployments.deploy(deployments.version("failing", "failing-migration")).failed()
        run.says("this migration fails on purpose")
        assert state(deployments) == before

        version = deployments.version("fixed", fixed)
        with deployments.open_transaction("ledger_effect"):
            deployments.deploy(version).failed().says("lock")
        traffic.pause(1)
        assert state(deployments) == before

        began = time.time()
        deployments.deploy(version).succeeded()
    assert fixed.partition("=")[2] in deployments.columns()
    verdict.only_these_answered(between(traffic.samples, 0, began), [old])
    deployments.assert_zero_downtime(traffic, [old, deployments.current])
