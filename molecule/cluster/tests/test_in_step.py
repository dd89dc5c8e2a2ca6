"""Rollouts on several hosts: none goes further than the others, and nobody notices."""

from __future__ import annotations

import signal

import pytest
from cluster import Cluster
from rollouts import between
from traffic import verdict


def test_rollouts_and_a_rollback(cluster: Cluster, old: str) -> None:
    """One with a migration, one without, and back from that."""
    column = cluster.version("column", "column=note")
    with cluster.under_load() as traffic:
        runs, releases = [], [old]
        # The second version is made when the database has the first one's column.
        for roll in (
            lambda: cluster.deploy(column),
            lambda: cluster.deploy(cluster.version("text")),
            cluster.rollback,
        ):
            runs.append(roll().succeeded())
            releases.append(cluster.current)
            traffic.pause(2)

    assert len(set(releases)) == 3
    assert releases[3] == releases[1]
    assert {name: status["current"] for name, (status, _) in cluster.everywhere().items()} == dict.fromkeys(
        ("front", "work"), releases[3]
    )
    cluster.nothing_suffered(traffic, releases)
    began = 0.0
    for number, run in enumerate(runs):
        verdict.releases_took_turns(between(traffic.samples, began, run.ended), releases[number : number + 2])
        began = run.ended


# What is broken, and what the run says about it: the first on all hosts, the second on the one that answers visitors.
BROKEN = {"import-error-in-worker": "a_module_that_is_not_there", "health-500": "status 500"}


@pytest.mark.parametrize("change", BROKEN)
def test_what_fails_anywhere_is_put_back_on_all(cluster: Cluster, old: str, change: str) -> None:
    before = cluster.everywhere()
    with cluster.under_load() as traffic:
        # What never answers is waited for no longer than needed.
        run = cluster.deploy(cluster.version(change, change), app_health_check_timeout=15).failed()
        for name in ("front", "work"):
            cluster.at(name).wait_until_idle()
    run.says(BROKEN[change])
    assert cluster.everywhere() == before
    cluster.nothing_suffered(traffic, [old])


def test_what_fails_after_the_switch_is_switched_back_on_all(cluster: Cluster, old: str) -> None:
    before = cluster.everywhere()
    with cluster.under_load() as traffic:
        watch = cluster.watch("watch")
        run = cluster.begin(cluster.version("called-off"))
        watch.seen()
        cluster.at("work").host.check_output(f"{cluster.app.name}ctl cancel")
        print(run.wait().failed().output)
        # The run has waited for it.
        assert cluster.everywhere() == before
        traffic.pause(2)
    assert f"front: Switched back to release {old}." in run.output
    assert "work: Release" in run.output.rpartition("It was cancelled.")[0]
    releases = list(dict.fromkeys(one.release for one in traffic.samples if one.release))
    assert len(releases) == 2
    cluster.nothing_suffered(traffic, releases)


def test_the_next_run_leads_on_what_lost_its_control_machine(cluster: Cluster, old: str) -> None:
    source = cluster.version("left")
    with cluster.under_load() as traffic:
        watch = cluster.watch("start")
        run = cluster.begin(source)
        watch.seen()
        run.signal(signal.SIGKILL)
        run.wait()
        cluster.deploy(source).succeeded()
        traffic.pause(2)
    new = cluster.current
    assert new != old
    assert cluster.at("work").current == new
    cluster.nothing_suffered(traffic, [old, new])


def test_a_second_rollout_is_refused_and_does_not_disturb_the_first(cluster: Cluster, old: str) -> None:
    first, second = cluster.version("first-of-two"), cluster.version("second-of-two")
    watch = cluster.watch("build")
    run = cluster.begin(first)
    watch.seen()
    refused = cluster.deploy(second).failed()
    assert "Another rollout is at work" in refused.output
    run.wait().succeeded()
    assert old != cluster.current == cluster.at("work").current
    processes = cluster.everywhere()
    again = cluster.deploy(first).succeeded()
    assert again.changed == 0, again.output
    assert cluster.everywhere() == processes


@pytest.mark.parametrize(
    ("playbook", "limit"), [("playbooks/deploy.yml", "front"), ("playbooks/rotate-secrets.yml", "front,work")]
)
def test_a_run_that_leaves_a_host_out_is_refused(cluster: Cluster, old: str, playbook: str, limit: str) -> None:
    before, password = cluster.everywhere(), cluster.app.secret("redis_password")
    run = cluster.playbook(playbook, f"--limit={limit}", app_source=str(cluster.version("left-out"))).wait().failed()
    assert "would be left out" in run.output
    assert cluster.everywhere() == before
    assert cluster.app.secret("redis_password") == password


def test_secrets_change_on_all_hosts(cluster: Cluster, old: str) -> None:
    source = cluster.version("rotated")
    cluster.deploy(source).succeeded()
    before, redis = cluster.app.secret("redis_password"), cluster.redis_processes()
    with cluster.under_load() as traffic:
        cluster.playbook("playbooks/rotate-secrets.yml", app_source=str(source)).wait().succeeded()
        traffic.pause(3)
    assert cluster.app.secret("redis_password") != before
    assert cluster.redis_processes() == redis
    cluster.nothing_suffered(traffic, sorted({one.release for one in traffic.samples if one.release}))
