"""Releases that are broken in every way: none of them answers a request, and what served before is not touched."""

from __future__ import annotations

import pytest
from rollouts import Rollouts
from traffic import Traffic, verdict
from traffic.load import OVERLAY_PAGES

pytestmark = pytest.mark.os("debian12")

# What is broken, and what the run says about it.
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
# A page that says 500 is no failure of the site where the health check itself is what is broken.
OTHER_PAGES = [page for page in OVERLAY_PAGES if page != "/healthz/"]


# What follows a failed migration is a test of its own, below.
@pytest.mark.parametrize("change", [change for change in BROKEN if change != "failing-migration"])
def test_a_broken_release_touches_nothing(rollouts: Rollouts, old: str, change: str) -> None:
    touches_nothing(rollouts, old, change)


def touches_nothing(rollouts: Rollouts, old: str, change: str) -> None:
    processes, schema, status = rollouts.processes(), rollouts.schema(), rollouts.status()
    # What never answers is waited for no longer than needed.
    options = {"app_health_check_timeout": 12} if change.startswith("health") else {}
    with rollouts.under_load() as traffic:
        run = rollouts.deploy(rollouts.version(change, change), **options).failed()
        traffic.pause(2)
    run.says(BROKEN[change])
    if change.startswith("import-error-in-"):
        run.says(f"Last log lines of {rollouts.app.name}-{change.rpartition('-')[2]}")
    assert rollouts.processes() == processes
    assert rollouts.schema() == schema
    assert rollouts.status() == status
    assert rollouts.is_idle(), rollouts.status()
    rollouts.nothing_suffered(traffic, [old])


def test_the_repaired_release_rolls_out_after_a_failed_migration(rollouts: Rollouts, old: str) -> None:
    touches_nothing(rollouts, old, "failing-migration")
    with rollouts.under_load() as traffic:
        rollouts.deploy(rollouts.version("repaired", "column=half")).succeeded()
    assert "half" in rollouts.columns()
    rollouts.nothing_suffered(traffic, [old, rollouts.current])


def test_a_migration_that_waits_for_a_lock_gives_up(rollouts: Rollouts, old: str) -> None:
    """The site goes on meanwhile, also the page that reads the table."""
    processes, schema = rollouts.processes(), rollouts.schema()
    version = rollouts.version("locked", "column=remark")
    with rollouts.under_load() as traffic:
        with rollouts.held_transaction("ledger_effect"):
            run = rollouts.deploy(version).failed()
        traffic.pause(2)
    run.says("lock")
    assert (rollouts.processes(), rollouts.schema()) == (processes, schema)
    rollouts.nothing_suffered(traffic, [old])
    rollouts.deploy(version).succeeded()


def test_a_release_that_falls_ill_after_the_switch_is_switched_back(rollouts: Rollouts, old: str) -> None:
    processes = rollouts.processes()
    with rollouts.under_load(paths=OTHER_PAGES) as traffic:
        run = rollouts.deploy(rollouts.version("ill", "health-500-once-current")).failed()
        after = traffic.pause(3)
    run.says("status 500")
    assert rollouts.current == old
    assert rollouts.processes() == processes
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered([one for one in traffic.samples if one.start > after[0]], [old])
    rollouts.work_is_done(traffic)


def test_a_command_of_the_application_that_fails_puts_the_old_one_back(rollouts: Rollouts, old: str) -> None:
    """Each at its time, as the application; what fails after the switch is switched back."""
    processes = rollouts.processes()
    names = ["before_migrate", "before_switch", "after_switch"]
    hooks = {name: [f'echo "{name} $(id -un) $RELEASE_ID" >>"$MEDIA_ROOT/hooks"'] for name in names}
    hooks["after_switch"].append("echo it went wrong on purpose; exit 3")
    with rollouts.under_load() as traffic:
        run = rollouts.deploy(rollouts.version("hooks", "column=hooked"), app_hooks=hooks).failed()
        after = traffic.pause(2)
    run.says("it went wrong on purpose")
    ran = [line.split() for line in rollouts.host.check_output(f"cat {rollouts.media}/hooks").splitlines()]
    assert [name for name, *_ in ran] == names
    assert {user for _, user, _ in ran} == {rollouts.app.name}
    assert len({release for *_, release in ran} - {old}) == 1
    assert rollouts.current == old
    assert rollouts.processes() == processes
    verdict.no_request_failed(traffic.samples)
    verdict.only_these_answered([one for one in traffic.samples if one.start > after[0]], [old])
    rollouts.work_is_done(traffic)


def test_a_rollback_to_what_lacks_a_migration_is_refused(rollouts: Rollouts, traffic: Traffic) -> None:
    before = rollouts.current
    rollouts.deploy(rollouts.version("ahead", "column=ahead")).succeeded()
    ahead, processes = rollouts.current, rollouts.processes()
    refused = rollouts.rollback().failed()
    refused.says("_ahead").says("release_force")
    assert (rollouts.current, rollouts.processes()) == (ahead, processes)

    rollouts.rollback(release_force=True).succeeded()
    assert rollouts.current == before
    rollouts.nothing_suffered(traffic, [before, ahead])
