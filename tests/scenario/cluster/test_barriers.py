"""Deployments to several hosts: no host goes further than the others, and no request fails."""

from __future__ import annotations

import signal

import pytest
from cluster import Cluster
from deployments import HIGH_LOAD, between, column
from traffic import verdict


def test_deployment_and_rollback(cluster: Cluster, old: str) -> None:
    """With a migration. A second deployment at once is refused, and does not disturb the first, which stands still."""
    source, second = cluster.version("column", column("note")), cluster.version("second-of-two")
    runs, releases = [], [old]
    with cluster.under_load(**HIGH_LOAD) as traffic:
        watch = cluster.watch("build")
        run = cluster.begin_with_ansible(source)
        process = watch.result()["pid"]
        cluster.host.check_output(f"kill -STOP {process}")
        try:
            cluster.deploy_with_ansible(second).failed().says("Another deployment is running")
        finally:
            cluster.host.check_output(f"kill -CONT {process}")
        runs.append(run.wait().succeeded())
        releases.append(cluster.current)
        assert cluster.at("work").current == cluster.current
        traffic.pause(2)
        # The older release lacks the migration.
        runs.append(cluster.rollback_with_ansible(release_force=True).succeeded())
        releases.append(cluster.current)
        traffic.pause(2)

    assert releases[1] != old == releases[2]
    current = {name: status["current"] for name, (status, _) in cluster.everywhere().items()}
    assert current == dict.fromkeys(("front", "work"), old)
    cluster.assert_zero_downtime(traffic, releases)
    began = 0.0
    for number, run in enumerate(runs):
        verdict.releases_took_turns(between(traffic.samples, began, run.ended), releases[number : number + 2])
        began = run.ended


# What is broken, and what the run prints: the first fails on all hosts, the second on the one that serves the site.
BROKEN = {"import-error-in-worker": "a_module_that_is_not_there", "health-500": "status 500"}


def test_failure_on_one_host_is_reverted_on_all(cluster: Cluster, old: str) -> None:
    before = cluster.everywhere()
    with cluster.under_load() as traffic:
        for change, reason in BROKEN.items():
            run = cluster.deploy_with_ansible(cluster.version(change, change)).failed()
            for name in ("front", "work"):
                cluster.at(name).wait_until_idle()
            run.says(reason)
            assert cluster.everywhere() == before, change
    cluster.assert_zero_downtime(traffic, [old])


def test_failure_after_the_switch_is_reverted_on_all(cluster: Cluster, old: str) -> None:
    before = cluster.everywhere()
    with cluster.under_load() as traffic:
        watch = cluster.watch("bake")
        run = cluster.begin_with_ansible(cluster.version("cancelled"))
        watch.result()
        cluster.at("work").host.check_output(f"{cluster.app.name}ctl cancel")
        run.wait().failed().says(old)
        # The run has waited for all hosts.
        assert cluster.everywhere() == before
        traffic.pause(2)
    releases = list(dict.fromkeys(one.release for one in traffic.samples if one.release))
    assert len(releases) == 2
    cluster.assert_zero_downtime(traffic, releases)


def test_next_run_completes_what_lost_its_control_machine(cluster: Cluster, old: str) -> None:
    source = cluster.version("left")
    with cluster.under_load() as traffic:
        watch = cluster.watch("start")
        run = cluster.begin_with_ansible(source)
        watch.result()
        run.signal(signal.SIGKILL)
        run.wait()
        cluster.deploy_with_ansible(source).succeeded()
        traffic.pause(2)
    new = cluster.current
    assert new != old
    assert cluster.at("work").current == new
    cluster.assert_zero_downtime(traffic, [old, new])


@pytest.mark.parametrize(
    ("playbook", "limit", "message"),
    [
        ("playbooks/deploy.yml", "front", "work would be left out"),
        ("playbooks/rotate-secrets.yml", "front,work", "No secret was changed: data would keep the old passwords"),
    ],
)
def test_run_that_leaves_a_host_out_is_refused(
    cluster: Cluster, old: str, playbook: str, limit: str, message: str
) -> None:
    before, password = cluster.everywhere(), cluster.app.secret("redis_password")
    run = cluster.playbook(playbook, f"--limit={limit}", app_source=str(cluster.version("left-out"))).wait().failed()
    assert message in " ".join(run.output.split())
    assert cluster.everywhere() == before
    assert cluster.app.secret("redis_password") == password


def test_secrets_change_on_all_hosts(cluster: Cluster, old: str) -> None:
    """With a new version, as when the project has changed since its last deployment."""
    source = cluster.version("rotated")
    before, redis = cluster.app.secret("redis_password"), cluster.redis_processes()
    with cluster.under_load() as traffic:
        cluster.playbook("playbooks/rotate-secrets.yml", app_source=str(source)).wait().succeeded()
        traffic.pause(3)
    assert cluster.app.secret("redis_password") != before
    assert cluster.redis_processes() == redis
    cluster.assert_zero_downtime(traffic, sorted({one.release for one in traffic.samples if one.release}))
