"""One run of the watch: measure, check, keep, show, tell."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..doctor import run as screen
from ..doctor.configuration import Configuration
from ..doctor.finding import OK, Check, Context, Finding, worst
from ..settings import BusyError, ReleaseError, say
from . import alerts, heartbeat, history, machine, page, requests, tasks, textfile
from .files import replace_json

# Seconds after which an hourly check is repeated: when it was well, and otherwise, so that a repair is soon seen.
HOURLY, UNTIL_WELL = 3600, 600
# How long a run waits for another one, such as that of a person.
PATIENCE = 10
Found = dict[str, Finding]
Values = dict[str, float]


@contextmanager
def lock(configuration: Configuration) -> Iterator[None]:
    """Hold the lock of the watch, which ends with this process. Raises BusyError when another run does not end."""
    configuration.state_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(configuration.state_folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError("Another run of the watch has not ended yet.") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(handle)


def watch(context: Context, checks: Sequence[Check]) -> int:
    """Run once, under the lock; return the exit status: 0 all well, 1 a warning, 2 something is broken.

    What cannot be written, as on a full disk, keeps no one from being told.
    """
    began = time.monotonic()
    values: Values = {}
    attempt("nginx's log", lambda: values.update(requests.measure(context)))
    found = examine(context, checks)
    attempt("/proc", lambda: values.update(machine.measure(context)))
    attempt("Flower's metrics", lambda: values.update(tasks.measure(context)))
    for finding in found.values():
        values |= finding.values
    report_changes(context, found)
    attempt("the history and the status page", lambda: keep(context, found, values))
    attempt("the textfile", lambda: textfile.write(context, found, values))
    state = screen.as_json(context, found, time.monotonic() - began)
    attempt("state.json", lambda: replace_json(context.configuration.state_folder / "state.json", state))
    attempt("alerts", lambda: alerts.process(context, found))
    # A run that is killed later, as by its time limit, must not send these messages once more.
    save(context)
    attempt("the heartbeat", lambda: heartbeat.beat(context))
    save(context)
    return screen.STATUS[worst([finding.state for finding in found.values()])]


def attempt(what: str, work: Callable[[], None]) -> None:
    """Do a part of the run; report why it failed instead of ending the run."""
    try:
        work()
    except (OSError, sqlite3.Error, ReleaseError) as error:
        say(f"{what}: {error}")
    # One part that breaks must not take the alerts with it, whatever it is.
    except Exception as error:
        say(f"{what}: {type(error).__name__}: {error}")


def examine(context: Context, checks: Sequence[Check]) -> Found:
    """Return what each check finds, in the order of the checks; of hourly ones that are not due, what it last found."""
    kept = context.memory.get("hourly", {})
    due = [check for check in checks if not check.hourly or is_due(kept.get(check.name), context.now)]
    found = screen.examine(context, due)
    hourly = {check.name: as_kept(context, found.get(check.name)) for check in due if check.hourly}
    names = {check.name for check in checks if check.hourly}
    context.memory["hourly"] = {name: one for name, one in (kept | hourly).items() if name in names}
    for name, one in context.memory["hourly"].items():
        if one["state"] and name not in found:
            found[name] = Finding(one["state"], one["text"], one["remedy"], one["values"], one.get("alert"))
    return {check.name: found[check.name] for check in checks if check.name in found}


def is_due(kept: dict[str, Any] | None, now: float) -> bool:
    """Return whether it is time for an hourly check, also if the clock was set back."""
    if not kept:
        return True
    return not 0 <= now - kept["time"] < (HOURLY if kept["state"] in ("", OK) else UNTIL_WELL) - 5


def as_kept(context: Context, finding: Finding | None) -> dict[str, Any]:
    """Return a finding as memory["hourly"] has it; `state` is "" where there is nothing to look at."""
    one = finding or Finding("", "")
    names = ("state", "text", "remedy", "values", "alert")
    return {name: getattr(one, name) for name in names} | {"time": context.now}


def report_changes(context: Context, found: Found) -> None:
    """Print a line for each check whose state has changed since the last run."""
    before = context.memory.get("states", {})
    context.memory["states"] = {name: finding.state for name, finding in found.items()}
    for name, finding in found.items():
        if finding.state != before.get(name, OK):
            say(f"{name}: {finding.state}: {finding.text}")


def keep(context: Context, found: Found, values: Values) -> None:
    """Add the values to the history, and write the status page where nginx serves it."""
    configuration = context.configuration
    shows = bool(configuration.url)
    graphs: list[str] = []
    try:
        with history.opened(configuration.state_folder / "history.sqlite") as kept:
            kept.record(context.now, values)
            graphs = page.graphs(context, kept) if shows else []
    finally:
        # Without a history, the page still says what is wrong.
        if shows:
            page.write(context, found, graphs)


def save(context: Context) -> None:
    """Save the memory: in /run, when the disk takes nothing. (Alerts count on it.)"""
    for path in context.configuration.memory_files:
        try:
            replace_json(path, context.memory)
            break
        except OSError as error:
            say(f"{path}: {error}")
