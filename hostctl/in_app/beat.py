"""Beat of a release: once on a host, with signals deferred while it sends tasks or writes its schedule."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from . import broker, compat
from .locks import lock

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_beat(arguments: argparse.Namespace) -> int:
    """Run beat until it is told to stop; a lock beside its schedule keeps a second one from running."""
    from celery.app.utils import find_app

    file = arguments.schedule.with_name("lock")
    if not lock(file):
        sys.exit(f"Beat is already running: another process has locked {file}.")
    app = find_app(arguments.app)
    beat = app.Beat(schedule=str(arguments.schedule), loglevel="INFO", quiet=True)
    if problems := compat.problems():
        print(*problems, sep="\n", file=sys.stderr, flush=True)
    else:
        broker.set_options(app)
        defer_signals_once_ready(beat)
    beat.run()
    return 0


def defer_signals_once_ready(beat: Any) -> None:
    """Let a signal end beat at once until it has read its schedule, since there is nothing to write; defer it then."""
    from celery.signals import beat_init

    install_handler, beat.install_sync_handler = beat.install_sync_handler, lambda service: None

    def on_init(sender: Any, **_: Any) -> None:
        compat.wrap_scheduler(sender.scheduler, defer_signals)
        install_handler(sender)
        # This waits for the broker, and a signal may end it.
        _ = sender.scheduler.producer

    beat_init.connect(on_init, weak=False)


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
