"""The harness itself, on a host that is damaged on purpose: each assertion of the verdict fails once, and says why."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from probes import wait_for
from rollouts import Rollouts
from traffic import Traffic, verdict

pytestmark = pytest.mark.os("debian13")
SECONDS = 60


def process(rollouts: Rollouts, kind: str) -> int:
    """The process ID of the current release's web or worker, or of beat."""
    return next(pid for name, pid in rollouts.processes().items() if name.startswith(f"{rollouts.app.name}-{kind}"))


def fails(assertion: Callable, *arguments: object, match: str, **options: object) -> None:
    with pytest.raises(AssertionError, match=match) as error:
        assertion(*arguments, **options)
    print(f"as it should be: {error.value}")


def test_a_sound_host_passes(rollouts: Rollouts, old: str, traffic: Traffic) -> None:
    traffic.pause(8)
    rollouts.nothing_suffered(traffic, [old], bound=5)


def test_killed_processes_of_the_web_fail_requests(rollouts: Rollouts, traffic: Traffic) -> None:
    """A slow request is in flight at any time."""
    traffic.pause(2)
    rollouts.host.check_output(f"pkill -KILL --parent {process(rollouts, 'web')}")
    traffic.pause(3)
    fails(verdict.no_request_failed, traffic.samples, match=r"GET /slow/ .* status 502")


def test_closed_connections_are_seen(rollouts: Rollouts, traffic: Traffic) -> None:
    """nginx's processes end with requests that they have not answered; other visitors see failures too."""
    traffic.pause(1)
    nginx = "--parent $(cat /run/nginx.pid)"
    # A GET on a kept connection has to be under way just then.
    while not any(sample.retried for sample in traffic.samples) and len(traffic.samples) < 300:
        rollouts.host.check_output(f"pkill -STOP {nginx}; sleep 1; pkill -KILL {nginx}")
        traffic.pause(1)
    fails(verdict.no_connection_was_cut, traffic.samples, match="had to be made twice")


def test_a_web_that_stands_still_is_slow(rollouts: Rollouts, traffic: Traffic) -> None:
    before = traffic.pause(10)
    web = process(rollouts, "web")
    rollouts.host.check_output(f"pkill -STOP --parent {web}; sleep 4; pkill -CONT --parent {web}")
    during = before[1], traffic.pause(8)[1]
    fails(verdict.latency_stayed, traffic.samples, before, during, match="times the p99 before")


def test_an_answer_of_another_release_is_seen(old: str, traffic: Traffic) -> None:
    traffic.pause(2)
    fails(verdict.only_these_answered, traffic.samples, ["0123456789ab-cdef01"], match=f"by {old}")


def test_a_beat_that_stands_still_is_late(rollouts: Rollouts, traffic: Traffic) -> None:
    beat = process(rollouts, "beat")
    traffic.pause(3)
    rollouts.host.check_output(f"kill -STOP {beat}; sleep 5; kill -CONT {beat}")
    resumed = time.time()
    wait_for(lambda: any(tick.sent_at > resumed for tick in rollouts.ledger().ticks), 20, "beat ticks again")
    ledger = rollouts.ledger().since(traffic.samples[0].start)
    fails(verdict.ticks_kept_time, ledger, 3, match="without a tick")


def test_a_second_beat_ticks_twice(rollouts: Rollouts, traffic: Traffic) -> None:
    name = rollouts.app.name
    celery = f"/srv/{name}/current/.venv/bin/celery -A core beat --schedule=/tmp/second --pidfile="
    variables = f"set -a; . /etc/{name}/app.env; . /srv/{name}/current/release.env; set +a"
    second = f"cd /srv/{name}/current && {variables}; timeout 20 runuser -u {name} -- {celery}"
    rollouts.host.run(second)
    traffic.pause(2)
    ledger = rollouts.ledger().since(traffic.samples[0].start)
    fails(verdict.no_tick_twice, ledger, match="ticks were sent twice")


def test_a_queue_that_is_emptied_by_hand_loses_tasks(rollouts: Rollouts, traffic: Traffic) -> None:
    traffic.start_task("ledger.sleep", 10)
    lost = traffic.start_task("ledger.sleep", 1)
    time.sleep(1)
    url = f'"$(. /etc/{rollouts.app.name}/app.env && echo "$CELERY_BROKER_URL")"'
    assert rollouts.host.check_output(f"redis-cli --no-auth-warning -u {url} DEL heavy") == "1"
    traffic.pause(1)
    ledger = verdict.settle(rollouts.ledger, [one for one in traffic.sent if one.id != lost.id], 20)
    fails(verdict.none_lost, traffic.sent, ledger, match=f"{lost.id}, never started")


def test_a_task_that_began_twice_is_seen(rollouts: Rollouts, traffic: Traffic) -> None:
    task = traffic.start_task("ledger.sleep", 8)
    wait_for(lambda: task.id in {entry.id for entry in rollouts.ledger().of("START")}, 15, "the task has started")
    rollouts.host.check_output(f"pkill -KILL --parent {process(rollouts, 'worker-heavy')}")
    ledger = verdict.settle(rollouts.ledger, [task], SECONDS)
    verdict.none_lost([task], ledger)
    fails(verdict.none_ran_twice, ledger, {task.id}, match=f"{task.id}: 2 times")


def test_an_effect_that_was_had_twice_is_seen(rollouts: Rollouts, traffic: Traffic) -> None:
    traffic.pause(2)
    verdict.settle(rollouts.ledger, list(traffic.sent), SECONDS)
    key = next(one.key for one in traffic.sent if one.key)
    file = f"{rollouts.media}/ledger/ledger.jsonl"
    rollouts.host.check_output(f"grep -F '\"{key}\"' {file} >/run/doubled && cat /run/doubled >>{file}")
    fails(verdict.each_effect_once, traffic.sent, rollouts.ledger(), match=f"{key}: 2 times")
