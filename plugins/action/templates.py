"""Render several templates on the control machine and write them in one trip; see plugins/modules/templates.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template


class ActionModule(ActionBase):
    """Gives the module of the same name files with their content in place of templates."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        common = {name: value for name, value in self._task.args.items() if name != "files"}
        files = [common | file for file in self._task.args["files"]]
        for file in files:
            if [word in file for word in ("src", "content", "link", "absent")].count(True) != 1:
                raise AnsibleActionFail(f"templates: {file.get('dest')} needs one of src, content, link and absent")
            if "src" in file:
                file["content"] = self.render(file.pop("src"), file.pop("vars", {}), task_vars or {})
        return self._execute_module(module_args={"files": files}, task_vars=task_vars)

    def render(self, name: str, own: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """The text of a template of this role, with the file's own variables on top of the task's."""
        source = self._find_needle("templates", name)
        places = [*task_vars.get("ansible_search_path", []), str(Path(source).parent)]
        searched = [path for place in places for path in (f"{place}/templates", place)]
        templar = self._templar.copy_with_new_env(searchpath=searched, available_variables=task_vars | own)
        text = trust_as_template(self._loader.get_text_file_contents(source))
        return templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}) or ""
