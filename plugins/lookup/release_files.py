"""Lookup: the files that a release gets beside its source, from this machine."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: release_files
short_description: Return the files of app_files
description:
  - Returns a mapping of each path in the release to the content as base64.
  - Files that ansible-vault encrypted are decrypted.
options:
  _terms:
    description: A mapping of paths to C(src), a file on this machine, or C(content), its text.
    type: list
    required: true
author: Seedbed
"""

EXAMPLES = r"""
runtime_files: "{{ lookup('release_files', app_files) }}"
"""

RETURN = r"""
_raw: {description: The mapping., type: list, elements: dict}
"""

REPOSITORY = Path(__file__).resolve().parents[2]


class LookupModule(LookupBase):
    def run(
        self, terms: list[Mapping[str, Any]], variables: dict[str, Any] | None = None, **options: Any
    ) -> list[dict[str, str]]:
        self.set_options(var_options=variables, direct=options)
        # The role preflight reports others.
        files = {path: file for term in terms for path, file in term.items() if isinstance(file, Mapping)}
        return [{path: base64.b64encode(self.content(file)).decode() for path, file in sorted(files.items())}]

    def content(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file; `src` is relative to the repository. Raises AnsibleLookupError."""
        if "content" in file:
            return str(file["content"]).encode()
        path = REPOSITORY / Path(file["src"]).expanduser()
        if not path.is_file():
            raise AnsibleLookupError(f"app_files names {path}, which does not exist on this machine.")
        return Path(self._loader.get_real_file(str(path))).read_bytes()
