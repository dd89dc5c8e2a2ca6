"""Find out what a host is in use for that Seedbed has not provisioned."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.host_program import PYTHON, HostProgramAction

DOCUMENTATION = r"""
module: host_in_use
short_description: Find out what a host is in use for that Seedbed has not provisioned
description:
  - Looks for sites of nginx, databases, data in Redis, processes on the ports that are needed, firewall rules, programs
    of Supervisor, containers, and users and folders with the application's name. Unmodified packages do not count.
  - Changes nothing. Supports check mode.
options:
  application:
    description: Name of the application.
    type: str
    required: true
  services:
    description: What the host is to run, of C(nginx), C(postgresql), C(redis), C(supervisor) and C(application).
    type: list
    elements: str
    required: true
  ports:
    description: Ports that the host's services need, by name.
    type: dict
    required: true
  firewall_rules:
    description: Rules of ufw that stay.
    type: list
    elements: str
    default: []
  ssh_port:
    description: Port of sshd.
    type: int
    default: 22
  take_over:
    description: Names of findings that are accepted.
    type: list
    elements: str
    default: []
author: Seedbed
"""

EXAMPLES = r"""
- name: Find out what the host is in use for
  host_in_use:
    application: shop
    services: [nginx, application]
    ports: {http: 80, https: 443}
    take_over: [nginx]
"""

RETURN = r"""
problem: {description: What the host is in use for and was not accepted; empty if nothing., type: str}
nginx_default_ports: {description: Ports for which another site is nginx's default server., type: list, elements: int}
nginx_default_site_edited: {description: "Whether Debian's example site of nginx was edited.", type: bool}
redis_server_port: {description: Port of Debian's instance of Redis; 0 if Redis is not installed., type: int}
"""

NOTHING = {
    "findings": [],
    "former_cluster": [],
    "nginx_default_ports": [],
    "nginx_default_site_edited": False,
    "redis_server_port": 0,
}

FORMER_CLUSTER = """\
No service was changed: {host} has its databases in PostgreSQL {old}, and its Debian has PostgreSQL {new}, which would
serve without them; or their upgrade is unfinished. Upgrade them (docs/operate.md, "Upgrade"), then run this again:
  ansible-playbook -i INVENTORY playbooks/upgrade-postgresql.yml"""


def problem(findings: list[dict[str, str]], take_over: list[str], host: str, former_cluster: Sequence[str] = ()) -> str:
    """Return what stops the run: findings that are not accepted, and the setting that accepts them."""
    if former_cluster:
        return FORMER_CLUSTER.format(host=host, old=former_cluster[0], new=former_cluster[1])
    refused = [finding for finding in findings if finding["name"] not in take_over]
    if not refused:
        return ""
    lines = [f"No service was changed: {host} is in use by others ({len(refused)})."]
    lines += [f"  {finding['name'] or 'remove first'}: {finding['text']}" for finding in refused]
    names = {finding["name"] for finding in findings if finding["name"]}
    if names - set(take_over):
        setting = ", ".join(sorted(names | set(take_over)))
        lines.append(f"To share the host all the same, set in group_vars/ENV/app.yml: app_take_over: [{setting}]")
    lines.append("What it means for each is in docs/getting-started.md.")
    return "\n".join(lines)


class ActionModule(HostProgramAction):
    """Run plugins/host/host_in_use.py."""

    program = "host_in_use.py"
    documentation = DOCUMENTATION

    def request(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        self.take_over, self.host = arguments.pop("take_over"), task_vars["inventory_hostname"]
        arguments["ports"] = {name: int(port) for name, port in arguments["ports"].items()}
        return arguments

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the program. A host without Python is bare."""
        command = f"if [ -x {PYTHON[0]} ]; then {self.command()}; else echo {shlex.quote(json.dumps(NOTHING))}; fi"
        found = self.answer(command, request)
        text = problem(found.pop("findings"), self.take_over, self.host, found.pop("former_cluster"))
        return found | {"changed": False, "problem": text}
