"""Two rollouts, one of them with a migration, and a rollback: nobody notices, and nothing is lost."""

from __future__ import annotations

import re

from probes import Visitor
from rollouts import Rollouts, between
from traffic import verdict


def stylesheet(visitor: Visitor) -> str:
    """The address that a page of now has for the shop's stylesheet."""
    page = visitor.get("/").body
    found = re.search(r'"(/static/shop/shop\.[^"]+css)"', page)
    assert found, page
    return found[1]


def test_two_rollouts_and_a_rollback(rollouts: Rollouts, old: str) -> None:
    visitor = Visitor(rollouts.app.url, rollouts.app.certificate)
    stylesheets = [stylesheet(visitor)]
    column = rollouts.version("column", "column=note")
    with rollouts.under_load() as traffic:
        before = traffic.pause(5)
        runs, releases = [rollouts.deploy(column).succeeded()], [old, rollouts.current]
        traffic.pause(2)
        runs.append(rollouts.deploy(rollouts.version("text", "style")).succeeded())
        releases.append(rollouts.current)
        stylesheets.append(stylesheet(visitor))
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

    # Whoever still looks at a page of the one has its stylesheet, also when the other serves.
    assert len({*stylesheets}) == 2
    assert [visitor.get(address).status for address in stylesheets] == [200, 200]
    # The database as it was before a migration is kept, and only then.
    dumps = rollouts.host.check_output(f"ls /var/backups/{rollouts.app.name}").split()
    assert f"before-{second}.dump" in dumps
    assert f"before-{third}.dump" not in dumps
    history = rollouts.playbook("playbooks/releases.yml").wait().succeeded().output
    entries = re.findall(r"(deploy|rollback) +(\S+) +\S+@\S+ +[\d.]+ +serves", history)
    assert entries[:3] == [("rollback", second), ("deploy", third), ("deploy", second)], history

    # The version that serves, again.
    assert runs[0].changed > 0
    processes, status = rollouts.processes(), rollouts.status()
    again = rollouts.deploy(column).succeeded()
    assert again.changed == 0, again.output
    assert (rollouts.processes(), rollouts.status()) == (processes, status)


def test_only_one_release_runs_afterwards(rollouts: Rollouts) -> None:
    current = rollouts.current
    assert {name.partition("@")[2] or current for name in rollouts.processes()} == {current}
