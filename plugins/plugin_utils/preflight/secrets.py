"""Secrets of the user's own choice. No message shows their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .application import one_line
from .problems import VAULT, Problem

GENERATE = "Set it, or remove the line to have it generated."


def secret_problems(secrets: Mapping[str, Any]) -> Iterator[Problem]:
    for name, value in secrets.items():
        if sentence := secret_problem(name, value):
            yield Problem(name, sentence, VAULT)


def secret_problem(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return "must be text. Put it in quotes."
    if not value.strip():
        return f"is empty. {GENERATE}"
    if "CHANGEME" in value.upper():
        return f"is still CHANGEME. {GENERATE}"
    if not one_line(value):
        return "must be one line. (In YAML, write it in quotes, not after | or >.)"
    if name == "secret_flower_password" and re.search("[:,]", value):
        return "must not contain a colon or a comma: Flower uses them as separators."
    if name == "secret_flower_password" and not value.isascii():
        return "must contain ASCII characters only: Flower cannot compare others."
    return ""
