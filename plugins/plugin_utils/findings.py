"""Findings of an inspection as text: the list that `make init` and `make inspect` print, and the lines of a refusal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Protocol

from .preflight.problems import APP

HEADINGS = {"fine": "Fine", "decided": "Decided for you", "needs": "Needs you"}
BOLD, YELLOW, PLAIN = "\033[1m", "\033[1;33m", "\033[0m"
SUBJECT_WIDTH = 20


class Found(Protocol):
    """What this module reads of a Finding of the inspection."""

    kind: str
    subject: str
    text: str
    setting: str


def listing(findings: Iterable[Found], environment: str, width: int = 100, color: bool = False) -> str:
    """Return the list: fine, decided for you, needs you. `width` is in characters."""
    # Two settings may have the same reason.
    findings = {(found.kind, found.subject, found.text): found for found in findings}.values()
    lines: list[str] = []
    for kind, heading in HEADINGS.items():
        group = [finding for finding in findings if finding.kind == kind]
        if not group:
            continue
        title = f"{heading} ({len(group)})"
        lines += [f"{YELLOW if kind == 'needs' else BOLD}{title}{PLAIN}" if color else title]
        column = min(SUBJECT_WIDTH, max(len(finding.subject) for finding in group))
        for finding in group:
            lines += entry(finding.subject, in_files_of(environment, finding.text), column, width)
        lines.append("")
    return "\n".join(lines)


def in_files_of(environment: str, text: str) -> str:
    """Return a text that names the settings file of an environment instead of that of ENV."""
    return text.replace(APP, APP.replace("ENV", environment))


def entry(subject: str, text: str, column: int, width: int) -> Iterator[str]:
    """Yield the lines of one finding: its subject, and its text in a column of its own."""
    indent = " " * (column + 4)
    first = f"  {subject:<{column}}  "
    if len(subject) > column:
        yield f"  {subject}"
        first = indent
    wrapped = textwrap.wrap(text, max(width - len(indent), 40), break_long_words=False, break_on_hyphens=False)
    yield from (f"{indent if number else first}{line}" for number, line in enumerate(wrapped or [""]))


def refusals(findings: Iterable[Found], environment: str) -> list[str]:
    """Return a line for each finding that needs the user: what it is, and the setting to write."""
    return [f"{found.subject}: {with_setting(found, environment)}" for found in findings if found.kind == "needs"]


def with_setting(found: Found, environment: str) -> str:
    """Return the text of a finding with the setting that answers it, which many texts name already."""
    text = in_files_of(environment, found.text)
    if not found.setting or found.setting in re.findall(r"\w+", text):
        return text
    return f"{text} (Setting: {found.setting}.)"


def heading(settings: int, findings: int) -> str:
    """Return the first line of a refusal, by the number of invalid settings and of findings that need the user."""
    parts = [f"Invalid settings ({settings})"] if settings else []
    if findings:
        parts.append(f"{'the' if parts else 'The'} project needs you ({findings})")
    return f"{'; '.join(parts)}. No host was contacted."
