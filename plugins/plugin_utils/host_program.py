"""Base class of the actions that run a program of plugins/host on the managed host, in one round trip.

The program gets its request as JSON on stdin and prints its result as JSON. It needs Debian's Python alone. A regular
module takes two round trips and imports a good part of Ansible on the host, which takes longer than the work itself.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from plugin_utils.documented import documented_arguments

PROGRAMS = Path(__file__).parents[1] / "host"
PYTHON = ("/usr/bin/python3", "-IS", "-c")


class HostProgramAction(ActionBase):
    """Set `program` and `documentation`; override `request` where the arguments need preparation."""

    _supports_check_mode = True
    _supports_async = False

    program: ClassVar[str]
    documentation: ClassVar[str]

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        request = self.request(documented_arguments(self, self.documentation), task_vars or {})
        return self.execute(request | {"check": self._task.check_mode})

    def request(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return what the program gets on stdin."""
        return arguments

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the program. Raises AnsibleActionFail with its output if that is not JSON."""
        return self.answer(self.command(), request)

    def command(self) -> str:
        return shlex.join([*PYTHON, (PROGRAMS / self.program).read_text()])

    def answer(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON that a command prints when it gets the request on stdin. Raises AnsibleActionFail."""
        done = self._low_level_execute_command(command, in_data=json.dumps(request).encode())
        try:
            return json.loads(done["stdout"])
        except json.JSONDecodeError:
            output = (done["stdout"] + done["stderr"]).strip()
            raise AnsibleActionFail(f"{self._task.action}: {self.program} failed on the host:\n{output}") from None
