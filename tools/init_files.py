"""The files that `make init` writes: an inventory of one server, and the settings of an environment."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

GROUPS = ("web", "worker", "scheduler", "database", "broker")
WIDTH = 120


@dataclass(frozen=True)
class Server:
    """Where the server is, and how SSH reaches it first. Without a user that is root."""

    host: str
    user: str = "root"
    port: int = 0


@dataclass(frozen=True)
class Entry:
    """A setting to write: its value, and why. One that is only `suggested` is written as a comment."""

    name: str
    value: Any
    why: str = ""
    suggested: bool = False


def inventory_text(environment: str, server: Server) -> str:
    """Return an inventory with one host in every group."""
    host = {"ansible_host": server.host, "ansible_user": server.user} | (
        {"ansible_port": server.port} if server.port else {}
    )
    lines = [
        *comment(
            f"One server that runs everything, written by `make init`. The group {environment} around the hosts names "
            f"the environment: group_vars/{environment}/ has its settings. More hosts: docs/several-hosts.md."
        ),
        "---",
        f"{scalar(environment)}:",
        "  hosts:",
        "    server1:",
        *(f"      {name}: {scalar(value)}" for name, value in host.items()),
        "  children:",
        *(f"    {group}: {{hosts: {{server1: {{}}}}}}" for group in GROUPS),
    ]
    return "\n".join(lines) + "\n"


def settings_text(environment: str, sections: Mapping[str, Iterable[Entry | str]]) -> str:
    """Return app.yml: for each section its settings, each below its explanation. A text is a comment alone."""
    lines = ["---"]
    lines += comment(
        f"Settings of the hosts in the group {environment}, written by `make init` from what it found in the project. "
        "The file is yours: edit it, commit it. What is left out keeps its default: docs/settings.md. "
        "Secrets of your own choice belong in vault.yml beside it: "
        f"ansible-vault create group_vars/{environment}/vault.yml"
    )
    for title, entries in sections.items():
        blocks = [list(block(entry)) for entry in entries]
        if blocks:
            lines += ["", f"## {title}"]
        for found in blocks:
            lines += ["", *found]
    return "\n".join(lines) + "\n"


def block(entry: Entry | str) -> Iterator[str]:
    """Yield the lines of one setting, its explanation first."""
    if isinstance(entry, str):
        yield from comment(entry)
        return
    yield from comment(entry.why)
    for line in assignment(entry.name, entry.value):
        yield f"# {line}" if entry.suggested else line


def comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def assignment(name: str, value: Any) -> list[str]:
    """Return the lines of `name: value` in YAML; each entry of a list or a mapping has one line, if it is short."""
    if isinstance(value, Mapping) and value:
        return [f"{name}:", *(f"  {line}" for key, inner in value.items() for line in assignment(scalar(key), inner))]
    if isinstance(value, list) and value:
        return [f"{name}:", *(f"  - {scalar(item)}" for item in value)]
    if isinstance(value, str) and re.fullmatch(r"\S.*(\n.*\S)+\n?", value):
        lines = value.removesuffix("\n").split("\n")
        return [f"{name}: |{'' if value.endswith(chr(10)) else '-'}", *(f"  {line}" for line in lines)]
    return [f"{name}: {scalar(value)}"]


def scalar(value: Any) -> str:
    """Return a value on one line of YAML."""
    if isinstance(value, str) and "{{" in value and '"' not in value and "\\" not in value:
        return f'"{value}"'
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
