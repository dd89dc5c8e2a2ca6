#!/usr/bin/env python3
"""Run the parts of the test suite, two at a time.

Every part runs, even after another has failed. The report ends with the slowest tests, every failure, and the number of
tests that ran: `N passed, N failed`. A part that failed without a failing test, or in which no test ran, counts as one
failure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".test-results"
# The application is tested on both systems; the programs that run beside it on one each, since the scenarios use both.
APPLICATION_TESTS = [("debian12", "app", "host_services"), ("debian13", "app", "in_app")]
# The first lines of a failure's message are reported; the rest is in the log.
MESSAGE_LINES = 12
SLOWEST = 20
# Parts at a time. With three on two cores, all takes longer: test hosts are busy for each second that they exist.
AT_ONCE = 2

LINT = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["yamllint", "--strict", "."],
    [sys.executable, "tools/language_lint.py"],
    [sys.executable, "tools/ansible_lint.py"],
]


@dataclass(frozen=True)
class Case:
    """One test case of a JUnit file; `failure` is "" when it has passed."""

    name: str
    seconds: float
    failure: str


@dataclass
class Part:
    """One row of the table: commands that run one after another, and their results."""

    name: str
    commands: list[list[str]]
    has_tests: bool = True
    seconds: float = 0.0
    failed_commands: list[str] = field(default_factory=list)
    tests: list[Case] = field(default_factory=list)
    broken_results: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return RESULTS / self.name

    @property
    def passed(self) -> int:
        return sum(not test.failure for test in self.tests)

    @property
    def problems(self) -> list[str]:
        """Every failure as one text; empty when the part has passed."""
        if failed := [test.failure for test in self.tests if test.failure] + self.broken_results:
            return failed
        if self.failed_commands:
            return [f"this command failed: {command}" for command in self.failed_commands]
        if self.has_tests and self.passed == 0:
            return ["no test ran"]
        return []


# --- The parts ---------------------------------------------------------------------------


def scenarios() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def scenario(name: str) -> Part:
    return Part(name, [["molecule", "test", "--scenario-name", name]])


def all_parts() -> list[Part]:
    """Return the parts in the order in which they start: lint, then the longest, so that none runs alone at the end."""
    unit = [
        "pytest",
        "-n",
        "4",
        "--dist",
        "loadfile",
        "tests/unit",
        "tests/hostctl",
        f"--junitxml={RESULTS}/unit/unit.xml",
    ]
    application = [sys.executable, "tools/testhost.py", "application-tests"]
    parts = [
        Part("lint", LINT, has_tests=False),
        *(scenario(name) for name in scenarios()),
        Part("app", [[*application, system, f"{RESULTS}/app", *suites] for system, *suites in APPLICATION_TESTS]),
        Part("unit", [unit]),
    ]
    # `deploy` and `faults` first: each builds the snapshot of one system while the other builds the other's.
    first = ["lint", "deploy", "faults", "backup", "security", "cluster", "app", "projects", "default"]
    return sorted(parts, key=lambda part: first.index(part.name) if part.name in first else len(first))


def choose(names: Sequence[str]) -> list[Part]:
    """Return the parts of these names; all parts when no name is given."""
    parts = all_parts()
    known = [part.name for part in parts]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"There is no part called {unknown[0]}. The parts are: {', '.join(known)}.")
    return [part for part in parts if not names or part.name in names]


# --- Running -----------------------------------------------------------------------------


def environment(part: Part) -> dict[str, str]:
    """Return the environment of a part's commands: the tools of .venv first, and the folder for results."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TEST_RESULTS": str(part.folder),
        "MOLECULE_COMMAND_BORDERS": "false",
        "NO_COLOR": "1",
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
    }


def execute(part: Part) -> None:
    """Run a part's commands; print each line as it comes, and keep it in the part's log."""
    shutil.rmtree(part.folder, ignore_errors=True)
    part.folder.mkdir(parents=True)
    start = time.monotonic()
    with (part.folder / "output.log").open("w") as log:
        for command in part.commands:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(part),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                print(f"{part.name:>8} | {line}", end="", flush=True)
            if process.wait() != 0:
                part.failed_commands.append(" ".join(command))
    part.seconds = time.monotonic() - start
    read_results(part)
    outcome = "FAILED" if part.problems else "passed"
    print(f"{part.name:>8} : {outcome} after {part.seconds:.0f} s", flush=True)


def read_results(part: Part) -> None:
    """Read every JUnit file that the part has written; skipped tests do not count."""
    for file in sorted(part.folder.glob("*.xml")):
        try:
            cases = list(ET.parse(file).iter("testcase"))
        except ET.ParseError as error:
            part.broken_results.append(f"{file} is not complete: {error}")
            continue
        for case in cases:
            if case.find("skipped") is not None:
                continue
            name, failure = f"{case.get('classname')}::{case.get('name')}", ""
            if (found := next((one for one in case if one.tag in ("failure", "error")), None)) is not None:
                message = (found.get("message") or "").splitlines()[:MESSAGE_LINES]
                failure = "\n        ".join([name, *message])
            part.tests.append(Case(name, float(case.get("time") or 0), failure))


# --- Reporting ---------------------------------------------------------------------------


def slowest(parts: Sequence[Part]) -> list[str]:
    """Return a line for each of the slowest tests."""
    tests = [(test.seconds, part.name, test.name) for part in parts for test in part.tests]
    return [f"{seconds:>7.1f}  {part}: {name}" for seconds, part, name in sorted(tests, reverse=True)[:SLOWEST]]


def report(parts: Sequence[Part], seconds: float) -> str:
    """Return the table, the slowest tests, the failures with their logs, the duration, and the count."""
    lines = [f"{'part':<18} {'result':<8} {'seconds':>7} {'passed':>7} {'failed':>7}"]
    for part in parts:
        result = "FAILED" if part.problems else "passed"
        counts = f"{part.passed:>7} {len(part.problems):>7}"
        lines.append(f"{part.name:<18} {result:<8} {part.seconds:>7.0f} {counts}")
    lines += ["", f"The slowest {SLOWEST} tests, in seconds:", *slowest(parts)]
    for part in parts:
        if part.problems:
            lines += ["", f"{part.name} failed; its output is in {part.folder}/output.log"]
            lines += [f"    {problem}" for problem in part.problems]
    passed = sum(part.passed for part in parts)
    failed = sum(len(part.problems) for part in parts)
    minutes, rest = divmod(round(seconds), 60)
    return "\n".join([*lines, "", f"Duration: {minutes} min {rest} s.", f"{passed} passed, {failed} failed"])


def execute_all(parts: Sequence[Part]) -> None:
    """Run parts in their order, as many at a time as the machine is for."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in as_completed([pool.submit(execute, part) for part in parts]):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="lint, unit, app or a scenario; default: all")
    parts = choose(parser.parse_args().part)
    start = time.monotonic()
    execute_all(parts)
    print(f"\n{report(parts, time.monotonic() - start)}")
    return int(any(part.problems for part in parts))


if __name__ == "__main__":
    sys.exit(main())
