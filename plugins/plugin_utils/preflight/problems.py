"""What the checks take and what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The files where a user's settings belong; the action replaces ENV.
APP = "group_vars/ENV/app.yml"
VAULT = "group_vars/ENV/vault.yml"


@dataclass
class Installation:
    """The settings and the hosts of one installation. `values` holds the settings whose templates could be resolved."""

    values: dict[str, Any]
    spec: dict[str, dict[str, Any]]
    project: Path
    inventory: str = "the inventory"
    groups: dict[str, list[str]] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    # Ports of this host that services listen on, and the services' names.
    ports: Mapping[int, str] = field(default_factory=dict)
    # Returns the text of a file on this machine, decrypted if ansible-vault has encrypted it.
    read: Callable[[str], str] = lambda path: Path(path).read_text()

    def members(self, group: str) -> list[str]:
        """Return the hosts of this installation in a group."""
        return [host for host in self.groups.get(group, []) if host in self.hosts]


@dataclass(frozen=True)
class Problem:
    """An invalid setting: its name, its part, a sentence, and the file where it belongs if it is set nowhere yet."""

    name: str
    sentence: str
    file: str = APP
    part: str = ""


def quoted(value: Any) -> str:
    """Return a value as a message shows it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def one_of(choices: list[str]) -> str:
    return quoted(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(quoted, choices))}"
