"""Have services running, now and at boot, in one trip.

    - running:
        services: [nginx.service]

`stopped` are units that must not run, stopped and disabled first; `services` are started and enabled in this order;
`restarted` are restarted in any case; with `daemon_reload` systemd reads the units again first. A service that does not
start fails with the last lines of its journal. Returns `started`: the services that did not run before, which have read
their settings just now.

Why not ansible.builtin.systemd_service: see templates.py.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

PROGRAM = Path(__file__).parents[1] / "host/systemd_units.py"
OPTIONS = {"services": [], "stopped": [], "restarted": [], "daemon_reload": False}


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        if unknown := set(self._task.args) - set(OPTIONS):
            raise AnsibleActionFail(f"systemd_units has no option {', '.join(sorted(unknown))}")
        asked = json.dumps(OPTIONS | self._task.args | {"check": self._task.check_mode})
        command = shlex.join(["/usr/bin/python3", "-IS", "-c", PROGRAM.read_text()])
        done = self._low_level_execute_command(command, in_data=asked.encode())
        try:
            return json.loads(done["stdout"])
        except json.JSONDecodeError:
            raise AnsibleActionFail(f"systemd_units: {(done['stdout'] + done['stderr']).strip()}") from None
