"""Run checks beside each other, and show what they have found."""

from __future__ import annotations

import json
import os
import queue
import shlex
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..settings import ReleaseError, say, utc
from .finding import BAD, OK, WARN, Check, Context, Finding, plural, worst

STATUS = {OK: 0, WARN: 1, BAD: 2}
MARKS = {OK: "ok", WARN: "!", BAD: "x"}
# Characters of an error that a line shows.
ERROR_LENGTH = 240
# Places in the code that a line shows of an error that was not expected.
FRAMES = 4
COLORS = {OK: "\033[32m", WARN: "\033[33m", BAD: "\033[31m"}


def examine(context: Context, checks: Sequence[Check]) -> dict[str, Finding]:
    """Return what each check has found, in the order of the checks. One that hangs or breaks is a finding itself."""
    answers: queue.Queue[tuple[str, Finding | None]] = queue.Queue()
    began = time.monotonic()

    def run(check: Check) -> None:
        answers.put((check.name, look(context, check)))

    for check in checks:
        # A daemon, so that one that hangs does not keep the program from ending.
        threading.Thread(target=run, args=[check], daemon=True).start()
    found: dict[str, Finding | None] = {}
    for check in sorted(checks, key=lambda check: check.seconds):
        while check.name not in found:
            try:
                name, finding = answers.get(timeout=max(0.0, began + check.seconds - time.monotonic()))
            except queue.Empty:
                found[check.name] = Finding(BAD, f"no answer in {check.seconds:g} s", remedy_of_hanging(context))
            else:
                # One that answers after its limit was given up already.
                found.setdefault(name, finding)
    return {check.name: with_inventory(context, finding) for check in checks if (finding := found[check.name])}


def with_inventory(context: Context, finding: Finding) -> Finding:
    """Return a finding that names the inventory: all of the clone that asks, or that of the last site.yml.

    Its settings are in group_vars/ENV/ if it is the file of the environment ENV, with a group of that name.
    """
    names = (context.clone_settings or {}).get("inventories") or [context.configuration.inventory or "INVENTORY"]
    placeholder, options = "-i INVENTORY ", "".join(f"-i {shlex.quote(name)} " for name in names)
    group = Path(names[0]).stem
    folder = f"/{group}/" if len(names) == 1 and group in context.configuration.groups else "/ENV/"

    def named(text: str) -> str:
        return text.replace(placeholder, options).replace("/ENV/", folder)

    return replace(finding, text=named(finding.text), remedy=named(finding.remedy))


def look(context: Context, check: Check) -> Finding | None:
    try:
        return check.look(context)
    except ReleaseError as error:
        return Finding(BAD, in_a_line(str(error)), f"{context.program} status")
    # A check that breaks must not take the others with it, whatever it is.
    except Exception as error:
        return Finding(BAD, f"cannot be read: {type(error).__name__} at {place_of(error)}", f"{context.program} status")


def place_of(error: Exception) -> str:
    """Return the files and lines that led to an error. Its text may hold a part of a secret, such as of a URL."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-FRAMES:])


def in_a_line(text: str) -> str:
    """Return the beginning of an error in one line."""
    words = " ".join(text.split())
    return words if len(words) <= ERROR_LENGTH else f"{words[:ERROR_LENGTH]}..."


def remedy_of_hanging(context: Context) -> str:
    return f"top; journalctl -p err -n 30; {context.program} doctor"


def as_json(context: Context, found: dict[str, Finding], seconds: float) -> dict[str, Any]:
    """Return what `doctor --json` prints."""
    return {
        "name": context.configuration.name,
        "host": context.configuration.host,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(context.now)),
        "seconds": round(seconds, 2),
        "state": worst([finding.state for finding in found.values()]),
        "release": context.release,
        "checks": [
            {"name": name, "state": one.state, "text": one.text, "remedy": one.remedy, "values": one.values}
            for name, one in found.items()
        ],
    }


def describe(context: Context, found: dict[str, Finding], seconds: float, *, colors: bool) -> str:
    """Format findings for a terminal: one line each, and below what is not well, what to type."""
    configuration = context.configuration
    title = f"{configuration.name} on {configuration.host or os.uname().nodename}"
    lines = [f"{title:<56}{utc(context.now)}  {seconds:.1f} s"]
    for name, finding in found.items():
        mark = f"{MARKS[finding.state]:<4}"
        mark = f"{COLORS[finding.state]}{mark}\033[0m" if colors else mark
        lines.append(f"{mark}{name:<13}{finding.text}")
        if finding.state != OK and finding.remedy:
            lines += [f"{'':17}{line}" for line in finding.remedy.splitlines()]
    open_points = sum(finding.state != OK for finding in found.values())
    lines.append(f"{plural(open_points, 'thing')} to do." if open_points else "All is well.")
    return "\n".join(lines)


def doctor(context: Context, checks: Sequence[Check], *, json_output: bool, colors: bool) -> int:
    """Print the screen, or JSON; return the exit status: 0 all well, 1 a warning, 2 something is broken."""
    began = time.monotonic()
    found = examine(context, checks)
    seconds = time.monotonic() - began
    if json_output:
        say(json.dumps(as_json(context, found, seconds)))
    else:
        say(describe(context, found, seconds, colors=colors))
    return STATUS[worst([finding.state for finding in found.values()])]
