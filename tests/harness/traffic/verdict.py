"""Assertions about requests, tasks and the ledger. Every function raises AssertionError with the first offenders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

from traffic.ledger import Ledger
from traffic.load import Sample, Sent

FIRST = 5
# Ticks are a second apart; closer than this, two are one tick sent twice, unless the first of them was late.
CLOSEST_TICKS = 0.5
SLOW = "GET /slow/"
# Below so few samples a 99th percentile says nothing.
FEWEST = 100


def offenders(found: Iterable[object], total: int, what: str) -> str:
    """Return a sentence and the first offenders."""
    found = list(found)
    lines = "".join(f"\n    {one}" for one in found[:FIRST])
    more = f"\n    ... and {len(found) - FIRST} more" if len(found) > FIRST else ""
    return f"{len(found)} of {total} {what}:{lines}{more}"


def clock(at: float) -> str:
    return time.strftime("%T", time.localtime(at)) + f"{at % 1:.3f}"[1:]


# --- Requests ----------------------------------------------------------------------------


def no_request_failed(samples: Sequence[Sample]) -> None:
    """Every request had a complete answer with a 2xx status, and there were some."""
    assert samples, "no request was made"
    failed = [sample for sample in samples if sample.failed]
    assert not failed, offenders(failed, len(samples), "requests failed")


def no_connection_was_cut(samples: Sequence[Sample]) -> None:
    """No kept connection was closed under a request, which a browser hides by repeating it."""
    assert any(sample.kept for sample in samples), "no request came on a kept connection"
    cut = [sample for sample in samples if sample.retried]
    assert not cut, offenders(cut, len(samples), "requests had to be made twice, since their connection was closed")


def loop_was_open(samples: Sequence[Sample], bound: float = 1.0) -> None:
    """This program started its requests in time, so that it measured the site."""
    assert samples, "no request was made"
    late = percentile([sample.late for sample in samples], 99)
    assert late <= bound, f"the load itself was late by {late:.2f} s (99th percentile): this machine was too busy"


def only_these_answered(samples: Sequence[Sample], releases: Collection[str]) -> None:
    """No request was answered by any other release."""
    answered = [sample for sample in samples if sample.release]
    assert answered, "no answer names its release"
    others = [sample for sample in answered if sample.release not in releases]
    assert not others, offenders(others, len(answered), f"answers came from another release than {', '.join(releases)}")


def releases_took_turns(samples: Sequence[Sample], releases: Sequence[str]) -> None:
    """The releases answered in this order: after a release has answered, no request is answered by an earlier one."""
    only_these_answered(samples, releases)
    seen = {release: [sample for sample in samples if sample.release == release] for release in releases}
    silent = [release for release in releases if not seen[release]]
    assert not silent, f"no request was answered by {', '.join(silent)}"
    for before, after in pairwise(releases):
        first = min(sample.end for sample in seen[after])
        stale = [sample for sample in seen[before] if sample.start > first]
        what = f"requests were answered by {before} after {after} had answered, at {clock(first)}"
        assert not stale, offenders(stale, len(seen[before]), what)


def one_was_in_flight(samples: Sequence[Sample], before: str, switched: float) -> None:
    """A slow request that the old release had begun to answer succeeded after the switch, `switched` by the clock."""
    slow = [sample for sample in samples if sample.name == SLOW]
    across = [one for one in slow if one.start < switched < one.end]
    assert across, f"none of {len(slow)} slow requests was in flight at the switch, {clock(switched)}"
    broken = [one for one in across if one.failed]
    assert not broken, offenders(broken, len(across), "slow requests in flight failed")
    # One that had not reached its release at the switch is the new one's.
    begun = [one for one in across if one.release == before]
    assert begun, offenders(across, len(slow), f"slow requests were in flight, and none of them was begun by {before}")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def latencies(samples: Sequence[Sample], span: tuple[float, float]) -> list[float]:
    """Return the latencies of the requests that started in a span of time, without those that are slow on purpose."""
    began, ended = span
    return [sample.latency for sample in samples if sample.name != SLOW and began <= sample.start < ended]


def latency_stayed(
    samples: Sequence[Sample],
    before: tuple[float, float],
    during: tuple[float, float],
    *,
    factor: float = 2.0,
    percent: float = 99,
) -> None:
    """The 99th percentile (or another) during is at most `factor` times that before."""
    usual, then = latencies(samples, before), latencies(samples, during)
    for span, values in {"before": usual, "during": then}.items():
        assert len(values) >= FEWEST, f"only {len(values)} requests {span}: too few for a percentile"
    bound, worst = percentile(usual, percent) * factor, percentile(then, percent)
    slow = [sample for sample in samples if during[0] <= sample.start < during[1] and sample.latency > bound]
    slow = sorted((sample for sample in slow if sample.name != SLOW), key=lambda sample: -sample.latency)
    what = (
        f"requests took longer than {bound * 1000:.0f} ms, {factor:g} times the p{percent:g} before; "
        f"it was {worst * 1000:.0f} ms"
    )
    assert worst <= bound, offenders(slow, len(then), what)


# --- Tasks -------------------------------------------------------------------------------


def none_lost(sent: Sequence[Sent], ledger: Ledger) -> None:
    """Every task that the site accepted has succeeded."""
    assert sent, "no task was sent"
    started = {entry.id for entry in ledger.of("START")}
    lost = [one for one in sent if one.id not in ledger.ended]
    lines = (
        f"{clock(one.at)} {one.name} {one.id}, {'started but not ended' if one.id in started else 'never started'}"
        for one in lost
    )
    assert not lost, offenders(lines, len(sent), "tasks were lost")
    failed = [f"{clock(one.at)} {one.name} {one.id} by {one.worker}: {one.state}" for one in ledger.failures]
    assert not failed, offenders(failed, len(sent), "tasks failed")


def each_effect_once(sent: Sequence[Sent], ledger: Ledger) -> None:
    """Every effect happened exactly once."""
    wanted = [one.key for one in sent if one.key]
    assert wanted, "no task with an effect was sent"
    had = ledger.effects
    wrong = [f"{key}: {had[key]} times" for key in wanted if had[key] != 1]
    assert not wrong, offenders(wrong, len(wanted), "effects did not happen exactly once")


def none_ran_twice(ledger: Ledger, ids: Iterable[str] | None = None) -> None:
    """No task was started a second time. (After a crash, one may be.)"""
    twice = [f"{task}: {count} times" for task, count in ledger.twice(ids).items()]
    assert not twice, offenders(twice, len(ledger.of("START")), "tasks were started more than once")


# --- Ticks -------------------------------------------------------------------------------


def no_tick_twice(ledger: Ledger) -> None:
    """Beat sent no tick twice (two of them would), and no worker ran one twice."""
    ticks = ledger.ticks
    assert ticks, "there was no tick at all"
    # A tick that its machine held up is soon followed by the next, which is in time: two seconds after the one before.
    close = [
        f"{clock(one.sent_at)} by {one.sent_by} and {clock(two.sent_at)} by {two.sent_by}"
        for before, one, two in zip([ticks[0], *ticks], ticks, ticks[1:], strict=False)
        if two.sent_at - one.sent_at < CLOSEST_TICKS and two.sent_at - before.sent_at < 1 + CLOSEST_TICKS
    ]
    assert not close, offenders(close, len(ticks), "ticks were sent twice")
    none_ran_twice(ledger, {tick.id for tick in ticks})


def ticks_kept_time(ledger: Ledger, bound: float, span: tuple[float, float] | None = None) -> None:
    """No two ticks, and neither end of the span and its next tick, are further apart than `bound` seconds."""
    times = [tick.sent_at for tick in ledger.ticks]
    if span:
        times = [span[0], *(at for at in times if span[0] < at < span[1]), span[1]]
    assert len(times) > 1, "there were too few ticks to compare"
    gaps = [
        f"{two - one:.1f} s without a tick from {clock(one)} on" for one, two in pairwise(times) if two - one > bound
    ]
    assert not gaps, offenders(gaps, len(times) - 1, f"ticks were later than {bound:g} s")


def longest_gap(ledger: Ledger) -> float:
    """Seconds between two ticks, at most."""
    return max((two.sent_at - one.sent_at for one, two in pairwise(ledger.ticks)), default=0.0)


# --- All of it ---------------------------------------------------------------------------


def settle(look: Callable[[], Ledger], sent: Sequence[Sent], seconds: float) -> Ledger:
    """Wait until every task has ended, at most that many seconds; return the ledger."""
    deadline = time.monotonic() + seconds
    while True:
        ledger = look()
        if {one.id for one in sent} <= ledger.ended or time.monotonic() > deadline:
            return ledger
        time.sleep(0.5)


def summary(samples: Sequence[Sample], sent: Sequence[Sent] = (), ledger: Ledger | None = None) -> str:
    """Return a summary in a few lines."""
    usual = [sample.latency for sample in samples if sample.name != SLOW]
    if not usual:
        return "no request was made"
    order = [samples[0].release] if samples else []
    for sample in sorted(samples, key=lambda one: one.start):
        if sample.release and sample.release != order[-1]:
            order.append(sample.release)
    failed = [sample for sample in samples if sample.failed]
    retried = sum(sample.retried for sample in samples)
    lines = [
        f"requests  {len(samples)}, failed {len(failed)}, retried {retried}",
        f"latency   p50 {percentile(usual, 50) * 1000:.0f} ms, p99 {percentile(usual, 99) * 1000:.0f} ms, "
        f"worst {max(usual) * 1000:.0f} ms",
        f"releases  {' > '.join(turn for turn in order if turn) or 'not named'}",
        f"tasks     {len(sent)}",
    ]
    if ledger:
        lost = sum(one.id not in ledger.ended for one in sent)
        lines[-1] += f", lost {lost}, begun more than once {len(ledger.twice({one.id for one in sent}))}"
        repeated = sum(ledger.effects[one.key] != 1 for one in sent if one.key)
        lines.append(f"effects   {sum(bool(one.key) for one in sent)}, not exactly once {repeated}")
        lines.append(f"ticks     {len(ledger.ticks)}, at most {longest_gap(ledger):.1f} s apart")
    return "\n".join(lines + [f"    {sample}" for sample in failed[:FIRST]])
