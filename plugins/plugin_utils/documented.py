"""Validate the arguments of an action plugin against its own DOCUMENTATION, so that the two cannot differ."""

from __future__ import annotations

from typing import Any

import yaml
from ansible.plugins.action import ActionBase

SPEC_KEYS = ("type", "elements", "required", "default", "choices")


def argument_spec(options: dict[str, Any]) -> dict[str, Any]:
    """Return the argument spec of documented options, including their suboptions."""
    spec = {}
    for name, option in options.items():
        spec[name] = {key: option[key] for key in SPEC_KEYS if key in option}
        if "suboptions" in option:
            spec[name]["options"] = argument_spec(option["suboptions"])
    return spec


def documented_arguments(action: ActionBase, documentation: str) -> dict[str, Any]:
    """Return the task's arguments with types and defaults applied.

    Raises AnsibleError for an unknown option, a missing one and a value of the wrong type.
    """
    _, arguments = action.validate_argument_spec(argument_spec(yaml.safe_load(documentation)["options"]))
    return arguments
