"""Have a host deploy or roll back a release, and print its progress; outlive a lost connection."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: deployment
short_description: Deploy or roll back a release with APPctl, and print its progress
description:
  - Starts C(APPctl deploy) or C(APPctl rollback) on the host, or follows such a deployment, and prints its output.
  - The work runs on the host in a systemd unit of its own. When the connection is lost, this action reconnects for two
    minutes; an idempotency key ensures that nothing is started twice.
  - With O(action=verify), checks that the current release runs, starts what does not, and else fails.
  - With several hosts, a task ends at the barrier that O(barrier) names; the next task continues with O(action=follow).
options:
  program: {type: str, required: true, description: Path of the program on the host.}
  action: {type: str, required: true, choices: [deploy, rollback, follow, verify], description: What to do.}
  release: {type: str, default: "", description: "ID of the release; a rollback defaults to the previous one."}
  archive: {type: str, default: "", description: "With O(action=deploy), the archive on the control machine."}
  force: {type: bool, default: false, description: Continue although the database is ahead of the release.}
  barrier: {type: str, default: "", description: "Barrier at which this task ends (hostctl/deploy/steps.py), or end."}
  log: {type: str, default: "", description: "With O(action=follow), RV(log) of an earlier task; V('') does nothing."}
  offset: {type: int, default: 0, description: "With O(action=follow), RV(offset) of an earlier task."}
author: Seedbed
"""

EXAMPLES = r"""
- name: Roll back to the previous release
  deployment:
    program: /usr/local/sbin/shopctl
    action: rollback
"""

RETURN = r"""
log:
  description: Path of the deployment's log on the host; empty if there was nothing to do.
  type: str
offset:
  description: Number of bytes of the log that were printed.
  type: int
"""

display = Display()

# Seconds that the host collects output for one answer. Each answer costs it a third of a second of CPU time.
SLICE = 5
# Seconds that a lost connection may take to come back.
RECONNECT = 120
# Bytes of an archive that travel with one command: what this action and the connection hold in memory.
PART = 16 * 2**20
COMMAND_NOT_FOUND = 127  # exit status of a shell


def read_part(archive: Path, offset: int) -> bytes:
    with archive.open("rb") as file:
        file.seek(offset)
        return file.read(PART)


def unpacked_size(archive: Path) -> int:
    """Return the bytes of a .tar.gz without its compression, from its last four bytes: at least that many."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 4))
        return int.from_bytes(file.read(4), "little")


class ActionModule(ActionBase):
    """Start the program and follow its log until its end or the barrier."""

    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self.host = (task_vars or {}).get("inventory_hostname", "")
        self.lines: list[str] = []
        self.arguments = documented_arguments(self, DOCUMENTATION)
        action, barrier = self.arguments["action"], self.arguments["barrier"]
        if action == "follow" and not self.arguments["log"]:
            return {"changed": False, "log": "", "offset": 0}
        if action == "follow":
            state = {"log": self.arguments["log"], "offset": self.arguments["offset"], "running": True}
        elif action == "verify":
            state = self.call_again("verify")
        else:
            state = self.start()
        while state["running"] and not (barrier and state.get("reached")):
            options = ["--log", state["log"], "--from", str(state["offset"])]
            state = self.call_again("follow", *options, *(["--until", barrier] if barrier else []))
        status = 0 if state["running"] else state.get("status", 1)
        if status != 0:
            return {"failed": True, "msg": self.reason(state)}
        # Without a log the release was live already.
        changed = state.get("changed", bool(state.get("log")))
        return {"changed": changed, "log": state.get("log", ""), "offset": state.get("offset", 0)}

    def start(self) -> dict[str, Any]:
        """Start the deployment; the archive travels with the command, or a large one in parts before it.

        If the command is sent again, by ssh or by this action, the host recognizes its key and only follows.
        """
        words = [self.arguments["action"], *([self.arguments["release"]] if self.arguments["release"] else [])]
        key, data = ["--key", uuid4().hex], None
        if self.arguments["archive"]:
            archive = Path(self.arguments["archive"])
            size = ["--bytes", str(archive.stat().st_size), "--unpacked", str(unpacked_size(archive))]
            offset, state = self.send_parts(archive, ["receive", self.arguments["release"], *size, *key])
            if state.get("status"):
                return state
            data = read_part(archive, offset)
            words += ["-", *size, "--offset", str(offset)]
        words += ["--by", f"{getpass.getuser()}@{socket.gethostname()}", *key]
        words += ["--force"] if self.arguments["force"] else []
        return self.call_again(*words, data=data)

    def send_parts(self, archive: Path, words: list[str]) -> tuple[int, dict[str, Any]]:
        """Send every part of an archive but the last one; return the offset of that, and the last answer.

        The host checks its disk before the first part; a status that is not 0 ends this.
        """
        size = archive.stat().st_size
        if size <= PART:
            return 0, {}
        state = self.call_again(*words)
        if not state.get("status"):
            display.display(f"  {self.host}: Sending the archive ({size >> 20} MiB).")
        offset = 0
        while size - offset > PART and not state.get("status"):
            state = self.call_again(*words, "--offset", str(offset), data=read_part(archive, offset))
            offset += PART
        return offset, state

    def call_again(self, *words: str, data: bytes | None = None) -> dict[str, Any]:
        """Call the program, again for a while if the connection is lost: the deployment continues without it."""
        deadline = time.monotonic() + RECONNECT
        while True:
            try:
                return self.call(list(words), data)
            except AnsibleConnectionFailure as error:
                if time.monotonic() > deadline:
                    raise
                lost = f"{self.host}: connection lost ({error.message})."
                display.warning(f"{lost} The deployment continues on the host; reconnecting.")
                time.sleep(2)

    def call(self, words: list[str], data: bytes | None = None) -> dict[str, Any]:
        """Run the program once, print its new output, and return its state."""
        command = shlex.join([self.arguments["program"], *words, "--json", "--seconds", str(SLICE)])
        done = self._low_level_execute_command(command, sudoable=True, in_data=data)
        try:
            state = json.loads(done["stdout"].strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            state = {"error": self.other_output(done), "status": done["rc"] or 1}
        if "error" in state:
            state = {"text": f"{state['error']}\n", "running": False, "status": state["status"]}
        for line in state.get("text", "").splitlines():
            self.lines.append(line)
            display.display(f"  {self.host}: {line}")
        return state

    def other_output(self, done: dict[str, Any]) -> str:
        """Return the output of a command that did not answer in JSON."""
        output = (done["stdout"] + done["stderr"]).strip()
        if done["rc"] == COMMAND_NOT_FOUND:
            output = f"{output}\n{self.arguments['program']} is not installed. Run playbooks/provision.yml first."
        return output

    def reason(self, state: dict[str, Any]) -> str:
        """Return which step failed, why, and what is live now; the whole output was printed before."""
        if "status" not in state:
            step = f" at step {state['step']}" if "step" in state else ""
            return f"The deployment was killed{step}. Run the same command again: it completes or reverts it."
        failed = [line for line in self.lines if " failed at step " in line]
        causes = [line for line in self.lines if line.startswith("Cause: ")]
        return "\n".join(dict.fromkeys([*failed[-1:], *causes[-1:], *self.lines[-1:]]))
