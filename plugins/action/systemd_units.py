"""Start, enable, stop and restart systemd units in one round trip."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.host_program import HostProgramAction

DOCUMENTATION = r"""
module: systemd_units
short_description: Start, enable, stop and restart systemd units in one round trip
description:
  - Does the work of several tasks of M(ansible.builtin.systemd_service), in this order; reload of the unit files,
    O(stopped), O(services), O(restarted).
  - If a unit fails to start, the error includes the last 20 lines of its journal.
  - Supports check mode.
options:
  services:
    description: Units to start and enable, in this order.
    type: list
    elements: str
    default: []
  stopped:
    description: Units to stop and disable.
    type: list
    elements: str
    default: []
  restarted:
    description: Units to restart in any case.
    type: list
    elements: str
    default: []
  daemon_reload:
    description: Reload the unit files first.
    type: bool
    default: false
author: Seedbed
"""

EXAMPLES = r"""
- name: Start nginx and enable it at boot
  systemd_units:
    services: [nginx.service]
"""

RETURN = r"""
started:
  description: Services that were not active before, so that they have just read their configuration.
  type: list
  elements: str
"""


class ActionModule(HostProgramAction):
    """Run plugins/host/systemd_units.py."""

    program = "systemd_units.py"
    documentation = DOCUMENTATION
