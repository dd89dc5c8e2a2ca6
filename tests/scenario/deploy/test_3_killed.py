"""Rollouts that are killed at every step, or whose control machine is; two at once. The next run makes it good."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from itertools import cycle

import pytest
from rollouts import STEPS, Rollouts
from traffic import verdict

# Each step is in one of these: a rollout takes long, and what the run before left is there for the next anyway.
CHAINS = [STEPS[first::3] for first in range(3)]
HOW = (signal.SIGINT, signal.SIGKILL)
# These take no time where there is nothing to migrate.
OF_MIGRATIONS = ("snapshot", "migrate")
# Lighter than elsewhere, as there are so many: a visitor every fifth of a second, and always a slow one.
LOAD = {"rate": 5.0, "tasks": 2.0}


@pytest.mark.os("debian13")
@pytest.mark.parametrize("steps", CHAINS, ids="-".join)
def test_a_killed_rollout_is_made_good_by_the_next(rollouts: Rollouts, old: str, steps: Sequence[str]) -> None:
    """The next one too is killed, a few steps later, and so on; the last one is not.

    In the first chain the next one is of another version, in the others of the same.
    """
    names = ["killed", "killed-too"] if steps is CHAINS[0] else ["killed"]
    versions = [rollouts.version(name, f"column=killed_at_{steps[0]}") for name in names]
    releases = {old}
    with rollouts.under_load(**LOAD) as traffic:
        for step, following, version in zip(steps, [*steps[1:], None], cycle(versions), strict=False):
            watch = rollouts.watch(step, kill=True)
            run = rollouts.begin(version)
            seen = watch.seen()["step"]
            print(f"killed at {seen}")
            run.wait().failed()
            assert seen in STEPS[STEPS.index(step) : following and STEPS.index(following)]
            releases.add(rollouts.current)
        rollouts.deploy(versions[-1]).succeeded()
        traffic.pause(3)
    new = rollouts.current
    assert new != old
    assert rollouts.is_idle(), rollouts.status()
    assert {name.partition("@")[2] or new for name in rollouts.processes()} == {new}
    rollouts.nothing_suffered(traffic, sorted(releases | {new}))


@pytest.mark.os("debian12")
@pytest.mark.parametrize("steps", CHAINS, ids="-".join)
def test_a_rollout_outlives_who_began_it(rollouts: Rollouts, old: str, steps: Sequence[str]) -> None:
    """Ctrl-C, or a lost connection, at each step; in the end the same again."""
    releases = [old]
    with rollouts.under_load(**LOAD) as traffic:
        for step, number in zip(steps, cycle(HOW), strict=False):
            columns = [f"column=left_at_{step}"] if step in OF_MIGRATIONS else []
            version = rollouts.version(f"left-at-{step}", *columns)
            watch = rollouts.watch(step)
            run = rollouts.begin(version)
            print(f"left alone at {watch.seen()['step']}")
            run.signal(number)
            run.wait(30)
            rollouts.wait_until_idle()
            releases.append(rollouts.current)
        rollouts.deploy(version).succeeded()
        traffic.pause(2)
    assert rollouts.current == releases[-1]
    assert len({*releases}) == len(releases), "a rollout that was left alone did not come to its end"
    verdict.releases_took_turns(traffic.samples, releases)
    rollouts.nothing_suffered(traffic, releases)


@pytest.mark.os("debian13")
def test_a_second_rollout_at_once_is_refused(rollouts: Rollouts, old: str) -> None:
    one, two = rollouts.version("one"), rollouts.version("two")
    with rollouts.under_load() as traffic:
        watch = rollouts.watch("build")
        first = rollouts.begin(one)
        watch.seen()
        second = rollouts.deploy(two).failed()
        assert first.process.poll() is None, "the first had ended before the second was refused"
        first.wait().succeeded()
    named = r"Another rollout is at work: deploy \S+, begun \d+ s ago by \S+@\S+, now at the step \w+"
    assert re.search(named, " ".join(second.output.split())), second.output
    new = rollouts.current
    rollouts.nothing_suffered(traffic, [old, new])
    assert sorted({name.partition("@")[2] for name in rollouts.processes()} - {""}) == [new]
