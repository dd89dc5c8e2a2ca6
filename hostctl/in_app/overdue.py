"""Notice that a periodic task was due and was not sent, whatever its scheduler believes.

A scheduler computes when a task is due from the last run that it has stored. Where it misreads that time, as it may
with USE_TZ = False, nothing is sent for hours and nothing is logged. Here the clock alone decides: counted from the
start of beat, and from each time that the task was sent, one with an interval is due when that is over, and one with a
crontab in the next minute that it names.

What is overdue is in state.json beside beat's schedule, where `APPctl status` and deployments read it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from . import compat, schedule

# Seconds between two looks at the schedule.
LOOK_SECONDS = 15
# Seconds after which a task that was not sent is overdue.
LATE_SECONDS = 60
# Minutes of the past that a look considers, after a pause of the whole machine.
MINUTES = 24 * 60

log = logging.getLogger("celery.beat")


class Watch:
    """When each task was sent last, and which are due since when; all in seconds since 1970."""

    def __init__(self, scheduler: Any, file: Path) -> None:
        self.scheduler = scheduler
        self.file = file
        self.looked = time.time()
        self.sent = 0
        # By the name of the entry: its schedule, and when it was sent last or seen first.
        self.since: dict[str, tuple[Any, float]] = {}
        self.due: dict[str, float] = {}
        self.warned: set[str] = set()

    def start(self) -> None:
        """Have the scheduler report what it sends, and look after its ticks."""
        apply_async, tick = self.scheduler.apply_async, self.scheduler.tick

        def noted(entry: Any, *args: Any, **kwargs: Any) -> Any:
            result = apply_async(entry, *args, **kwargs)
            self.note_sent(entry.name)
            return result

        def watched() -> Any:
            seconds = tick()
            self.look(seconds)
            return seconds

        self.scheduler.apply_async, self.scheduler.tick = noted, watched
        self.write(0)

    def note_sent(self, name: str) -> None:
        self.sent += 1
        if name in self.since:
            self.since[name] = (self.since[name][0], time.time())
        self.due.pop(name, None)
        self.warned.discard(name)

    def look(self, seconds: float) -> None:
        """Find what is due since the last look, and write it down; the next tick is in so many seconds."""
        if time.time() - self.looked < LOOK_SECONDS and seconds < LOOK_SECONDS:
            return
        try:
            self.find_due(dict(entries(self.scheduler)), time.time())
            self.write(seconds)
        except Exception:
            # Beat does without it.
            log.exception("Cannot look for periodic tasks that were not sent.")

    def find_due(self, schedules: dict[str, Any], now: float) -> None:
        known = self.since
        self.since = {
            name: known[name] if name in known and known[name][0] == wanted else (wanted, now)
            for name, wanted in schedules.items()
        }
        self.due = {name: moment for name, moment in self.due.items() if self.since.get(name) == known.get(name, ())}
        for name, (wanted, since) in self.since.items():
            moment = first_due(wanted, since, max(since, min(self.looked, now)), now)
            if moment is not None:
                self.due.setdefault(name, moment)
        self.looked = now
        for name in sorted(self.overdue(now).keys() - self.warned):
            moment = datetime.fromtimestamp(self.due[name]).astimezone()
            log.warning("The periodic task %s was due at %s and was not sent.", name, moment.isoformat("T", "seconds"))
            self.warned.add(name)

    def overdue(self, now: float) -> dict[str, float]:
        return {name: moment for name, moment in self.due.items() if now - moment > LATE_SECONDS}

    def write(self, seconds: float) -> None:
        now = time.time()
        state = {"tick": now, "next_tick": now + seconds, "sent": self.sent, "overdue": self.overdue(now)}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self.file)


def watch(scheduler: Any, file: Path) -> None:
    Watch(scheduler, file).start()


def entries(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and schedule of what the scheduler should send. RedBeat's schedule shows only what it finds due."""
    if schedule.keeps_entries_in_database(type(scheduler)):
        # Not the scheduler's own list, which leaves out what it thinks is not due for hours.
        for model in scheduler.Model.objects.filter(enabled=True):
            if not (model.one_off or model.start_time or model.expires):
                yield model.name, model.schedule
    elif compat.runs_celerys_tick(scheduler):
        for name, entry in scheduler.schedule.items():
            yield name, entry.schedule


def first_due(wanted: Any, since: float, looked: float, now: float) -> float | None:
    """Return when a task that was sent last at `since` is due, if that is between the last look and now, or before."""
    if minutes_of := crontab_of(wanted):
        first, last = math.floor(looked / 60) + 1, math.floor(now / 60)
        matching = (minute * 60.0 for minute in range(max(first, last - MINUTES), last + 1) if minutes_of(minute * 60))
        return next(matching, None)
    if interval := getattr(wanted, "run_every", None):
        moment = since + interval.total_seconds()
        return moment if moment <= now else None
    return None  # Sunrise, or a single moment.


def crontab_of(wanted: Any) -> Callable[[float], bool] | None:
    """Return a function that says whether a crontab names a minute; None for other schedules."""
    from celery.schedules import crontab

    if not isinstance(wanted, crontab):
        return None

    def names(moment: float) -> bool:
        local = datetime.fromtimestamp(moment, wanted.tz)
        return (
            local.minute in wanted.minute
            and local.hour in wanted.hour
            and local.isoweekday() % 7 in wanted.day_of_week
            and local.day in wanted.day_of_month
            and local.month in wanted.month_of_year
        )

    return names
