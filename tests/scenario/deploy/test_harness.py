"""The harness itself, on a host that is damaged on purpose: each assertion of the verdict fails once."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from deployments import HIGH_LOAD, Deployments
from probes import wait_for
from traffic import Sent, Traffic, verdict

pytestmark = pytest.mark.os("debian13")
SECONDS = 60


def process(deployments: Deployments, kind: str) -> int:
    """Return the process ID of the current release's web or worker, or of beat."""
    prefix = f"{deployments.app.name}-{kind}"
    return next(pid for name, pid in deployments.processes().items() if name.startswith(prefix))


def assert_fails(assertion: Callable, *arguments: object, match: str, **options: object) -> None:
    with pytest.raises(AssertionError, match=match) as error:
        assertion(*arguments, **options)
    print(f"as expected: {error.value}")


@contextmanager
def running_task(deployments: Deployments, traffic: Traffic) -> Iterator[Sent]:
    """A task that the worker of its queue, with a single place, runs until this ends."""
    deployments.hold_tasks()
    try:
        task = traffic.start_task("ledger.wait")
        wait_for(lambda: starts(deployments, task) > 0, SECONDS, "the task has started")
        yield task
    finally:
        deployments.release_tasks()


def starts(deployments: Deployments, task: Sent) -> int:
    return sum(entry.id == task.id for entry in deployments.ledger().of("START"))


def test_failing_requests_are_found(deployments: Deployments, old: str) -> None:
    """A healthy host passes. Then its requests are slow, fail, and are not answered."""
    with deployments.under_load(**HIGH_LOAD) as traffic:
        before = traffic.pause(13)
        deployments.assert_zero_downtime(traffic, [old], bound=5)
        # An answer of another release would be found.
        assert_fails(verdict.only_these_answered, traffic.samples, ["0123456789ab-cdef01"], match=f"by {old}")
        assert_stopped_web_is_slow(deployments, traffic, before)
        assert_killed_web_processes_fail_requests(deployments, traffic)
        assert_closed_connections_are_found(deployments, traffic)


def assert_stopped_web_is_slow(deployments: Deployments, traffic: Traffic, before: tuple[float, float]) -> None:
    web = process(deployments, "web")
    # Longer on a machine that was slow before.
    seconds = 4 + 2 * verdict.percentile(verdict.latencies(traffic.samples, before), 99)
    began = time.time()
    deployments.host.check_output(f"pkill -STOP --parent {web}; sleep {seconds:.1f}; pkill -CONT --parent {web}")
    during = began, traffic.pause(10)[1]
    assert_fails(verdict.latency_stayed, traffic.samples, before, during, match="times the p99 before")


def assert_killed_web_processes_fail_requests(deployments: Deployments, traffic: Traffic) -> None:
    """A slow request is in flight at any time."""
    known = len(traffic.samples)
    deployments.host.check_output(f"pkill -KILL --parent {process(deployments, 'web')}")
    slow = "a slow request fails"
    traffic.wait(lambda now: any(one.failed and one.name == verdict.SLOW for one in now.samples[known:]), SECONDS, slow)
    assert_fails(verdict.no_request_failed, traffic.samples[known:], match=r"GET /slow/ .* status 502")


def assert_closed_connections_are_found(deployments: Deployments, traffic: Traffic) -> None:
    """nginx's workers end with requests unanswered; other visitors see failures too."""
    nginx, known = "--parent $(cat /run/nginx.pid)", len(traffic.samples)
    # A GET on a kept connection has to be under way just then.
    while not any(sample.retried for sample in traffic.samples[known:]) and len(traffic.samples) < known + 300:
        deployments.host.check_output(f"pkill -STOP {nginx}; sleep 1; pkill -KILL {nginx}")
        traffic.pause(1)
    assert_fails(verdict.no_connection_was_cut, traffic.samples[known:], match="had to be made twice")


