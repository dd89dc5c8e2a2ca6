"""What beat says of itself: whether it looks at its schedule, and what it should have sent (in_app/overdue.py)."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .settings import Settings, read_file, utc

# Seconds after the time of its next tick for which beat may be busy, for instance while Redis restarts.
STUCK_SECONDS = 120
# How many overdue tasks a line names.
NAMED = 3


def state_file(settings: Settings) -> Path:
    return settings.home / "shared/beat/state.json"


def writes_state(settings: Settings, release: str) -> bool:
    """Return whether beat of a release writes its state: not that of an earlier version."""
    return (settings.configuration(release) / "lib/hostctl/in_app/overdue.py").exists()


def forget(settings: Settings) -> None:
    """Remove the state of the beat before: the next one writes its own when it has read its schedule."""
    # The application may have made something else of it.
    with suppress(OSError):
        state_file(settings).unlink()


def forget_others(settings: Settings, release: str) -> None:
    """Remove the state of another release's beat where that of this release writes none."""
    if not writes_state(settings, release):
        forget(settings)


def warnings(settings: Settings) -> list[str]:
    """Return what is wrong with a beat that runs; [] when nothing is, or when it does not say."""
    try:
        state = json.loads(read_file(state_file(settings)))
        return [*overdue(state, settings), *stuck(state, settings)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # Beat of an earlier version, or one that has not begun. The application writes the file.
        return []


def overdue(state: dict[str, Any], settings: Settings) -> list[str]:
    late = sorted(state["overdue"].items(), key=lambda entry: entry[1])
    if not late:
        return []
    names = ", ".join(f"{name[:100]!r} (due {utc(seconds)})" for name, seconds in late[:NAMED])
    more = f" and {len(late) - NAMED} more" if len(late) > NAMED else ""
    return [
        f"Periodic tasks were due and beat has not sent them: {names}{more}. See {settings.name}ctl logs beat; with "
        "django_celery_beat's scheduler, set USE_TZ = True."
    ]


def stuck(state: dict[str, Any], settings: Settings) -> list[str]:
    if time.time() < state["next_tick"] + STUCK_SECONDS:
        return []
    since = utc(state["tick"])
    return [f"Beat has not looked at its schedule since {since}: see {settings.name}ctl logs beat, and Redis."]
