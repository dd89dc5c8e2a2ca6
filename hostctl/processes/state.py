"""What a process manager says about one process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessState:
    """`state` is in systemd's words (active, activating, deactivating), under Supervisor too.

    `restarts` counts automatic restarts; Supervisor does not count them: None. `memory_kills` counts the processes that
    the kernel has killed at the memory limit since the main process started.
    """

    unit: str
    state: str
    restarts: int | None
    memory_kills: int = 0
