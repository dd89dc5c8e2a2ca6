"""Two rollouts, one of them with a migration, and a rollback: nobody notices, and nothing is lost."""

from __future__ import annotations

from rollouts import Rollouts, between
from traffic import verdict


def test_two_rollouts_and_a_rollback(rollouts: Rollouts, old: str) -> None:
    column = rollouts.version("column", "column=note")
    with rollouts.under_load() as traffic:
        before = traffic.pause(5)
        runs, releases = [rollouts.deploy(column).succeeded()], [old, rollouts.current]
        traffic.pause(2)
        runs.append(rollouts.deploy(rollouts.version("text")).succeeded())
        releases.append(rollouts.current)
        traffic.pause(2)
        runs.append(rollouts.rollback().succeeded())
        releases.append(rollouts.current)
        traffic.pause(5)

    first, second, third, last = releases
    assert len({first, second, third}) == 3
    assert last == second
    rollouts.nothing_suffered(traffic, [first, second, third])

    began = before[0]
    for number, run in enumerate(runs):
        during = between(traffic.samples, began, run.ended)
        verdict.releases_took_turns(during, releases[number : number + 2])
        verdict.one_was_in_flight(during, *releases[number : number + 2])
        began = run.ended
    verdict.only_these_answered(between(traffic.samples, began, began + 100), [last])


def test_only_one_release_runs_afterwards(rollouts: Rollouts) -> None:
    current = rollouts.current
    assert {name.partition("@")[2] or current for name in rollouts.processes()} == {current}
