"""Beat of a release: once on a host, with signals deferred while it sends tasks or writes its schedule."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import broker, compat, overdue, schedule
from .locks import lock

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A last run that is more seconds than this in the future shows that the clock was set back.
CLOCK_TOLERANCE = 1

log = logging.getLogger("celery.beat")


def run_beat(arguments: argparse.Namespace) -> int:
    """Run beat until it is told to stop; a lock beside its schedule keeps a second one from running."""
    from celery.app.utils import find_app

    file = arguments.schedule.with_name("lock")
    if not lock(file):
        sys.exit(f"Beat is already running: another process has locked {file}.")
    state = arguments.schedule.with_name("state.json")
    state.unlink(missing_ok=True)
    app = find_app(arguments.app)
    # As beat does: a scheduler with models can be imported then.
    app.loader.init_worker()
    scheduler = schedule.without_lock(schedule.scheduler_class(schedule.choose(app, arguments.scheduler)))
    beat = app.Beat(schedule=str(arguments.schedule), scheduler_cls=scheduler, loglevel="INFO", quiet=True)
    if problems := compat.problems():
        print(*problems, sep="\n", file=sys.stderr, flush=True)
    else:
        broker.set_options(app)
        defer_signals_once_ready(beat, state)
    beat.run()
    return 0


def defer_signals_once_ready(beat: Any, state: Path) -> None:
    """Let a signal end beat at once until it has read its schedule, since there is nothing to write; defer it then.

    From then on beat writes to `state` what it does not send (overdue.py).
    """
    from celery.signals import beat_init

    install_handler, beat.install_sync_handler = beat.install_sync_handler, lambda service: None

    def on_init(sender: Any, **_: Any) -> None:
        follow_the_clock(sender.scheduler)
        overdue.watch(sender.scheduler, state)
        compat.wrap_scheduler(sender.scheduler, defer_signals)
        install_handler(sender)
        # This waits for the broker, and a signal may end it.
        _ = sender.scheduler.producer

    beat_init.connect(on_init, weak=False)


def follow_the_clock(scheduler: Any) -> None:
    """Have beat correct its schedule before each tick if the clock was set back."""
    if not compat.runs_celerys_tick(scheduler):
        return
    tick = scheduler.tick

    def corrected() -> Any:
        correct_future_runs(scheduler)
        return tick()

    scheduler.tick = corrected


def correct_future_runs(scheduler: Any) -> None:
    """Have a last run in the future count as now, since its task would not run until the clock has caught up."""
    entries = compat.waiting_entries(scheduler)
    ahead = [(entry, seconds) for entry in entries if (seconds := seconds_ahead(entry)) > CLOCK_TOLERANCE]
    if not ahead:
        return
    log.warning(
        "The clock was set back by about %d s, so the last run of these tasks is in the future. It counts as now: %s",
        max(seconds for _, seconds in ahead),
        ", ".join(sorted(entry.name for entry, _ in ahead)),
    )
    for entry, seconds in ahead:
        compat.set_last_run(scheduler, entry, entry.last_run_at - timedelta(seconds=seconds))
    compat.reschedule(scheduler)


def seconds_ahead(entry: Any) -> float:
    """Return how far the last run of an entry is in the future."""
    from celery.utils.time import maybe_make_aware

    last, now = entry.last_run_at, entry.default_now()
    if (last.tzinfo is None) != (now.tzinfo is None):
        # Naive times in the database are in UTC.
        last, now = maybe_make_aware(last), maybe_make_aware(now)
    return (last - now).total_seconds()


def defer_signals(work: Callable[[], Any]) -> Callable[[], Any]:
    """Return `work` with SIGTERM and SIGINT handlers deferred until it returns.

    Celery's handler writes the schedule. During a query it would wait forever for its own database connection,
    and a task that is being sent would be lost. Blocking signals does not help: another thread receives them.
    """

    def deferred() -> Any:
        received: list[Any] = []
        handlers = {number: signal.signal(number, lambda *call: received.append(call)) for number in STOP_SIGNALS}
        try:
            return work()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for number, frame in received[:1]:
                handlers[number](number, frame)

    return deferred
