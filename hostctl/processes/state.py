"""What process managers have in common: the state of a process, the release in a unit's name, and files to install."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Placeholder of the release's ID in the definitions that Ansible wrote.
PLACEHOLDER = "@RELEASE@"


@dataclass(frozen=True)
class ProcessState:
    """`state` is in systemd's words (active, activating, deactivating), under Supervisor too.

    `restarts` counts automatic restarts; Supervisor does not count them: None.
    """

    unit: str
    state: str
    restarts: int | None


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
