"""Two deployments, one of them with a migration, and a rollback under load: no request fails and no task is lost."""

from __future__ import annotations

import re

from deployments import HIGH_LOAD, Deployments, between, column
from probes import Visitor
from traffic import verdict


def stylesheet(visitor: Visitor) -> str:
    """Return the path of the shop's stylesheet, from a page."""
    page = visitor.get("/").body
    found = re.search(r'"(/static/shop/shop\.[^"]+css)"', page)
    assert found, page
    return found[1]


def test_two_deployments_and_a_rollback(deployments: Deployments, old: str) -> None:
    """Through Ansible under systemd; with the program on the host under Supervisor."""
    with_ansible = deployments.manager == "systemd"
    deploy = deployments.deploy_with_ansible if with_ansible else deployments.deploy
    visitor = Visitor(deployments.app.url, deployments.app.certificate)
    stylesheets = [stylesheet(visitor)]
    with_column = deployments.version("column", column("note"))
    with deployments.under_load(**HIGH_LOAD) as traffic:
        before = traffic.pause(3)
        runs, releases = [deploy(with_column).succeeded()], [old, deployments.current]
        switches = [deployments.switched]
        traffic.pause(2)
        runs.append(deployments.deploy(deployments.version("text", "style")).succeeded())
        releases.append(deployments.current)
        switches.append(deployments.switched)
        stylesheets.append(stylesheet(visitor))
        traffic.pause(2)
        rollback = deployments.rollback_with_ansible if with_ansible else deployments.rollback
        runs.append(rollback().succeeded())
        releases.append(deployments.current)
        switches.append(deployments.switched)
        traffic.pause(4)

    first, second, third, last = releases
    assert len({first, second, third}) == 3
    assert last == second
    deployments.assert_zero_downtime(traffic, [first, second, third])

    began = before[0]
    for number, run in enumerate(runs):
        during = between(traffic.samples, began, run.ended)
        verdict.releases_took_turns(during, releases[number : number + 2])
        verdict.one_was_in_flight(during, releases[number], switches[number])
        began = run.ended
    verdict.only_these_answered(between(traffic.samples, began, began + 100), [last])

    # A page of either release finds its stylesheet, whichever release is current.
    assert len({*stylesheets}) == 2
    assert [visitor.get(path).status for path in stylesheets] == [200, 200]
    # The database is dumped before a migration, and only then.
    dumps = deployments.host.check_output(f"ls /var/backups/{deployments.app.name}").split()
    assert f"before-{second}.dump" in dumps
    assert f"before-{third}.dump" not in dumps
    listing = deployments.playbook("playbooks/releases.yml") if with_ansible else deployments.control("releases")
    history = listing.wait().succeeded().output
    entries = re.findall(r"(deploy|rollback) +(\S+) +\S+(?:@\S+)? +[\d.]+ +succeeded", history)
    assert entries[:3] == [("rollback", second), ("deploy", third), ("deploy", second)], history

    # Deploying the current version again changes nothing.
    assert not with_ansible or runs[0].changed > 0
    processes, status = deployments.processes(), deployments.status()
    again = deploy(with_column).succeeded()
    assert again.changed == 0, again.output
    assert (deployments.processes(), deployments.status()) == (processes, status)
    assert deployments.running_releases() == {second}
