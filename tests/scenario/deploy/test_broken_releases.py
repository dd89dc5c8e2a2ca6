"""Releases that are broken in every way: none answers a request, and the current release is not touched."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from deployments import Deployments, Run, column
from traffic import Traffic, verdict
from traffic.load import OVERLAY_PAGES

pytestmark = pytest.mark.os("debian12")

# What is broken, and what the deployment prints about it.
BROKEN = {
    "import-error": "a_module_that_is_not_there",
    "import-error-in-web": "a_module_that_is_not_there",
    "import-error-in-worker": "a_module_that_is_not_there",
    "missing-dependency": "9999.",
    "failing-migration": "this migration fails on purpose",
    "health-500": "status 500",
    "health-hangs": "health check",
    "health-names-another": "does not name release",
}
# One of them is deployed with deploy.yml, the others with the program on the host.
WITH_ANSIBLE = "import-error"
# These have started processes when they fail; the others do not depend on the process manager.
STARTED = ("import-error-in-web", "import-error-in-worker")
# Where the health check itself fails, its page does not count.
OTHER_PAGES = [page for page in OVERLAY_PAGES if page != "/healthz/"]


def deploy(deployments: Deployments, change: str) -> Run:
    version = deployments.version(change, change)
    if change == WITH_ANSIBLE:
        return deployments.deploy_with_ansible(version)
    # A page that never answers is waited for no longer than needed; a wrong answer is told at once.
    with deployments.settings(health_check_timeout=8 if change == "health-hangs" else 60):
        return deployments.deploy(version)


def assert_nothing_touched(deployments: Deployments, old: str, changes: Iterable[str]) -> None:
    processes, schema, status = deployments.processes(), deployments.schema(), deployments.status()
    with deployments.under_load() as traffic:
        for change in changes:
            run = deploy(deployments, change).failed().says(BROKEN[change])
            if change.startswith("import-error-in-"):
                run.says(f"Last log lines of {deployments.app.name}-{change.rpartition('-')[2]}")
            traffic.pause(1)
            assert deployments.processes() == processes, change
            assert deployments.schema() == schema, change
            assert deployments.status() == status, change
            assert deployments.is_idle(), (change, deployments.status())
    deployments.assert_zero_downtime(traffic, [old])


def test_broken_releases_touch_nothing(deployments: Deployments, old: str) -> None:
    """One after another. (A failed migration has a test of its own below.)"""
    changes = [change for change in BROKEN if change != "failing-migration"]
    assert_nothing_touched(deployments, old, changes if deployments.manager == "systemd" else STARTED)


@pytest.mark.any_manager
def test_fixed_release_deploys_after_a_failed_migration(deployments: Deployments, old: str) -> None:
    assert_nothing_touched(deployments, old, ["failing-migration"])
    with deployments.under_load() as traffic:
        fixed = column("half")
        deployments.deploy(deployments.version("fixed", fixed)).succeeded()
    assert fixed.partition("=")[2] in deployments.columns()
    deployments.assert_zero_downtime(traffic, [old, deployments.current])


@pytest.mark.any_manager
def test_migration_that_waits_for_a_lock_gives_up(deployments: Deployments, old: str) -> None:
    """The site keeps answering meanwhile, including the page that reads the table."""
    processes, schema = deployments.processes(), deployments.schema()
    version = deployments.version("locked", column("remark"))
    with deployments.under_load() as traffic:
        with deployments.open_transaction("ledger_effect"):
            run = deployments.deploy(version).failed()
        traffic.pause(1)
    run.says("lock")
    assert (deployments.processes(), deployments.schema()) == (processes, schema)
    deployments.assert_zero_downtime(traffic, [old])
    deployments.deploy(version).succeeded()


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


@pytest.mark.any_manager
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


@pytest.mark.any_manager
def test_rollback_to_a_release_without_an_applied_migration_is_refused(
    deployments: Deployments, traffic: Traffic
) -> None:
    before = deployments.current
    deployments.deploy(deployments.version("ahead", column("ahead"))).succeeded()
    ahead, processes = deployments.current, deployments.processes()
    refused = deployments.rollback().failed()
    refused.says("_ahead").says("release_force")
    assert (deployments.current, deployments.processes()) == (ahead, processes)

    deployments.rollback("--force").succeeded()
    assert deployments.current == before
    deployments.assert_zero_downtime(traffic, [before, ahead])
