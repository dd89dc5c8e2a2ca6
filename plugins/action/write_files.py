"""Render several templates on the control machine and write them on the host in one trip.

    - templates:
        owner: root
        group: root
        mode: "0644"
        files:
          - {src: web.service, dest: /etc/systemd/system/web.service}
          - {src: worker.service, dest: /etc/systemd/system/worker.service, vars: {queues: [default]}, mode: "0600"}
          - {link: /usr/share/zoneinfo/UTC, dest: /etc/localtime}
          - {absent: true, dest: /etc/nginx/sites-enabled/default}

Each file has `dest` and one of `src` (a template of the role), `content` (the text itself), `link` (where it leads) and
`absent`, and may have `vars` (of this template alone), `owner`, `group`, `mode` (quoted) and `validate` (a command that
must succeed before the file is replaced; %s is the new one). What stands beside `files` holds for all of them. Missing
folders are made, with mode 0755. Returns `written`: the files that are not what they were.

A task of ansible.builtin.template costs two trips to the host, and on each Python reads a good part of Ansible there,
which takes longer than the work; plugins/host/templates.py needs Debian's Python alone.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

PROGRAM = Path(__file__).parents[1] / "host/write_files.py"
KINDS = {"src", "content", "link", "absent"}
OPTIONS = {"dest", "vars", "owner", "group", "mode", "validate"}


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        common = {name: value for name, value in self._task.args.items() if name != "files"}
        files = [common | file for file in self._task.args["files"]]
        for file in files:
            if len(KINDS & set(file)) != 1 or "dest" not in file:
                raise AnsibleActionFail(f"write_files: {file.get('dest')} needs one of src, content, link and absent")
            if file.get("absent") is False:
                raise AnsibleActionFail(f"write_files: {file['dest']} has absent: false; leave it out, or say true")
            if unknown := set(file) - KINDS - OPTIONS:
                raise AnsibleActionFail(f"write_files: {file['dest']} has no option {', '.join(sorted(unknown))}")
            if "src" in file:
                file["content"] = self.render(file.pop("src"), file.pop("vars", {}), task_vars or {})
        asked = json.dumps({"files": files, "check": self._task.check_mode})
        command = shlex.join(["/usr/bin/python3", "-IS", "-c", PROGRAM.read_text()])
        done = self._low_level_execute_command(command, in_data=asked.encode())
        try:
            return json.loads(done["stdout"])
        except json.JSONDecodeError:
            raise AnsibleActionFail(f"write_files: {(done['stdout'] + done['stderr']).strip()}") from None

    def render(self, name: str, own: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """The text of a template of this role, with the file's own variables on top of the task's."""
        source = self._find_needle("templates", name)
        places = [*task_vars.get("ansible_search_path", []), str(Path(source).parent)]
        searched = [path for place in places for path in (f"{place}/templates", place)]
        templar = self._templar.copy_with_new_env(searchpath=searched, available_variables=task_vars | own)
        text = trust_as_template(self._loader.get_text_file_contents(source))
        return templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}) or ""
