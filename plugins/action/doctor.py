"""Have a host check itself, and print its screen as it is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: doctor
short_description: Check a host with APPctl, and print what was found
description:
  - Runs C(APPctl doctor) on the host and prints its lines. A host that is not well does not fail the task.
  - Changes nothing. Supports check mode.
options:
  program: {type: str, required: true, description: Path of the program on the host.}
author: Seedbed
"""

EXAMPLES = r"""
- name: Check the host
  doctor:
    program: /usr/local/sbin/shopctl
"""

RETURN = r"""
host: {description: Name of the host in the inventory., type: str}
broken: {description: Whether something is broken on the host., type: bool}
"""

BROKEN = 2  # exit status: 0 all is well, 1 a warning


class ActionModule(ActionBase):
    """Run the program."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "")
        command = shlex.join([documented_arguments(self, DOCUMENTATION)["program"], "doctor"])
        done = self._low_level_execute_command(command, sudoable=True)
        lines = done["stdout"].splitlines()
        if not lines:
            return {"failed": True, "msg": done["stderr"].strip() or f"{command}: exit status {done['rc']}"}
        # In one piece, so that the lines of several hosts do not mix.
        self._display.display("\n".join(f"  {host}: {line}".rstrip() for line in lines))
        return {"changed": False, "host": host, "broken": done["rc"] >= BROKEN}
