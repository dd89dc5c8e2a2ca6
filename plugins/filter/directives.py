"""Filter: the lines of a configuration file without comments and blank lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from host.write_files import directives

DOCUMENTATION = r"""
name: directives
short_description: Return the lines of a configuration file without comments and blank lines
description:
  - Two texts with the same directives have the same effect, as in the result C(effective) of the action C(write_files).
options:
  _input: {description: The text., type: str, required: true}
author: Seedbed
"""

EXAMPLES = r"""
hash: "{{ lookup('ansible.builtin.template', 'web.service.j2') | directives | to_json | hash('sha256') }}"
"""

RETURN = r"""
_value: {description: The lines., type: list, elements: str}
"""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[[str], list[str]]]:
        """Return the filters by name."""
        return {"directives": directives}
