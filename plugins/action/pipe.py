"""Give a command on the host its input, which stands in no process list and in no log.

    - pipe:
        command: [psql, --no-psqlrc]
        stdin: "{{ lookup('ansible.builtin.template', 'database.sql.j2') }}"

Returns `rc`, `stdout`, `stdout_lines` and `stderr`; another exit status than 0 is a failure. Skipped under --check.

Why not ansible.builtin.command: see templates.py.
"""

from __future__ import annotations

import shlex
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        if self._task.check_mode:
            return {"skipped": True, "stdout": "", "stdout_lines": []}
        done = self._low_level_execute_command(
            shlex.join(self._task.args["command"]), in_data=self._task.args["stdin"].encode()
        )
        failed = {"failed": True, "msg": done["stderr"] or done["stdout"]} if done["rc"] != 0 else {}
        return {"changed": True, **done, **failed}
