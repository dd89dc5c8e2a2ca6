"""The test runner: what counts as a failure, and what its last line says."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import run
from run import Part, choose, execute, report

JUNIT = (
    '<testsuite><testcase classname="t" name="good"/>'
    '<testcase classname="t" name="bad"><failure/></testcase>'
    '<testcase classname="t" name="left out"><skipped/></testcase></testsuite>'
)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    return tmp_path


def shell(script: str, **options: bool) -> Part:
    """A part of one shell script that has been executed."""
    part = Part("part", [["sh", "-c", script]], **options)
    execute(part)
    return part


def test_tests_are_counted_from_what_they_left_behind() -> None:
    part = shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml; echo '{JUNIT}' >$TEST_RESULTS/b.xml; exit 1")
    assert part.passed == 2
    assert part.problems == ["t::bad", "t::bad"]


def test_a_part_in_which_no_test_ran_has_failed() -> None:
    assert shell("exit 0").problems == ["no test ran"]


def test_a_part_without_tests_passes_by_its_status() -> None:
    assert shell("exit 0", has_tests=False).problems == []


def test_a_part_that_fails_before_its_tests_counts_once() -> None:
    part = shell("exit 7")
    assert len(part.problems) == 1
    assert report([part], 1).endswith("\n0 passed, 1 failed")


def test_the_commands_after_a_failed_one_run(results: Path) -> None:
    part = Part("part", [["false"], ["sh", "-c", "touch $TEST_RESULTS/ran"]], has_tests=False)
    execute(part)
    assert (results / "part/ran").exists()
    assert part.problems == ["this failed: false"]


def test_results_that_are_not_whole_are_a_failure(results: Path) -> None:
    part = shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml; echo '<testsuite>' >$TEST_RESULTS/b.xml")
    assert f"{results}/part/b.xml is not whole" in part.problems[1]


def test_results_of_an_earlier_run_do_not_count(results: Path) -> None:
    shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml")
    assert shell("exit 0").problems == ["no test ran"]


def test_the_report_says_where_to_read_on(results: Path) -> None:
    assert f"{results}/part/output.log" in report([shell("exit 7")], 1)


def test_the_report_says_why_a_test_failed() -> None:
    failure = '<failure message="3 of 90 requests failed:&#10; GET /">a long trace</failure>'
    junit = f'<testsuite><testcase classname="t" name="bad">{failure}</testcase></testsuite>'
    text = report([shell(f"echo '{junit}' >$TEST_RESULTS/a.xml; exit 1")], 3599.6)
    assert "t::bad\n        3 of 90 requests failed:\n         GET /" in text
    assert text.endswith("All of it took 60 min 0 s.\n0 passed, 1 failed")


def test_an_unknown_part_is_answered_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"no part called nosuch.*lint"):
        choose(["nosuch"])


def test_a_scenario_is_a_part_of_its_own() -> None:
    assert [part.name for lane in choose(["default"]) for part in lane] == ["default"]


def test_whoever_is_done_with_the_first_lane_helps_with_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(run, "execute", lambda part: done.append(part.name))
    first, second = deque([Part("rollout", [])]), deque([Part("lint", []), Part("unit", [])])
    run.run_lane(first, second)
    assert done == ["rollout", "lint", "unit"]
    assert not first
    assert not second
