"""Every assertion of the harness passes on good data and fails, naming the offender, on data damaged on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from traffic import Entry, Ledger, Sample, Sent, verdict

OLD, NEW = "old-release", "new-release"
NOON = 1_800_000_000.0
# That of `requests`.
SWITCH = NOON + 20


def requests(count: int = 300, switch: int = 200) -> list[Sample]:
    """Ten a second, the last of them by the new release, and a slow one across the switch."""
    fast = [
        Sample(NOON + number / 10, 0.01, 0.0, "GET /", False, 200, release=OLD if number < switch else NEW)
        for number in range(count)
    ]
    slow = Sample(NOON + switch / 10 - 1.5, 3.0, 0.0, verdict.SLOW, False, 200, release=OLD)
    return [*fast, slow]


def sent(count: int = 20) -> list[Sent]:
    return [Sent(f"task-{number}", NOON + number, "ledger.effect", f"key-{number}") for number in range(count)]


def written(tasks: list[Sent], ticks: int = 20) -> list[Entry]:
    """What workers write when all is well."""
    lines = []
    for task in tasks:
        about = {"id": task.id, "name": task.name, "worker": "default.old@host"}
        lines += [
            Entry("START", task.at, OLD, **about),
            Entry("EFFECT", task.at + 0.1, OLD, key=task.key),
            Entry("END", task.at + 0.2, OLD, state="SUCCESS", **about),
        ]
    for number in range(ticks):
        at = NOON + number
        about = {"id": f"tick-{number}", "name": "ledger.tick", "sent_at": at, "sent_by": OLD}
        lines += [Entry("START", at, OLD, **about), Entry("END", at, OLD, state="SUCCESS", **about)]
    return sorted(lines, key=lambda entry: entry.at)


def without(lines: list[Entry], event: str, task: str) -> list[Entry]:
    return [line for line in lines if (line.event, line.id) != (event, task)]


# --- Requests ----------------------------------------------------------------------------


def test_good_requests_pass() -> None:
    samples = requests()
    verdict.no_request_failed(samples)
    verdict.loop_was_open(samples)
    verdict.no_connection_was_cut([*samples, replace(samples[0], kept=True)])
    verdict.only_these_answered(samples, {OLD, NEW})
    verdict.releases_took_turns(samples, [OLD, NEW])
    verdict.one_was_in_flight(samples, OLD, SWITCH)
    verdict.latency_stayed(samples, (NOON, NOON + 15), (NOON + 15, NOON + 30))


def test_a_closed_connection_is_found() -> None:
    samples = [*requests(), replace(requests()[5], kept=True, retried=True)]
    with pytest.raises(AssertionError, match="1 of 302 requests had to be made twice"):
        verdict.no_connection_was_cut(samples)
    with pytest.raises(AssertionError, match="no request came on a kept connection"):
        verdict.no_connection_was_cut(requests())


def test_one_failed_request_is_named() -> None:
    samples = requests()
    samples[17] = replace(samples[17], status=502, problem="status 502: Bad Gateway")
    with pytest.raises(AssertionError, match=r"1 of 301 requests failed:\n.*GET / \(new connection\): status 502"):
        verdict.no_request_failed(samples)


def test_a_redirect_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="status 301"):
        verdict.no_request_failed([replace(requests()[0], status=301)])


def test_only_the_first_offenders_are_listed() -> None:
    samples = [replace(sample, status=503) for sample in requests()]
    with pytest.raises(AssertionError) as error:
        verdict.no_request_failed(samples)
    assert str(error.value).count("status 503") == verdict.FIRST
    assert "and 296 more" in str(error.value)


def test_a_load_that_was_late_itself_proves_nothing() -> None:
    samples = [replace(sample, late=1.5) for sample in requests()]
    with pytest.raises(AssertionError, match=r"the load itself was late by 1\.50 s"):
        verdict.loop_was_open(samples)


def test_a_single_answer_of_a_broken_release_is_found() -> None:
    samples = requests()
    samples[40] = replace(samples[40], release="broken-release")
    with pytest.raises(AssertionError, match="1 of 301 answers came from another release than old-release, new-rel"):
        verdict.only_these_answered(samples, [OLD, NEW])


def test_answers_without_names_prove_nothing() -> None:
    with pytest.raises(AssertionError, match="no answer names its release"):
        verdict.only_these_answered([replace(requests()[0], release="")], {OLD})


def test_a_release_that_answers_after_its_successor_is_found() -> None:
    samples = requests()
    samples[230] = replace(samples[230], release=OLD)
    with pytest.raises(AssertionError, match=f"1 of 202 requests were answered by {OLD} after {NEW} had answered"):
        verdict.releases_took_turns(samples, [OLD, NEW])


def test_a_release_that_never_answered_is_found() -> None:
    with pytest.raises(AssertionError, match=f"no request was answered by {NEW}"):
        verdict.releases_took_turns(requests(switch=300), [OLD, NEW])


def test_a_slow_request_must_have_been_in_flight() -> None:
    samples = requests()
    with pytest.raises(AssertionError, match="none of 0 slow requests was in flight"):
        verdict.one_was_in_flight(samples[:-1], OLD, SWITCH)
    samples[-1] = replace(samples[-1], status=502, release="")
    with pytest.raises(AssertionError, match=r"1 of 1 slow requests in flight failed:\n.*status 502"):
        verdict.one_was_in_flight(samples, OLD, SWITCH)
    samples[-1] = replace(samples[-1], status=200, release=NEW)
    with pytest.raises(AssertionError, match=f"none of them was begun by {OLD}"):
        verdict.one_was_in_flight(samples, OLD, SWITCH)


def test_a_slower_site_is_found() -> None:
    samples = requests()
    for number in range(200, 204):
        samples[number] = replace(samples[number], latency=0.5)
    spans = (NOON, NOON + 15), (NOON + 15, NOON + 30)
    with pytest.raises(AssertionError, match=r"4 of 150 requests took longer than 20 ms, 2 times the p99.*was 500 ms"):
        verdict.latency_stayed(samples, *spans)
    verdict.latency_stayed(samples, *spans, factor=50)


def test_a_percentile_of_few_is_refused() -> None:
    with pytest.raises(AssertionError, match="only 50 requests during"):
        verdict.latency_stayed(requests(), (NOON, NOON + 15), (NOON + 15, NOON + 20))


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_percentiles(percent: float, value: float) -> None:
    assert verdict.percentile(list(range(100, 0, -1)), percent) == value


# --- Tasks and ticks ---------------------------------------------------------------------


def test_a_good_ledger_passes() -> None:
    tasks = sent()
    ledger = Ledger(written(tasks))
    verdict.none_lost(tasks, ledger)
    verdict.each_effect_once(tasks, ledger)
    verdict.none_ran_twice(ledger)
    verdict.no_tick_twice(ledger)
    verdict.ticks_kept_time(ledger, 1.5, (NOON - 1, NOON + 20))
    assert verdict.longest_gap(ledger) == 1


def test_a_lost_task_is_named() -> None:
    tasks = sent()
    lines = without(written(tasks), "END", "task-3")
    with pytest.raises(AssertionError, match=r"1 of 20 tasks were lost:\n.*task-3, started but not ended"):
        verdict.none_lost(tasks, Ledger(lines))
    with pytest.raises(AssertionError, match="task-3, never started"):
        verdict.none_lost(tasks, Ledger(without(lines, "START", "task-3")))


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_task_that_ended_badly_is_lost(state: str) -> None:
    tasks = sent()
    lines = [replace(one, state=state) if (one.event, one.id) == ("END", "task-3") else one for one in written(tasks)]
    with pytest.raises(AssertionError, match="1 of 20 tasks were lost"):
        verdict.none_lost(tasks, Ledger(lines))


def test_a_tick_that_failed_is_found() -> None:
    tasks = sent()
    lines = [
        replace(one, state="FAILURE") if (one.event, one.id) == ("END", "tick-3") else one for one in written(tasks)
    ]
    with pytest.raises(AssertionError, match=r"tasks failed:\n.*tick-3"):
        verdict.none_lost(tasks, Ledger(lines))


def test_a_retried_task_is_not_lost() -> None:
    tasks = sent()
    lines = written(tasks)
    again = replace(next(one for one in lines if (one.event, one.id) == ("END", "task-3")), state="RETRY")
    verdict.none_lost(tasks, Ledger([again, *lines]))


def test_an_effect_had_twice_or_never_is_named() -> None:
    tasks = sent()
    lines = written(tasks)
    doubled = [*lines, Entry("EFFECT", NOON, OLD, key="key-5")]
    with pytest.raises(AssertionError, match=r"1 of 20 effects did not happen exactly once:\n    key-5: 2 times"):
        verdict.each_effect_once(tasks, Ledger(doubled))
    with pytest.raises(AssertionError, match="key-5: 0 times"):
        verdict.each_effect_once(tasks, Ledger([line for line in lines if line.key != "key-5"]))


def test_a_task_that_ran_twice_is_named() -> None:
    lines = written(sent())
    again = Ledger([*lines, next(line for line in lines if line.id == "task-5")])
    assert again.twice() == {"task-5": 2}
    with pytest.raises(AssertionError, match=r"1 of 41 tasks were started more than once:\n    task-5: 2 times"):
        verdict.none_ran_twice(again)
    verdict.none_ran_twice(again, {"task-6"})


def test_a_tick_that_two_beats_sent_is_found() -> None:
    second = Entry("START", NOON, NEW, "tick-b", "ledger.tick", sent_at=NOON + 7.1, sent_by=NEW)
    with pytest.raises(AssertionError, match=f"1 of 21 ticks were sent twice:\n.* by {OLD} and .* by {NEW}"):
        verdict.no_tick_twice(Ledger([*written(sent()), second]))


def test_a_tick_that_was_held_up_is_no_second_one() -> None:
    """The next one is in time, and so soon after it."""
    lines = [replace(line, sent_at=line.sent_at + 0.7) if line.id == "tick-7" else line for line in written(sent())]
    verdict.no_tick_twice(Ledger(lines))


def test_a_tick_that_ran_twice_is_found() -> None:
    lines = written(sent())
    with pytest.raises(AssertionError, match="tick-7: 2 times"):
        verdict.no_tick_twice(Ledger([*lines, next(line for line in lines if line.id == "tick-7")]))


def test_a_late_tick_is_found() -> None:
    lines = [line for line in written(sent()) if line.id not in ("tick-7", "tick-8", "tick-9")]
    with pytest.raises(AssertionError, match=r"1 of 16 ticks were later than 3 s:\n    4.0 s without a tick from"):
        verdict.ticks_kept_time(Ledger(lines), 3)
    verdict.ticks_kept_time(Ledger(lines), 4)


def test_a_beat_that_has_stopped_is_found() -> None:
    """Between the last tick and the end of the span."""
    with pytest.raises(AssertionError, match=r"11.0 s without a tick"):
        verdict.ticks_kept_time(Ledger(written(sent())), 3, (NOON, NOON + 30))


@pytest.mark.parametrize(
    "assertion",
    [
        lambda ledger: verdict.none_lost([], ledger),
        lambda ledger: verdict.each_effect_once([], ledger),
        verdict.no_tick_twice,
        lambda ledger: verdict.ticks_kept_time(ledger, 1),
    ],
)
def test_nothing_proves_nothing(assertion: Callable[[Ledger], None]) -> None:
    with pytest.raises(AssertionError):
        assertion(Ledger([]))


# --- Reading -----------------------------------------------------------------------------


def test_the_file_is_read_while_it_is_written() -> None:
    whole = {"event": "END", "at": NOON, "release": OLD, "id": "a", "state": "SUCCESS", "sent_at": None, "extra": 1}
    text = json.dumps(whole) + "\n" + '{"event": "STA'
    assert Ledger.parse(text).ended == {"a"}
    assert Ledger.parse("").entries == []
    with pytest.raises(ValueError, match="Expecting"):
        Ledger.parse("torn\n")


def test_settling_waits_for_the_last_task() -> None:
    tasks = sent()
    looks = iter([Ledger([]), Ledger(written(tasks)), Ledger([])])
    verdict.none_lost(tasks, verdict.settle(lambda: next(looks), tasks, 5))
    assert verdict.settle(lambda: Ledger([]), tasks, 0).entries == []


def test_the_summary_says_what_went_wrong() -> None:
    samples = requests()
    samples[3] = replace(samples[3], status=0, problem="timed out")
    tasks = sent()
    text = verdict.summary(samples, tasks, Ledger(without(written(tasks), "END", "task-3")))
    assert "failed 1" in text
    assert f"{OLD} > {NEW}" in text
    assert "tasks     20, lost 1" in text
    assert "timed out" in text
