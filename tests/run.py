#!/usr/bin/env python3
"""Run the parts of the test suite, two at a time.

Every part runs, also after another has failed. The last line counts the tests
that ran: `N passed, N failed`; a part that failed without a failing test, or in
which no test ran, counts as one failure.
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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".test-results"
# The application is tested on both; of the programs beside it each on one, since all scenarios have them on both.
APPLICATION_TESTS = [("debian12", "app", "on_services"), ("debian13", "app", "celery_service")]
# Of what a failed test says; the rest is in the log.
FIRST_LINES = 12

LINT = [
    ["ansible-lint"],
    ["yamllint", "--strict", "."],
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
]


@dataclass
class Part:
    """One row of the table: commands that run one after another, and what came of them."""

    name: str
    commands: list[list[str]]
    has_tests: bool = True
    seconds: float = 0.0
    failed_commands: list[str] = field(default_factory=list)
    passed: int = 0
    failed_tests: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return RESULTS / self.name

    @property
    def problems(self) -> list[str]:
        """Every failure in one line; empty when the part is all right."""
        if self.failed_tests:
            return self.failed_tests
        if self.failed_commands:
            return [f"this failed: {command}" for command in self.failed_commands]
        if self.has_tests and self.passed == 0:
            return ["no test ran"]
        return []


# --- Which parts there are ---------------------------------------------------------------


def scenarios() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def scenario(name: str) -> Part:
    return Part(name, [["molecule", "test", "--scenario-name", name]])


def all_parts() -> list[list[Part]]:
    """Two lanes. No two of the first at a time: most put hosts under load, and would make each other late."""
    unit = ["pytest", "tests/unit", f"--junitxml={RESULTS}/unit/unit.xml"]
    application = [sys.executable, "molecule/shared/testhost.py", "application-tests"]
    under_load = [name for name in scenarios() if name.startswith("rollout")]
    # The longest first, and both lanes equally long.
    long = ["security", "default", "cluster"]
    others = [name for name in scenarios() if name not in (*long, *under_load)]
    return [
        [scenario(name) for name in (*under_load, *others)],
        [
            Part("lint", LINT, has_tests=False),
            Part("unit", [unit]),
            *(scenario(name) for name in long),
            Part("app", [[*application, system, f"{RESULTS}/app", *suites] for system, *suites in APPLICATION_TESTS]),
        ],
    ]


def choose(names: Sequence[str]) -> list[list[Part]]:
    """The lanes with the parts of these names only; all of them when no name is given."""
    lanes = all_parts()
    known = [part.name for lane in lanes for part in lane]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"There is no part called {unknown[0]}. There are: {', '.join(known)}.")
    return [[part for part in lane if not names or part.name in names] for lane in lanes]


# --- Running -----------------------------------------------------------------------------


def environment(part: Part) -> dict[str, str]:
    """What the commands see: the tools of .venv first, and where to leave their results."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TEST_RESULTS": str(part.folder),
        "MOLECULE_COMMAND_BORDERS": "false",
        "NO_COLOR": "1",
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
    }


def execute(part: Part) -> None:
    """Run a part's commands; show each line as it comes, and keep it in the part's log."""
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
    """Count the tests in every JUnit file that the part left behind."""
    for file in sorted(part.folder.glob("*.xml")):
        try:
            cases = list(ET.parse(file).iter("testcase"))
        except ET.ParseError as error:
            part.failed_tests.append(f"{file} is not whole: {error}")
            continue
        for case in cases:
            if (failure := next((one for one in case if one.tag in ("failure", "error")), None)) is not None:
                said = (failure.get("message") or "").splitlines()[:FIRST_LINES]
                part.failed_tests.append("\n        ".join([f"{case.get('classname')}::{case.get('name')}", *said]))
            elif case.find("skipped") is None:
                part.passed += 1


# --- Reporting ---------------------------------------------------------------------------


def report(parts: Sequence[Part], seconds: float) -> str:
    """The table, what failed and where to read on, how long it took, and the count as the last line."""
    lines = [f"{'part':<16} {'result':<8} {'seconds':>7} {'passed':>7} {'failed':>7}"]
    for part in parts:
        result = "FAILED" if part.problems else "passed"
        counts = f"{part.passed:>7} {len(part.problems):>7}"
        lines.append(f"{part.name:<16} {result:<8} {part.seconds:>7.0f} {counts}")
    for part in parts:
        if part.problems:
            lines += ["", f"{part.name} failed; all it said is in {part.folder}/output.log"]
            lines += [f"    {problem}" for problem in part.problems]
    passed = sum(part.passed for part in parts)
    failed = sum(len(part.problems) for part in parts)
    minutes, rest = divmod(round(seconds), 60)
    return "\n".join([*lines, "", f"All of it took {minutes} min {rest} s.", f"{passed} passed, {failed} failed"])


def run_lane(*lanes: deque[Part]) -> None:
    """Run what is left of one lane after another."""

    def taken(lane: deque[Part]) -> Part | None:
        with suppress(IndexError):
            return lane.popleft()
        return None

    for lane in lanes:
        while part := taken(lane):
            execute(part)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", help="lint, unit, app or a scenario; default: all")
    lanes = choose(parser.parse_args().part)
    under_load, others = (deque(lane) for lane in lanes)
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        # Whoever is done with the first lane helps with the second.
        running = [pool.submit(run_lane, under_load, others), pool.submit(run_lane, others)]
    for lane in running:
        lane.result()
    parts = [part for lane in lanes for part in lane]
    print(f"\n{report(parts, time.monotonic() - start)}")
    return int(any(part.problems for part in parts))


if __name__ == "__main__":
    sys.exit(main())
