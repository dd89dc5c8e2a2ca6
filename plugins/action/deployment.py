"""Have a host roll a release out (or back), show what it says as it goes, and outlive a lost connection.

    deployment:
      program: /usr/local/sbin/shopctl
      action: deploy, rollback or follow
      release: the release's ID ("" with rollback: the one before)
      archive: deploy: the archive on this machine
      force: also where the database is ahead of the release
      barrier: with several hosts: the barrier at which this task is done (see hostctl/deploy/steps.py), or "end"
      log, offset: what an earlier such task returned

The work is done by a program on the host, in a unit of its own. Returns log and offset.
"""

from __future__ import annotations

import getpass
import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# Seconds that the host collects lines for one answer, and that a lost connection may take to come back.
SLICE = 2
PATIENCE = 120


class ActionModule(ActionBase):
    """Starts the program and reads its log until its end, or until the meeting that was asked for."""

    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self.host = (task_vars or {}).get("inventory_hostname", "")
        self.lines: list[str] = []
        args = self._task.args
        until = args.get("barrier", "")
        if args["action"] == "follow" and not args["log"]:
            # There was nothing to do on this host.
            return {"changed": False, "log": "", "offset": 0}
        if args["action"] == "follow":
            state = {"log": args["log"], "offset": args["offset"], "running": True}
        else:
            state = self.begin(args)
        while state["running"] and not (until and state.get("reached")):
            options = ["--log", state["log"], "--from", str(state["offset"])]
            state = self.patiently("follow", *options, *(["--until", until] if until else []))
        status = 0 if state["running"] else state.get("status", 1)
        if status != 0:
            return {"failed": True, "msg": self.reason(state)}
        return {"changed": True, "log": state.get("log", ""), "offset": state.get("offset", 0)}

    def begin(self, args: dict[str, Any]) -> dict[str, Any]:
        """Start the rollout; the archive travels with the command.

        Sent again, by ssh or from here, the host knows the call and only shows what it has begun.
        """
        words = [args["action"], *([args["release"]] if args.get("release") else [])]
        archive = None
        if args.get("archive"):
            words.append("-")
            archive = Path(args["archive"]).read_bytes()
            words += ["--bytes", str(len(archive))]
        words += ["--by", f"{getpass.getuser()}@{socket.gethostname()}", "--call", uuid4().hex]
        words += ["--force"] if args.get("force") else []
        return self.patiently(*words, data=archive)

    def patiently(self, *words: str, data: bytes | None = None) -> dict[str, Any]:
        """Ask the host, and when the connection is lost, ask again for a while: the rollout goes on without it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.call(list(words), data)
            except AnsibleConnectionFailure as error:
                if time.monotonic() > deadline:
                    raise
                lost = f"{self.host}: the connection is lost ({error.message})."
                display.warning(f"{lost} What has begun goes on; trying again.")
                time.sleep(2)

    def call(self, words: list[str], data: bytes | None = None) -> dict[str, Any]:
        """Run the program once, show what is new, and return what it knows."""
        command = shlex.join([self._task.args["program"], *words, "--json", "--seconds", str(SLICE)])
        done = self._low_level_execute_command(command, sudoable=True, in_data=data)
        try:
            state = json.loads(done["stdout"].strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            state = {"error": (done["stdout"] + done["stderr"]).strip(), "status": done["rc"] or 1}
        if "error" in state:
            state = {"text": f"{state['error']}\n", "running": False, "status": state["status"]}
        for line in state.get("text", "").splitlines():
            self.lines.append(line)
            display.display(f"  {self.host}: {line}")
        return state

    def reason(self, state: dict[str, Any]) -> str:
        """Where it stopped, and what holds now; all that was said is on the screen already."""
        if "status" not in state:
            at = f" at the step {state['step']}" if "step" in state else ""
            return f"The rollout was killed{at}. Run the same again: it takes up what is left."
        stops = [line for line in self.lines if " stops at " in line]
        return "\n".join(dict.fromkeys([*stops[-1:], *self.lines[-1:]]))
