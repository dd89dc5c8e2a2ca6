"""Run a command that takes minutes on a host, and print its output as it comes; outlive a lost connection."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: followed_command
short_description: Run a long command on a host, and print its output as it comes
description:
  - Starts the command in the background and prints each line of its output, errors among them, within seconds.
  - The command continues when the connection is lost; this action then reconnects for ten minutes.
options:
  argv: {type: list, elements: str, required: true, description: The command and its arguments.}
  folder: {type: path, default: /run, description: "Where its output is kept while it runs, readable by its user."}
author: Seedbed
"""

EXAMPLES = r"""
- name: Restore
  followed_command:
    argv: [/usr/local/sbin/shopctl, backup, restore, --yes]
"""

RETURN = r"""
rc: {description: The exit status of the command; absent if it was killed., type: int}
stdout: {description: "Its output, which was printed.", type: str}
"""

display = Display()

# Seconds between two looks, and that a lost connection may take to come back.
PAUSE = 2
RECONNECT = 600
RUNNING, KILLED = "running", "killed"

# $0 is the file of the output. A call that is repeated, since its answer was lost, finds the file and starts nothing.
START = r"""
umask 077
(set -C; : >"$0") 2>/dev/null && setsid -f sh -c '
  echo $$ >"$0.process"; "$@" >>"$0" 2>&1; echo $? >"$0.new"; mv "$0.new" "$0.status"
' "$0" "$@" </dev/null >/dev/null 2>&1
for look in 1 2 3 4 5 6 7 8 9 10; do
  [ ! -s "$0.process" ] || exit 0
  sleep 1
done
echo "it could not be started" >&2
exit 1
"""
# Print the output from line $1 on, and how it is: its end is looked for first, so that no line after it is left out.
LOOK = r"""
how=running
kill -0 "$(cat "$0.process")" 2>/dev/null || how=killed
[ ! -e "$0.status" ] || how=$(cat "$0.status")
tail -n "+$1" "$0"
printf '\n%s\n' "$how"
"""
REMOVE = 'rm -f "$0" "$0.process" "$0.status"'


class ActionModule(ActionBase):
    """Start the command and follow its output until its end."""

    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self.host = (task_vars or {}).get("inventory_hostname", "")
        arguments = documented_arguments(self, DOCUMENTATION)
        log = str(Path(arguments["folder"], f"followed-{uuid4().hex}"))
        self.call_again(START, log, *arguments["argv"])
        lines: list[str] = []
        how = RUNNING
        while how == RUNNING:
            time.sleep(PAUSE)
            *new, rest, how = self.call_again(LOOK, log, str(len(lines) + 1)).removesuffix("\n").split("\n")
            # A line that is not whole yet comes with the next look.
            new += [rest] if rest and how != RUNNING else []
            for line in new:
                display.display(f"  {self.host}: {line}".rstrip())
            lines += new
        self.call_again(REMOVE, log)
        result = {"changed": True, "stdout": "\n".join(lines)}
        if how == KILLED:
            return result | {"failed": True, "msg": f"{shlex.join(arguments['argv'])} was killed."}
        return result | {"failed": how != "0", "rc": int(how)}

    def call_again(self, script: str, *words: str) -> str:
        """Run a script, again for a while if the connection is lost, and return what it prints.

        Raises AnsibleActionFail if it fails.
        """
        deadline = time.monotonic() + RECONNECT
        while True:
            try:
                command = shlex.join(["sh", "-c", script, *words])
                done = self._low_level_execute_command(command, sudoable=True)
                if done["rc"] != 0:
                    raise AnsibleActionFail(f"{self.host}: {(done['stdout'] + done['stderr']).strip()}")
                return done["stdout"]
            except AnsibleConnectionFailure as error:
                if time.monotonic() > deadline:
                    raise
                lost = f"{self.host}: connection lost ({error.message})."
                display.warning(f"{lost} The command continues on the host; reconnecting.")
                time.sleep(PAUSE)
