"""What process managers have in common: the state of a process, the release in a unit's name, and files to install."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Placeholder of the release's ID in the definitions that Ansible wrote.
PLACEHOLDER = "@RELEASE@"


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


def release_of(unit: str) -> str:
    """Return the release in the name of a unit; "" for beat."""
    return unit.partition("@")[2]


def install(source: Path, target: Path, release: str) -> bool:
    """Install a definition of a release; return whether the file changed. Nothing happens without a definition."""
    if not source.exists():
        return False
    text = source.read_text().replace(PLACEHOLDER, release)
    if target.exists() and target.read_text() == text:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.rename(target)
    return True
