"""The test runner: what counts as a failure, and what its report says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import run
from run import Case, Part, choose, execute, report

JUNIT = (
    '<testsuite><testcase classname="t" name="good" time="2.5"/>'
    '<testcase classname="t" name="bad"><failure/></testcase>'
    '<testcase classname="t" name="left out"><skipped/></testcase></testsuite>'
)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    return tmp_path


def shell(script: str, **options: bool) -> Part:
    """Return a part of one shell script, executed."""
    part = Part("part", [["sh", "-c", script]], **options)
    execute(part)
    return part


def test_tests_are_counted_from_junit_files() -> None:
    part = shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml; echo '{JUNIT}' >$TEST_RESULTS/b.xml; exit 1")
    assert part.passed == 2
    assert part.problems == ["t::bad", "t::bad"]


def test_part_without_a_test_has_failed() -> None:
    assert shell("exit 0").problems == ["no test ran"]


def test_part_that_has_no_tests_passes_by_its_status() -> None:
    assert shell("exit 0", has_tests=False).problems == []


def test_part_that_fails_before_its_tests_counts_once() -> None:
    part = shell("exit 7")
    assert len(part.problems) == 1
    assert report([part], 1).endswith("\n0 passed, 1 failed")


def test_commands_after_a_failed_one_run(results: Path) -> None:
    part = Part("part", [["false"], ["sh", "-c", "touch $TEST_RESULTS/ran"]], has_tests=False)
    execute(part)
    assert (results / "part/ran").exists()
    assert part.problems == ["this command failed: false"]


def test_incomplete_results_are_a_failure(results: Path) -> None:
    part = shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml; echo '<testsuite>' >$TEST_RESULTS/b.xml")
    assert f"{results}/part/b.xml is not complete" in part.problems[1]


def test_results_of_an_earlier_run_do_not_count(results: Path) -> None:
    shell(f"echo '{JUNIT}' >$TEST_RESULTS/a.xml")
    assert shell("exit 0").problems == ["no test ran"]


def test_report_names_the_log(results: Path) -> None:
    assert f"{results}/part/output.log" in report([shell("exit 7")], 1)


def test_report_has_the_message_of_a_failed_test() -> None:
    failure = '<failure message="3 of 90 requests failed:&#10; GET /">a long trace</failure>'
    junit = f'<testsuite><testcase classname="t" name="bad">{failure}</testcase></testsuite>'
    text = report([shell(f"echo '{junit}' >$TEST_RESULTS/a.xml; exit 1")], 3599.6)
    assert "t::bad\n        3 of 90 requests failed:\n         GET /" in text
    assert text.endswith("Duration: 60 min 0 s.\n0 passed, 1 failed")


def test_report_lists_the_slowest_tests_first() -> None:
    one, two = Part("one", []), Part("two", [])
    one.tests = [Case(f"a{number}", number, "") for number in range(30)]
    two.tests = [Case("b", 28.5, "")]
    lines = run.slowest([one, two])
    assert [line.split()[-1] for line in lines[:3]] == ["a29", "b", "a28"]
    assert len(lines) == run.SLOWEST


def test_unknown_part_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"no part called nosuch.*lint"):
        choose(["nosuch"])


def test_scenario_is_a_part() -> None:
    assert [part.name for part in choose(["default"])] == ["default"]


def test_every_scenario_is_a_part_once() -> None:
    names = [part.name for part in run.all_parts()]
    assert len(names) == len(set(names))
    assert set(run.scenarios()) < set(names)


@pytest.mark.parametrize("name", run.scenarios())
def test_inventory_of_a_scenario_finds_group_vars(name: str) -> None:
    """By a link, which a copy that does not keep links turns into a file: its hosts would lack every default."""
    folder = run.ROOT / "molecule" / name / "inventory/group_vars"
    assert folder.is_dir(), f"{folder} is no link: ln -sfn ../../../group_vars {folder}"


def test_all_parts_run_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order."""
    running, seen, changed, full = set[str](), list[str](), threading.Condition(), 0

    def part_runs(part: Part) -> None:
        nonlocal full
        with changed:
            running.add(part.name)
            seen.append(part.name)
            changed.notify_all()
            # Until the machine is full, or nothing else can start.
            changed.wait_for(lambda: len(running) == 2 or len(seen) == len(parts), timeout=30)
            assert len(running) <= 2
            full += len(running) == 2
            running.remove(part.name)

    parts = [Part(name, []) for name in "abcde"]
    monkeypatch.setattr(run, "execute", part_runs)
    run.execute_all(parts)
    assert sorted(seen) == [part.name for part in parts]
    assert {*seen[:2]} == {"a", "b"}
    assert full


def test_error_of_the_runner_itself_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", Path("/proc/none"))
    with pytest.raises(OSError, match="/proc/none"):
        run.execute_all([Part("a", [["true"]])])


def test_modules_that_tests_import_by_name_differ() -> None:
    """Their folders are in one path (pyproject.toml): a scenario would import the first of two."""
    folders = ("tools", "plugins", "tests", "tests/harness")
    found = [file.name for folder in folders for file in (run.ROOT / folder).glob("*.py")]
    assert len(found) == len(set(found)), sorted(name for name in set(found) if found.count(name) > 1)