def test_lost_and_doubled_tasks_are_found(deployments: Deployments, traffic: Traffic) -> None:
    # In this order: a tick that comes late after a stop may be close to the next, and the last one loses tasks.
    assert_second_beat_ticks_twice(deployments, traffic)
    assert_stopped_beat_is_late(deployments, traffic)
    assert_effect_that_happened_twice_is_found(deployments, traffic)
    assert_task_that_started_twice_is_found(deployments, traffic)
    assert_emptied_queue_loses_tasks(deployments, traffic)


def assert_second_beat_ticks_twice(deployments: Deployments, traffic: Traffic) -> None:
    name = deployments.app.name
    celery = f"/srv/{name}/current/.venv/bin/celery -A core beat --schedule=/tmp/second --pidfile="
    variables = f"set -a; . /etc/{name}/next/app.env; . /srv/{name}/current/release.env; set +a"
    second = f"cd /srv/{name}/current && {variables}; timeout {2 * SECONDS} runuser -u {name} -- {celery}"

    def found() -> bool:
        try:
            verdict.no_tick_twice(deployments.ledger().since(traffic.samples[0].start))
        except AssertionError as error:
            return "ticks were sent twice" in str(error)
        return False

    beat = deployments.start(deployments.ssh(second))
    try:
        wait_for(lambda: found() or beat.process.poll() is not None, SECONDS, "the second beat ticks", pause=1)
    finally:
        deployments.host.run(f"pkill -KILL -f {shlex.quote('[b]eat --schedule=/tmp/second')}")
        beat.wait()
    ledger = deployments.ledger().since(traffic.samples[0].start)
    assert_fails(verdict.no_tick_twice, ledger, match="ticks were sent twice")


def assert_stopped_beat_is_late(deployments: Deployments, traffic: Traffic) -> None:
    beat = process(deployments, "beat")
    began = time.time()
    traffic.pause(3)
    deployments.host.check_output(f"kill -STOP {beat}; sleep 5; kill -CONT {beat}")
    resumed = time.time()
    wait_for(lambda: any(tick.sent_at > resumed for tick in deployments.ledger().ticks), SECONDS, "beat ticks again")
    ledger = deployments.ledger().since(began)
    assert_fails(verdict.ticks_kept_time, ledger, 3, match="without a tick")


def assert_effect_that_happened_twice_is_found(deployments: Deployments, traffic: Traffic) -> None:
    verdict.settle(deployments.ledger, list(traffic.sent), SECONDS)
    key = next(one.key for one in traffic.sent if one.key)
    file = f"{deployments.media}/ledger/ledger.jsonl"
    deployments.host.check_output(f"grep -F '\"{key}\"' {file} >/run/doubled && cat /run/doubled >>{file}")
    assert_fails(verdict.each_effect_once, traffic.sent, deployments.ledger(), match=f"{key}: 2 times")


def assert_task_that_started_twice_is_found(deployments: Deployments, traffic: Traffic) -> None:
    with running_task(deployments, traffic) as task:
        deployments.host.check_output(f"pkill -KILL --parent {process(deployments, 'worker-heavy')}")
        wait_for(lambda: starts(deployments, task) > 1, SECONDS, "it has started again")
    ledger = verdict.settle(deployments.ledger, [task], SECONDS)
    verdict.none_lost([task], ledger)
    assert_fails(verdict.none_ran_twice, ledger, {task.id}, match=f"{task.id}: 2 times")


def assert_emptied_queue_loses_tasks(deployments: Deployments, traffic: Traffic) -> None:
    url = f'"$(. /etc/{deployments.app.name}/next/app.env && echo "$CELERY_BROKER_URL")"'
    with running_task(deployments, traffic):
        lost = traffic.start_task("ledger.sleep", 1)
        assert deployments.host.check_output(f"redis-cli --no-auth-warning -u {url} DEL heavy") == "1"
    traffic.pause(1)
    ledger = verdict.settle(deployments.ledger, [one for one in traffic.sent if one.id != lost.id], 12)
    assert_fails(verdict.none_lost, traffic.sent, ledger, match=f"{lost.id}, never started")
