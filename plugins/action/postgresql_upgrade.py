"""Move the application's PostgreSQL cluster to a newer version, and back."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.host_program import HostProgramAction

DOCUMENTATION = r"""
module: postgresql_upgrade
short_description: Move the application's PostgreSQL cluster to a newer version, and back
description:
  - Each call takes one step of C(playbooks/upgrade-postgresql.yml). What is done is recorded on the host, so a step
    that was taken already does nothing, and a run that was killed is completed by the next one.
  - In check mode, only O(step=plan) does something.
options:
  step:
    description: >-
      V(plan) finds out what there is to do, and changes nothing. V(begin) records that the application stops. V(copy)
      makes the new cluster by pg_upgradecluster. V(check) compares both, while the new one runs. V(release) records
      that the application may write. V(finish) records the end. V(revert) makes the old cluster serve again, before
      V(release). V(back) does so afterwards. V(drop) removes the old cluster.
    type: str
    choices: [plan, begin, copy, check, release, finish, revert, back, drop]
    required: true
  version:
    description: The version of PostgreSQL that the host's distribution has.
    type: str
    required: true
  databases:
    description: The application's databases; all that its roles own count as well.
    type: list
    elements: str
    required: true
  roles:
    description: The application's roles.
    type: list
    elements: str
    required: true
  port:
    description: The port of the cluster that serves.
    type: int
    default: 5432
  others:
    description: Copy databases of others, too, and end their sessions.
    type: bool
    default: false
  replace:
    description: Delete a cluster of the new version that has databases.
    type: bool
    default: false
  maintenance:
    description: With O(step=begin), whether maintenance mode was on before.
    type: bool
    default: false
  playbook:
    description: The command that runs the playbook, for messages.
    type: str
    default: playbooks/upgrade-postgresql.yml
author: Seedbed
"""

EXAMPLES = r"""
- name: Find out whether PostgreSQL must be upgraded
  postgresql_upgrade:
    step: plan
    version: "17"
    databases: [shop]
    roles: [shop, shop_2, shop_owner]
"""

RETURN = r"""
needed:
  description: With O(step=plan), whether an earlier version has the databases, or an upgrade is unfinished.
  type: bool
step: {description: The last step of an unfinished upgrade; empty if there is none., type: str}
old: {description: The version of the earlier cluster; empty if there is none., type: str}
new: {description: The version of the distribution., type: str}
maintenance: {description: "With O(step=begin), whether maintenance mode was on before the upgrade.", type: bool}
lines: {description: What is to be printed., type: list, elements: str}
"""


class ActionModule(HostProgramAction):
    """Run plugins/host/postgresql_upgrade.py."""

    program = "postgresql_upgrade.py"
    documentation = DOCUMENTATION
