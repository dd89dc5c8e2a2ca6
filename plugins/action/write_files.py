"""Render several templates on the control machine and write them on the host in one round trip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.template import trust_as_template

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.host_program import HostProgramAction

DOCUMENTATION = r"""
module: write_files
short_description: Write several templates, files and links in one round trip
description:
  - Does the work of several tasks of M(ansible.builtin.template), M(ansible.builtin.copy) and M(ansible.builtin.file).
  - Each file needs exactly one of O(files[].src), O(files[].content), O(files[].link) and O(files[].absent).
  - O(owner), O(group), O(mode) and O(validate) beside O(files) hold for every file that does not set its own.
  - A file is replaced atomically. Missing parent directories are created with mode 0755.
  - Supports check mode and diff mode.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      dest: {type: str, required: true, description: Path on the host.}
      src: {type: str, description: Name of a template of the role.}
      content: {type: str, description: The text itself.}
      link: {type: str, description: Target of a symbolic link.}
      absent: {type: bool, description: "V(true) removes the file or link; V(false) is an error."}
      vars: {type: dict, description: Variables of this template alone.}
      owner: {type: str, description: Owner.}
      group: {type: str, description: Group.}
      mode: {type: str, description: "Mode in octal, quoted."}
      validate: {type: str, description: Command that must succeed before the file is replaced; C(%s) is the new file.}
  owner: {type: str, description: Owner of every file.}
  group: {type: str, description: Group of every file.}
  mode: {type: str, description: "Mode of every file in octal, quoted."}
  validate: {type: str, description: Validation command of every file.}
author: Seedbed
"""

EXAMPLES = r"""
- name: Install the units
  write_files:
    owner: root
    group: root
    mode: "0644"
    files:
      - {src: web.service.j2, dest: /etc/systemd/system/web.service}
      - {src: worker.service.j2, dest: /etc/systemd/system/worker.service, vars: {queues: [default]}, mode: "0600"}
      - {link: /usr/share/zoneinfo/UTC, dest: /etc/localtime}
      - {absent: true, dest: /etc/nginx/sites-enabled/default}
"""

RETURN = r"""
written:
  description: Paths of the files that changed.
  type: list
  elements: str
effective:
  description: Those of RV(written) that differ in more than comments and blank lines. Roles restart services for these.
  type: list
  elements: str
"""

SOURCES = ("src", "content", "link", "absent")


def set_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the task sets."""
    return {name: value for name, value in options.items() if value is not None}


class ActionModule(HostProgramAction):
    """Render the templates, then run plugins/host/write_files.py."""

    program = "write_files.py"
    documentation = DOCUMENTATION

    def request(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        common = set_options(arguments)
        files = [common | set_options(file) for file in common.pop("files")]
        for file in files:
            if sum(source in file for source in SOURCES) != 1:
                raise AnsibleActionFail(f"write_files: {file['dest']} needs exactly one of {', '.join(SOURCES)}")
            if file.get("absent") is False:
                raise AnsibleActionFail(f"write_files: {file['dest']} has absent: false; remove it, or set it to true")
            if "src" in file:
                file["content"] = self.render(file.pop("src"), file.pop("vars", {}), task_vars)
        return {"files": files}

    def render(self, name: str, own: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """Return the rendered template of this role; the file's own variables override the task's."""
        source = self._find_needle("templates", name)
        roots = [*task_vars.get("ansible_search_path", []), str(Path(source).parent)]
        searchpath = [path for root in roots for path in (f"{root}/templates", root)]
        templar = self._templar.copy_with_new_env(searchpath=searchpath, available_variables=task_vars | own)
        text = trust_as_template(self._loader.get_text_file_contents(source))
        return templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}) or ""
