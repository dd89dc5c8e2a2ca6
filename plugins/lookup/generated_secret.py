"""Lookup: a generated secret of the installation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.generated import secret

DOCUMENTATION = r"""
name: generated_secret
short_description: Return a generated secret
description:
  - Returns the content of a file. If the file does not exist, returns a new secret, the same for the rest of the run.
  - Writes nothing to the file's folder. M(secret_fingerprints) does, when no host has other secrets in use.
options:
  _terms: {description: Paths of the files., type: list, elements: str, required: true}
  length: {description: Length of a new secret, type: int, default: 32}
author: Seedbed
"""

EXAMPLES = r"""
secret_token: "{{ lookup('generated_secret', app_secrets ~ '/token', length=50) }}"
"""

RETURN = r"""
_raw: {description: The secrets., type: list, elements: str}
"""


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
        self.set_options(var_options=variables, direct=options)
        return [secret(Path(term).expanduser(), self.get_option("length")) for term in terms]
