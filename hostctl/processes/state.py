"""What a process manager says about one process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessState:
    """`state` is in systemd's words (active, activating, deactivating, inactive, failed), under Supervisor too.

    `restarts` counts automatic restarts since the process was started on purpose; None where that is not known.
    `since` is when the state began, in seconds since the epoch; 0 where that is not known. `memory_kills` counts the
    processes that the kernel has killed at the memory limit since the main process started.
    """

    unit: str
    state: str
    restarts: int | None
    since: int = 0
    memory_kills: int = 0

    @property
    def runs(self) -> bool:
        """Does it run, or is it about to?"""
        return self.state in ("active", "activating", "reloading")
