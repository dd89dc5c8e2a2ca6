"""Validate the settings on the control machine, before any host is contacted."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils import color

sys.path.append(str(Path(__file__).resolve().parents[1]))

from plugin_utils.findings import heading, listing, refusals
from plugin_utils.inspection import Report
from plugin_utils.preflight.checks import setting_problems
from plugin_utils.preflight.files import (
    environment_of,
    in_environment,
    line_of,
    misplaced_files,
    shadowed_problems,
    unwritable_problems,
)
from plugin_utils.preflight.names import SET_BY_ROLES, Known, unknown_problems, wiring_problems
from plugin_utils.preflight.problems import APP, VAULT, Installation, Problem
from plugin_utils.preflight.processes import NEEDS_FACTS
from plugin_utils.preflight.secrets import secret_problems
from plugin_utils.preflight.types import has_type, type_problems
from plugin_utils.source_inspection import IDENTITY, NotInspectedError, inspect_source

try:  # where a value was written; Ansible's own messages use it, but it is not a public interface
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

DOCUMENTATION = r"""
module: preflight
short_description: Validate the settings before any host is contacted
description:
  - Compares the variables of each host with C(roles/preflight/meta/argument_specs.yml), the specs of the roles and the
    files of C(group_vars/all), and inspects the project.
  - Fails with one line for each invalid setting, which says where it is set, what is wrong and what to type.
  - Runs on the control machine only. Supports check mode; changes nothing.
options:
  project:
    description: The top folder of the repository.
    type: path
    required: true
  scope:
    description:
      - V(files) checks only that no settings file is in group_vars/all, where Seedbed's files override it.
      - V(project) only inspects the project, with settings that this run has validated.
      - V(list) prints the invalid settings and all findings in the project, and then fails if something needs the user.
    type: str
    choices: [all, files, project, list]
    default: all
  inspect:
    description: Whether to inspect the project, too, and to fail if it needs something of the user.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Validate settings
  preflight:
    project: "{{ role_path }}/../.."
"""

RETURN = r"""
msg: {description: "The invalid settings, and what the project needs.", type: str, returned: failure}
inspected: {description: Whether the project was inspected., type: bool, returned: success}
"""

DEFAULTS, SECRETS, WIRING = (f"group_vars/all/{name}.yml" for name in ("defaults", "secrets", "wiring"))


@cache
def load_shipped(path: Path) -> Any:
    """Return what a file of Seedbed's has: the same for every host.

    Saves time only where one process validates several hosts, as in the tests; Ansible forks a process for each host.
    """
    return yaml_load(path.read_text())


def reason_of(error: AnsibleError) -> str:
    return str(error).splitlines()[0].rstrip(".")


def undefined_name(reason: str) -> str:
    """Return the variable that nothing defines, from Ansible's reason; "" where that is another one."""
    found = re.fullmatch(r"'(\w+)' is undefined", reason)
    return found[1] if found else ""


