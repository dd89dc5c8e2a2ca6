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
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".test-results"
# The application is tested on both systems; the programs that run beside it on one each, since the scenarios use both.
APPLICATION_TESTS = [("debian12", "app", "host_services"), ("debian13", "app", "in_app")]
# The first lines of a failure's message are reported; the rest is in the log.
MESSAGE_LINES = 12
SLOWEST = 20

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
    """One row of the table: commands that run one after another, or `at_once` of them, and their results."""

    name: str
    commands: list[list[str]]
    has_tests: bool = True
    at_once: int = 1
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


def all_parts() -> list[list[Part]]:
    """Return two lanes; when one is done, its worker takes parts of the other (see `run_lanes`).

    The first has the scenarios with the highest load: they run one after another, or they would delay each other. The
    others follow by their length, the longest first, so that both workers end at about the same time.
    """
    unit = [
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "tests/unit",
        "tests/hostctl",
        f"--junitxml={RESULTS}/unit/unit.xml",
    ]
    application = [sys.executable, "tools/testhost.py", "application-tests"]
    on_systems = [[*application, system, f"{RESULTS}/app", *suites] for system, *suites in APPLICATION_TESTS]
    under_load = [name for name in scenarios() if name.startswith("deploy")]
    long = [name for name in ("faults", "backup", "security", "default", "cluster", "projects") if name in scenarios()]
    others = [name for name in scenarios() if name not in (*long, *under_load)]
    return [
        [scenario(name) for name in under_load],
        [
            Part("lint", LINT, has_tests=False),
            Part("unit", [unit]),
            Part("app", on_systems, at_once=2),
            *(scenario(name) for name in long),
            *(scenario(name) for name in others),
        ],
    ]


def choose(names: Sequence[str]) -> list[list[Part]]:
    """Return the lanes with the parts of these names; all parts when no name is given."""
    lanes = all_parts()
    known = [part.name for lane in lanes for part in lane]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"There is no part called {unknown[0]}. The parts are: {', '.join(known)}.")
    return [[part for part in lane if not names or part.name in names] for lane in lanes]


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


def run_command(part: Part, command: list[str], log: TextIO) -> int:
    """Run a command; print each line as it comes, and keep it in the log. Returns the exit status."""
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
    return process.wait()


def execute(part: Part) -> None:
    """Run a part's commands, and read their results."""
    shutil.rmtree(part.folder, ignore_errors=True)
    part.folder.mkdir(parents=True)
    start = time.monotonic()
    with (part.folder / "output.log").open("w") as log, ThreadPoolExecutor(part.at_once) as pool:
        statuses = pool.map(lambda command: run_command(part, command, log), part.commands)
        ended = list(zip(part.commands, statuses, strict=True))
    part.failed_commands = [" ".join(command) for command, status in ended if status]
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


def run_lanes(*lanes: deque[Part]) -> None:
    """Run the parts that are left in one lane, then those of the next."""

    def take(lane: deque[Part]) -> Part | None:
        with suppress(IndexError):
            return lane.popleft()
        return None

    for lane in lanes:
        while part := take(lane):
            execute(part)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="lint, unit, app or a scenario; default: all")
    lanes = choose(parser.parse_args().part)
    under_load, others = (deque(lane) for lane in lanes)
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        # When the first lane is done, its worker takes parts of the second.
        running = [pool.submit(run_lanes, under_load, others), pool.submit(run_lanes, others)]
    for lane in running:
        lane.result()
    parts = [part for lane in lanes for part in lane]
    print(f"\n{report(parts, time.monotonic() - start)}")
    return int(any(part.problems for part in parts))


if __name__ == "__main__":
    sys.exit(main())
