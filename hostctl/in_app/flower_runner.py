"""Run Flower as `celery flower` does, with its options, but without Celery's command line, which costs megabytes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

# Seconds between two looks at the workers that Flower remembers.
DISCARD_INTERVAL = 60


def main() -> None:
    # Python puts this folder first, where module names such as `worker` would hide installed ones.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
    from celery import Celery
    from flower import command
    from flower.app import Flower
    from tornado.ioloop import PeriodicCallback

    command.apply_env_options()
    command.apply_options(sys.argv[0], sys.argv[1:])
    command.extract_settings()
    command.setup_logging()
    # Celery takes the broker from the environment variable CELERY_BROKER_URL.
    flower = Flower(capp=Celery(), options=command.options, **command.settings)
    port = flower.start_http_server()
    if seconds := command.options.purge_offline_workers:
        PeriodicCallback(lambda: discard_workers(flower, seconds), DISCARD_INTERVAL * 1000).start()
    print(f"Flower listens on {command.options.address}:{port}.", flush=True)
    flower.start()


def discard_workers(flower: Any, seconds: float) -> None:
    """Discard workers that have been offline for so many seconds, in all that Flower keeps about them.

    Each release has workers of its own names. Flower's option hides them in its list, and keeps them in memory.
    """
    state, inspected = flower.events.state, flower.inspector.workers
    names = {*state.workers, *state.counter, *inspected}
    offline = {name for name in names if time.time() - last_seen(state.workers.get(name)) >= seconds}
    state.metrics.remove_workers(offline)
    for name in offline:
        state.workers.pop(name, None)
        state.counter.pop(name, None)
        inspected.pop(name, None)


def last_seen(worker: Any) -> float:
    """Return when a worker was last heard of, in seconds since 1970; 0 for one that Flower has no record of.

    The record of one that was stopped has no heartbeats any more.
    """
    return max(worker.heartbeats, default=getattr(worker, "timestamp", None) or 0) if worker else 0.0


if __name__ == "__main__":
    main()
