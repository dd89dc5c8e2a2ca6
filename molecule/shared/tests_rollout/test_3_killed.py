"""Rollouts that are killed at every step, or whose control machine is; two at once. The next run makes it good."""

from __future__ import annotations

import signal
from itertools import cycle

import pytest
from rollouts import STEPS, Rollouts
from traffic import verdict

# Only with something to migrate do these take any time.
MIGRATING = ("snapshot", "migrate")
# One of each kind: the program on the host does not notice who looks on.
LEFT_ALONE_AT = ("build", "migrate", "gate", "handover", "watch", "drain")
HOW = (signal.SIGINT, signal.SIGKILL)


@pytest.mark.os("debian13")
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_rollout_is_made_good_by_the_next(rollouts: Rollouts, old: str, step: str) -> None:
    version = rollouts.version(f"killed-{step}", *([f"column=killed_at_{step}"] if step in MIGRATING else []))
    with rollouts.under_load() as traffic:
        watch = rollouts.watch(step, kill=True)
        run = rollouts.begin(version)
        seen = watch.seen(150)
        print(f"killed at {seen['step']}")
        run.wait().failed()
        rollouts.deploy(version).succeeded()
        traffic.pause(3)
    new = rollouts.current
    assert new != old
    assert rollouts.is_idle()
    assert {name.partition("@")[2] or new for name in rollouts.processes()} == {new}
    rollouts.nothing_suffered(traffic, [old, new])


@pytest.mark.os("debian12")
@pytest.mark.parametrize(("step", "number"), zip(LEFT_ALONE_AT, cycle(HOW), strict=False))
def test_a_rollout_outlives_who_began_it(rollouts: Rollouts, old: str, step: str, number: int) -> None:
    """Ctrl-C, or a lost connection, and then the same again."""
    version = rollouts.version(f"left-{step}", *([f"column=left_at_{step}"] if step in MIGRATING else []))
    with rollouts.under_load() as traffic:
        watch = rollouts.watch(step)
        run = rollouts.begin(version)
        seen = watch.seen(150)
        run.signal(number)
        run.wait(30)
        print(f"left alone at {seen['step']}")
        rollouts.wait_until_idle()
        rollouts.deploy(version).succeeded()
        traffic.pause(2)
    new = rollouts.current
    assert new != old
    assert rollouts.is_idle()
    verdict.releases_took_turns(traffic.samples, [old, new])
    rollouts.nothing_suffered(traffic, [old, new])


@pytest.mark.os("debian13")
def test_a_second_rollout_at_once_is_refused(rollouts: Rollouts, old: str) -> None:
    one, two = rollouts.version("one"), rollouts.version("two")
    with rollouts.under_load() as traffic:
        watch = rollouts.watch("build")
        first = rollouts.begin(one)
        watch.seen(60)
        second = rollouts.deploy(two).failed()
        assert first.process.poll() is None, "the first had ended before the second was refused"
        first.wait().succeeded()
    assert "Another rollout is at work" in second.output
    assert second.ended - second.began < 20
    new = rollouts.current
    rollouts.nothing_suffered(traffic, [old, new])
    assert sorted({name.partition("@")[2] for name in rollouts.processes()} - {""}) == [new]
