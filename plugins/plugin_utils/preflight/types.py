"""Types of the settings, as the roles' meta/argument_specs.yml declare them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .names import RENAMED_PARTS
from .problems import one_of, quoted

KINDS = {
    "raw": "a value",
    "str": "text",
    "path": "a path",
    "bool": "true or false",
    "int": "a whole number",
    "list": "a list",
    "dict": "a mapping of names to values",
}
# What is shown of a value that may hold a password.
CONTAINERS = {str: "text", list: "a list", Mapping: "a mapping"}


def has_type(value: Any, kind: str) -> bool:
    """Return whether a value is of a type; a number may be text, as -e and some templates give it."""
    if kind == "raw":
        return value is not None
    if kind == "int":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, str) and re.fullmatch(r"-?\d+", value) is not None
        )
    return isinstance(value, {"str": str, "path": str, "bool": bool, "list": list, "dict": Mapping}[kind])


def type_problems(value: Any, spec: Mapping[str, Any], part: str = "") -> Iterator[tuple[str, str]]:
    """Yield (part, sentence) for each wrong type, down to the entries of lists and mappings."""
    if not has_type(value, spec["type"]):
        yield part, type_sentence(value, spec)
        return
    # Those of a list are for its entries.
    if spec.get("choices") and spec["type"] != "list" and value not in spec["choices"]:
        yield part, f"must be {one_of(spec['choices'])}; it is {shown(value, spec)}."
    if spec["type"] == "list":
        for position, entry in enumerate(value, start=1):
            name = entry.get("name", position) if isinstance(entry, Mapping) else position
            yield from type_problems(entry, {**spec, "type": spec["elements"]}, f"{part}.{name}")
    if spec["type"] == "dict" and "options" in spec:
        yield from option_problems(value, spec["options"], part)


def option_problems(value: Mapping[str, Any], options: Mapping[str, Any], part: str) -> Iterator[tuple[str, str]]:
    for name in value:
        if name not in options:
            new = RENAMED_PARTS.get(name)
            renamed = f"was renamed to {new}." if new in options else ""
            yield f"{part}.{name}", renamed or f"is not a setting; valid are {', '.join(options)}."
    for name, spec in options.items():
        if name in value:
            yield from type_problems(value[name], spec, f"{part}.{name}")
        elif spec.get("required"):
            yield f"{part}.{name}", "is missing."


def shown(value: Any, spec: Mapping[str, Any]) -> str:
    """Return a value as a message shows it; of one that may hold a password, only what it is."""
    if not spec.get("no_log"):
        return quoted(value)
    return next((kind for type_, kind in CONTAINERS.items() if isinstance(value, type_)), "something else")


def type_sentence(value: Any, spec: Mapping[str, Any]) -> str:
    if value is None:
        return f"must be {KINDS[spec['type']]}; it is empty." + (
            ' (Empty text is "".)' if spec["type"] == "str" else ""
        )
    if spec["type"] == "str" and isinstance(value, bool | int | float):
        kind = KINDS["bool"] if isinstance(value, bool) else "a number"
        return f"must be text; YAML reads {shown(value, spec)} as {kind}. Put it in quotes."
    if spec["type"] == "bool" and isinstance(value, str):
        return (
            f"must be true or false, without quotes; it is the text {shown(value, spec)}."
            " (With -e, write -e '{\"NAME\": true}'.)"
        )
    return f"must be {KINDS[spec['type']]}; it is {shown(value, spec)}."
