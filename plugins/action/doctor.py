"""Have a host check itself, and print its screen as it is."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.applied import clone_of, digests
from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: doctor
short_description: Check a host with APPctl, and print what was found
description:
  - Runs C(APPctl doctor) on the host and prints its lines. A host that is not well does not fail the task.
  - The program gets hashes of this clone's settings, and says which differ from those that were applied.
  - Changes nothing. Supports check mode.
options:
  program: {type: str, required: true, description: Path of the program on the host.}
  project: {type: path, required: true, description: The top folder of this repository.}
author: Seedbed
"""

EXAMPLES = r"""
- name: Check the host
  doctor:
    program: /usr/local/sbin/shopctl
    project: "{{ role_path | dirname | dirname }}"
"""

RETURN = r"""
host: {description: Name of the host in the inventory., type: str}
broken: {description: Whether something is broken on the host., type: bool}
"""

BROKEN = 2  # exit status: 0 all is well, 1 a warning


def inventories(sources: Sequence[str], project: Path) -> list[str]:
    """Return what commands give with `-i`: paths relative to the clone, where `site.yml` is; absolute ones outside.

    Empty if one of the sources is a list of hosts (`host,`), which has no path: it may be a part of the inventory.
    """
    paths = [Path(source) for source in sources]
    if not all(path.is_absolute() for path in paths):
        return []
    return [str(path.relative_to(project) if path.is_relative_to(project) else path) for path in paths]


class ActionModule(ActionBase):
    """Run the program."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        host = variables.get("inventory_hostname", "")
        arguments = documented_arguments(self, DOCUMENTATION)
        project = Path(arguments["project"]).resolve()
        clone = clone_of(project, Path(variables.get("inventory_dir") or project))
        clone |= {"settings": digests(project, variables, self._templar.template)}
        clone["inventories"] = inventories(variables.get("ansible_inventory_sources") or (), project)
        command = shlex.join([arguments["program"], "doctor"])
        done = self._low_level_execute_command(f"{command} --clone-settings", in_data=json.dumps(clone).encode())
        if "unrecognized arguments" in done["stderr"]:  # a program of an earlier version
            done = self._low_level_execute_command(command)
        lines = done["stdout"].splitlines()
        if not lines:
            return {"failed": True, "msg": done["stderr"].strip() or f"{command}: exit status {done['rc']}"}
        # In one piece, so that the lines of several hosts do not mix.
        self._display.display("\n".join(f"  {host}: {line}".rstrip() for line in lines))
        return {"changed": False, "host": host, "broken": done["rc"] >= BROKEN}
