"""The harness itself, on a host that is damaged on purpose: each assertion of the verdict fails once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from deployments import HIGH_LOAD, Deployments
from probes import wait_for
from traffic import Traffic, verdict

pytestmark = [pytest.mark.os("debian13"), pytest.mark.any_manager]
SECONDS = 60


@pytest.fixture
def heavy_traffic(deployments: Deployments, old: str) -> Iterator[Traffic]:
    with deployments.under_load(**HIGH_LOAD) as traffic:
        yield traffic


def process(deployments: Deployments, kind: str) -> int:
    """Return the process ID of the current release's web or worker, or of beat."""
    prefix = f"{deployments.app.name}-{kind}"
    return next(pid for name, pid in deployments.processes().items() if name.startswith(prefix))


def fails(assertion: Callable, *arguments: object, match: str, **options: object) -> None:
    with pytest.raises(AssertionError, match=match) as error:
        assertion(*arguments, **options)
    print(f"as expected: {error.value}")


def test_healthy_host_passes(deployments: Deployments, old: str, traffic: Traffic) -> None:
    traffic.pause(6)
    deployments.assert_zero_downtime(traffic, [old], bound=5)
    # An answer of another release would be found.
    fails(verdict.only_these_answered, traffic.samples, ["0123456789ab-cdef01"], match=f"by {old}")


def test_killed_web_processes_fail_requests(deployments: Deployments, traffic: Traffic) -> None:
    """A slow request is in flight at any time."""
    traffic.pause(2)
    deployments.host.check_output(f"pkill -KILL --parent {process(deployments, 'web')}")
    traffic.wait(lambda now: any(one.failed for one in now.samples), 20, "a request fails")
    fails(verdict.no_request_failed, traffic.samples, match=r"GET /slow/ .* status 502")


def test_closed_connections_are_found(deployments: Deployments, heavy_traffic: Traffic) -> None:
    """nginx's workers end with requests unanswered; other visitors see failures too."""
    heavy_traffic.pause(1)
    nginx = "--parent $(cat /run/nginx.pid)"
    # A GET on a kept connection has to be under way just then.
    while not any(sample.retried for sample in heavy_traffic.samples) and len(heavy_traffic.samples) < 300:
        deployments.host.check_output(f"pkill -STOP {nginx}; sleep 1; pkill -KILL {nginx}")
        heavy_traffic.pause(1)
    fails(verdict.no_connection_was_cut, heavy_traffic.samples, match="had to be made twice")


def test_stopped_web_is_slow(deployments: Deployments, heavy_traffic: Traffic) -> None:
    before = heavy_traffic.pause(13)
    web = process(deployments, "web")
    deployments.host.check_output(f"pkill -STOP --parent {web}; sleep 4; pkill -CONT --parent {web}")
    during = before[1], heavy_traffic.pause(10)[1]
    fails(verdict.latency_stayed, heavy_traffic.samples, before, during, match="times the p99 before")


def test_stopped_beat_is_late(deployments: Deployments, traffic: Traffic) -> None:
    beat = process(deployments, "beat")
    traffic.pause(3)
    deployments.host.check_output(f"kill -STOP {beat}; sleep 5; kill -CONT {beat}")
    resumed = time.time()
    wait_for(lambda: any(tick.sent_at > resumed for tick in deployments.ledger().ticks), 20, "beat ticks again")
    ledger = deployments.ledger().since(traffic.samples[0].start)
    fails(verdict.ticks_kept_time, ledger, 3, match="without a tick")


def test_second_beat_ticks_twice(deployments: Deployments, traffic: Traffic) -> None:
    name = deployments.app.name
    celery = f"/srv/{name}/current/.venv/bin/celery -A core beat --schedule=/tmp/second --pidfile="
    variables = f"set -a; . /etc/{name}/next/app.env; . /srv/{name}/current/release.env; set +a"
    second = f"cd /srv/{name}/current && {variables}; timeout 15 runuser -u {name} -- {celery}"
    deployments.host.run(second)
    traffic.pause(2)
    ledger = deployments.ledger().since(traffic.samples[0].start)
    fails(verdict.no_tick_twice, ledger, match="ticks were sent twice")


def test_emptied_queue_loses_tasks(deployments: Deployments, traffic: Traffic) -> None:
    traffic.start_task("ledger.sleep", 8)
    lost = traffic.start_task("ledger.sleep", 1)
    time.sleep(1)
    url = f'"$(. /etc/{deployments.app.name}/next/app.env && echo "$CELERY_BROKER_URL")"'
    assert deployments.host.check_output(f"redis-cli --no-auth-warning -u {url} DEL heavy") == "1"
    traffic.pause(1)
    ledger = verdict.settle(deployments.ledger, [one for one in traffic.sent if one.id != lost.id], 12)
    fails(verdict.none_lost, traffic.sent, ledger, match=f"{lost.id}, never started")


def test_task_that_started_twice_is_found(deployments: Deployments, traffic: Traffic) -> None:
    task = traffic.start_task("ledger.sleep", 6)
    wait_for(lambda: task.id in {entry.id for entry in deployments.ledger().of("START")}, 15, "the task has started")
    deployments.host.check_output(f"pkill -KILL --parent {process(deployments, 'worker-heavy')}")
    ledger = verdict.settle(deployments.ledger, [task], SECONDS)
    verdict.none_lost([task], ledger)
    fails(verdict.none_ran_twice, ledger, {task.id}, match=f"{task.id}: 2 times")


def test_effect_that_happened_twice_is_found(deployments: Deployments, traffic: Traffic) -> None:
    traffic.pause(2)
    verdict.settle(deployments.ledger, list(traffic.sent), SECONDS)
    key = next(one.key for one in traffic.sent if one.key)
    file = f"{deployments.media}/ledger/ledger.jsonl"
    deployments.host.check_output(f"grep -F '\"{key}\"' {file} >/run/doubled && cat /run/doubled >>{file}")
    fails(verdict.each_effect_once, traffic.sent, deployments.ledger(), match=f"{key}: 2 times")
