"""Load group_vars/ and host_vars/ as Ansible does, and name the file and the line that cannot be read.

ansible-core 2.19 leaves both out of its error ("YAML parsing failed: Tabs are usually invalid in YAML.").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.vars import host_group_vars

DOCUMENTATION = """
name: settings_files
short_description: Load group_vars/ and host_vars/, with the place of an error
description:
  - Does what P(ansible.builtin.host_group_vars#vars) does, and replaces it in C(vars_plugins_enabled).
  - An error begins with the file, the line and the column. It quotes nothing of the file, which may hold a secret.
options:
  stage:
    ini: [{key: stage, section: vars_host_group_vars}]
    env: [{name: ANSIBLE_VARS_PLUGIN_STAGE}]
  _valid_extensions:
    default: [".yml", ".yaml", ".json"]
    description: The extensions of files of variables.
    env: [{name: ANSIBLE_YAML_FILENAME_EXT}]
    ini: [{key: yaml_valid_extensions, section: defaults}]
    type: list
    elements: string
extends_documentation_fragment: [vars_plugin_staging]
author: Seedbed
"""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def place(path: Path, error: BaseException) -> str:
    """Return FILE:LINE:COLUMN of an error of the YAML parser, FILE of another error."""
    # inventory/group_vars is a link.
    path = path.parent.resolve() / path.name
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    mark = next(filter(None, (getattr(cause, "problem_mark", None) for cause in causes(error))), None)
    return f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else str(shown)


class VarsModule(host_group_vars.VarsModule):
    def load_found_files(self, loader: Any, data: dict[str, Any], found_files: list[Any]) -> dict[str, Any]:
        for found in found_files:
            path = Path(os.fsdecode(found))
            try:
                data = super().load_found_files(loader, data, [found])
            except AnsibleError as error:
                # The base class repeats the message alone.
                raise AnsibleParserError(f"{place(path, error)}: {error.message}") from None
        return data
