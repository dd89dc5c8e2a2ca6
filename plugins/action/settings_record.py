"""Record on a host who applies which settings, from which clone of this repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import context

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.applied import clone_of, digests, is_built_on
from plugin_utils.documented import documented_arguments
from plugin_utils.host_program import HostProgramAction

DOCUMENTATION = r"""
module: settings_record
short_description: Record on a host who applies which settings
description:
  - Writes user and machine of this run, its clone of this repository and the commit, the time, and a keyed hash of each
    documented setting to a file that root alone can read. C(APPctl doctor) compares.
  - It is a log, so the task is never changed. Nothing is written in check mode.
options:
  file:
    description: The file on the host.
    type: path
    required: true
  project:
    description: The top folder of this repository.
    type: path
    required: true
  state:
    description: >-
      V(begin) before the first change of a run that applies all settings, V(end) after its last one; V(partial) before
      the first change of one that applies some. With C(--tags) or C(--skip-tags), V(begin) is V(partial), and V(end)
      does nothing.
    type: str
    choices: [begin, end, partial]
    required: true
author: Seedbed
"""

EXAMPLES = r"""
- name: Record who begins to apply the settings
  settings_record:
    state: begin
    file: /var/lib/seedbed/settings-shop.json
    project: "{{ role_path | dirname | dirname }}"
"""

RETURN = r"""
last: {description: The last run that had applied all settings; empty without one., type: dict}
"""


class ActionModule(HostProgramAction):
    """Run plugins/host/settings_record.py."""

    program = "settings_record.py"
    documentation = DOCUMENTATION

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super(HostProgramAction, self).run(tmp, task_vars)
        variables = task_vars or {}
        arguments = documented_arguments(self, DOCUMENTATION)
        tags = run_tags(variables)
        state = "partial" if tags and arguments["state"] == "begin" else arguments["state"]
        if self._task.check_mode or (tags and state == "end"):
            return {"changed": False, "last": {}}
        project = Path(arguments["project"]).resolve()
        clone = clone_of(project, Path(variables.get("inventory_dir") or project))
        playbook = Path(next(iter(context.CLIARGS.get("args") or []), "")).name
        request = {
            "file": arguments["file"],
            "state": state,
            "run": clone | {"playbook": playbook, "tags": tags},
            "digests": digests(project, variables, self._templar.template),
            "built_on": False,
            "check": False,
        }
        if state == "end":
            last = self.execute(request | {"state": "read"})["last"]
            request["built_on"] = bool(last) and is_built_on(project, clone, last)
        return self.execute(request)


def run_tags(variables: dict[str, Any]) -> str:
    """Return the options that leave tasks out of this run, as they are typed; "" without any."""
    tags, skipped = list(variables.get("ansible_run_tags", [])), list(variables.get("ansible_skip_tags", []))
    words = [f"--tags {','.join(tags)}"] if tags not in ([], ["all"]) else []
    words += [f"--skip-tags {','.join(skipped)}"] if skipped else []
    return " ".join(words)
