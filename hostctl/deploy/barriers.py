"""Several hosts deploy together: each waits at a barrier until the control machine says that all have reached it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..host import Host
from ..settings import ReleaseError
from .environment import BUILD_SECONDS
from .record import Record
from .steps import BARRIERS

WAIT_SECONDS = 600
# The leader dumps and migrates the database for all; the others wait for it.
MIGRATE_SECONDS = 6 * 3600


def barrier_file(host: Host) -> Path:
    """Return the file that holds the names of the barriers that this host may pass."""
    return host.settings.home / "barriers"


def close_all(host: Host) -> None:
    barrier_file(host).write_text("")


def open_up_to(host: Host, barrier: str) -> None:
    """Let the deployment pass every barrier before this one; "end" opens all."""
    passed = BARRIERS if barrier == "end" else BARRIERS[: BARRIERS.index(barrier)]
    barrier_file(host).write_text(" ".join(passed))


def wait_at(host: Host, record: Record, barrier: str) -> None:
    """Wait until the barrier is open.

    Raises ReleaseError after ten minutes, after an hour while another host builds, after six hours while it migrates.
    """
    record.note(waits_at=barrier)
    # Up to the first barrier each host builds the release, with the project's own build commands.
    seconds = BUILD_SECONDS if barrier == BARRIERS[0] else WAIT_SECONDS
    if barrier == "migrate" and not host.settings.leader:
        seconds = MIGRATE_SECONDS
    deadline = time.monotonic() + seconds
    while barrier not in barrier_file(host).read_text().split():
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"No go-ahead for {seconds // 60} minutes at the barrier after {barrier}: another host has not reached "
                "it, or the control machine is gone."
            )
        time.sleep(0.1)
    record.note(waits_at="")


def has_reached(state: dict[str, Any], barrier: str) -> bool:
    """Return whether a deployment waits at this barrier or a later one; a rollback has no early barriers."""
    at = state.get("waits_at")
    return at in BARRIERS and barrier in BARRIERS and BARRIERS.index(at) >= BARRIERS.index(barrier)