def what_to_do(reason: str, known: Known) -> str:
    """Return what to do about Ansible's reason when it is a variable that nothing defines; "" otherwise.

    A name that the settings files may not define is described as if it were defined there.
    """
    name = undefined_name(reason)
    if not name:
        return ""
    if name in SET_BY_ROLES:
        return f" {name} {SET_BY_ROLES[name]}"
    for problem in unknown_problems([name], known, [name]):
        return f" {name} {problem.sentence}"
    return f" Define {name} in {VAULT if name.startswith('secret_') else APP}, or correct its name."


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.project = Path(self._task.args["project"]).resolve()
        self.reals: dict[str, str] = {}
        # The keys themselves: they carry where they were written, which an equal string does not.
        self.names = {name: name for name in self.variables}
        self.shipped = {str(self.project / path) for path in (DEFAULTS, SECRETS, WIRING)}
        # The file that has the host; a run may have several inventories, and folders of such files.
        self.inventory = self.variables.get("inventory_file") or ""
        self.inventories = self.variables.get("ansible_inventory_sources") or [self.inventory or "the inventory"]
        self.defaults, self.secrets, self.wiring = (self.load(path) for path in (DEFAULTS, SECRETS, WIRING))
        self.spec = self.load("roles/preflight/meta/argument_specs.yml")["argument_specs"]["settings"]["options"]
        self.reasons: set[str] = set()
        values: dict[str, Any] = {}
        unresolved = list(self.resolve_settings(values))
        hosts = values.get("app_hosts")
        self.hosts = hosts if isinstance(hosts, list) else self.variables["groups"]["all"]
        self.environment = environment_of(self.variables["groups"], self.hosts, self.inventory, self.project)
        scope = self._task.args.get("scope", "all")
        if scope == "files":
            problems = list(misplaced_files(self.project, self.environment))
        elif scope == "project":
            problems = unresolved
        else:
            problems = [*self.name_problems(), *unresolved, *self.value_problems(values), *self.role_value_problems()]
        lines = [f"{self.place(wrong)}: {wrong.name}{wrong.part} {self.sentence(wrong)}" for wrong in problems]
        if scope == "list":
            return result | self.list_everything(lines, values)
        report = self.inspect(values, lines) if boolean(self._task.args.get("inspect", False)) else None
        needs = refusals(report.findings, self.environment) if report else []
        if not lines and not needs:
            return result | {"changed": False, "inspected": report is not None}
        text = [heading(len(lines), len(needs)), *(f"  {line}" for line in [*lines, *needs])]
        if needs:
            file = in_environment(APP, self.environment)
            text.append(f"Answer what the project needs in {file} or in the project. All findings: {self.again()}")
        return result | {"failed": True, "msg": "\n".join(text)}

    def list_everything(self, lines: list[str], values: dict[str, Any]) -> dict[str, Any]:
        """Print the invalid settings and the findings; fail if something is left to do."""
        report = self.inspect(values, lines)
        findings = report.findings if report else []
        text = listing(findings, self.environment, min(self._display.columns, 110), color.ANSIBLE_COLOR)
        if lines:
            text = "\n".join([text, f"Invalid settings ({len(lines)})", *(f"  {line}" for line in lines), ""])
        self._display.display(text)
        needs = sum(found.kind == "needs" for found in findings)
        if lines or needs:
            return {"failed": True, "msg": heading(len(lines), needs)}
        return {"changed": False, "inspected": report is not None}

    def inspect(self, values: dict[str, Any], lines: list[str]) -> Report | None:
        """Inspect the project; None if it cannot be, which is added to `lines` where it is for the user to correct."""
        given = {
            name: value
            for name, value in values.items()
            if name.startswith("app_") and (name in IDENTITY or self.is_set_by_user(name))
        }
        cache = self.written_folders().get("release_cache", self.project / ".releases")
        try:
            return inspect_source(self.project, cache, values, given)
        except NotInspectedError as reason:
            if reason.setting:
                lines.append(f"{self.place(Problem(reason.setting, ''))}: {reason.setting} {reason}")
            elif not lines:  # else the invalid settings say it
                self._display.warning(f"The project was not inspected: {reason}")
        return None

    def again(self) -> str:
        names = self.shown_inventories()
        if names == [f"inventory/{self.environment}.yml"]:
            return f"make inspect ENV={self.environment}"
        return f"ansible-playbook {' '.join(f'-i {shlex.quote(name)}' for name in names)} playbooks/inspect.yml"

    def resolve_settings(self, values: dict[str, Any]) -> Iterator[Problem]:
        for name, option in self.spec.items():
            yield from self.resolve(name, values, option.get("required", False))

    @cached_property
    def known(self) -> Known:
        return Known(
            settings=[*self.spec, *self.defaults, *(name for name in self.secrets if name.startswith("app_"))],
            secrets=[name for name in self.secrets if name.startswith("secret_")],
            wiring=self.wiring,
            roles={role: list(options) for role, options in self.role_options.items()},
        )

    def name_problems(self) -> Iterator[Problem]:
        own_files = [name for name in self.variables if self.is_in_settings_file(name)]
        yield from unknown_problems(sorted(self.variables), self.known, own_files)
        yield from wiring_problems(self.variables, self.known)
        for name, sentence in SET_BY_ROLES.items():
            if self.is_set_by_user(name):
                yield Problem(name, sentence)
        yield from misplaced_files(self.project, self.environment)
        yield from shadowed_problems(Path(self.inventory), self.variables, self.defaults | self.secrets | self.wiring)

    def value_problems(self, values: dict[str, Any]) -> Iterator[Problem]:
        yield from setting_problems(
            Installation(
                values=values,
                spec=self.spec,
                project=self.project,
                inventory=", ".join(self.shown_inventories()),
                groups=self.variables["groups"],
                hosts=self.hosts,
                ports={
                    port: name
                    for name, service in self.wiring["app_services"].items()
                    for port in service.get("ports", {}).values()
                },
                read=self.read,
            )
        )
        unwritable = list(unwritable_problems(self.written_folders()))
        yield from unwritable
        if not unwritable:  # else no secret can be generated
            secrets: dict[str, Any] = {}
            for name in sorted(name for name in self.variables if name.startswith("secret_")):
                yield from self.resolve(name, secrets, required=True, file=VAULT)
            yield from secret_problems(secrets)

    def role_value_problems(self) -> Iterator[Problem]:
        """Yield what the roles would refuse of their own variables that a user has set."""
        for role, options in self.role_options.items():
            for name, spec in options.items():
                shipped = self.defaults.get(name, spec.get("default"))
                if name in self.wiring or self.variables.get(name, shipped) == shipped:
                    continue
                try:
                    value = self._templar.template(self.variables[name])
                except AnsibleError as error:
                    # The host's facts and the role's defaults are not there yet.
                    if undefined_name(reason_of(error)) not in {"", *SET_BY_ROLES, *self.known.all()}:
                        yield from self.resolve(name, {}, required=False)
                    continue
                # Ansible accepts what it can convert, but a role gets the value as it is: "no" would be true.
                unlike = spec["type"] in ("bool", "dict", "list") and not has_type(value, spec["type"])
                if not unlike and not ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages:
                    continue
                # A mapping may hold a password.
                hidden = spec | {"no_log": spec.get("no_log", False) or spec["type"] in ("dict", "list")}
                otherwise = [("", f"does not have the form that roles/{role}/meta/argument_specs.yml declares.")]
                for part, sentence in list(type_problems(value, hidden)) or otherwise:
                    yield Problem(name, sentence, part=part)

    def written_folders(self) -> dict[str, Path]:
        """Return the folders on this machine that a run writes to, by the variables that name them."""
        given = {"app_secrets": self.variables.get("app_secrets"), "release_cache": self.variables.get("release_cache")}
        folders = {}
        for name, template in given.items():
            try:
                folders[name] = Path(self._templar.template(template or str(self.project / ".releases"))).expanduser()
            except (AnsibleError, TypeError):
                continue  # resolve() reports it
        return folders

    def resolve(self, name: str, values: dict[str, Any], required: bool, file: str = APP) -> Iterator[Problem]:
        """Resolve the templates of a variable and add it to `values`, or say why that fails."""
        if name not in self.variables:
            if required:
                yield Problem(name, "is missing. Every setting has a default there: restore the file.", DEFAULTS)
            return
        if name == NEEDS_FACTS and "{{" in str(self.variables[name]):
            return
        try:
            values[name] = self._templar.template(self.variables[name])
        except AnsibleError as error:
            reason = reason_of(error)
            if reason not in self.reasons:  # one undefined variable may be used by many
                self.reasons.add(reason)
                yield Problem(name, f"cannot be resolved: {reason}.{what_to_do(reason, self.known)}", file)

    @cached_property
    def role_options(self) -> dict[str, dict[str, Any]]:
        """The specs of the variables of every role, by its prefix."""
        specs = self.project.glob("roles/*/meta/argument_specs.yml")
        found = {path.parent.parent.name: self.load(path)["argument_specs"]["main"]["options"] for path in specs}
        return {role: options for role, options in found.items() if options}

    def read(self, path: str) -> str:
        return self._loader.get_text_file_contents(str(self.project / Path(path).expanduser()))

    def load(self, path: Path | str) -> Any:
        return load_shipped(self.project / path)

    def origin(self, name: str) -> Any:
        """Return where a variable was written: by its value, or, since true, false and null have none, by its name.

        The name's is that of the file that sets it first, so it counts only outside the shipped files.
        """
        if Origin is None:
            return None
        origin = Origin.get_tag(self.variables.get(name)) or Origin.get_tag(self.names.get(name))
        return None if origin and origin.path and self.real(origin.path) in self.shipped else origin

    def real(self, path: str) -> str:
        """Return a path without links. Many variables share a file, so the results are kept."""
        if path not in self.reals:
            self.reals[path] = str(Path(path).resolve())
        return self.reals[path]

    def is_in_settings_file(self, name: str) -> bool:
        """Return whether a variable was written in group_vars/ENV."""
        origin = self.origin(name)
        return bool(origin and origin.path) and Path(origin.path).parent.name == self.environment

    def is_set_by_user(self, name: str) -> bool:
        """Return whether a variable comes from the inventory, group_vars or -e, not from a role or a result."""
        origin = self.origin(name)
        if not origin:
            return False
        return "'-e'" in (origin.description or "") or (
            bool(origin.path) and not Path(self.real(origin.path)).is_relative_to(self.project / "roles")
        )

    def place(self, problem: Problem) -> str:
        """Return the file to edit: where the value is set, with its line, else where it belongs."""
        origin = self.origin(problem.name)
        if origin and origin.path:
            return self.shown(origin.path) + (f":{origin.line_num}" if origin.line_num else "")
        if origin and origin.description:
            return "-e" if "'-e'" in origin.description else origin.description
        shipped = (self.defaults | self.wiring).get(problem.name, ...)
        if shipped is ... or self.variables.get(problem.name, shipped) == shipped:
            return in_environment(problem.file, self.environment)
        for path in sorted((self.project / "group_vars" / self.environment).glob("*")):
            if line := line_of(problem.name, path):
                return f"{self.shown(str(path))}:{line}"
        return "inventory, host_vars or -e"

    def sentence(self, problem: Problem) -> str:
        sentence = problem.sentence
        for file in (APP, VAULT):
            sentence = sentence.replace(file, in_environment(file, self.environment))
        return sentence

    def shown_inventories(self) -> list[str]:
        """Return the inventories as they were given: one may be a list of hosts (`host,`)."""
        return [self.shown(source) if Path(source).is_absolute() else source for source in self.inventories]

    def shown(self, path: str) -> str:
        """Return a path relative to the project where it is inside, without links."""
        full = Path(self.real(path))
        return str(full.relative_to(self.project)) if full.is_relative_to(self.project) else str(full)
