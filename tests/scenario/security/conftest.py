"""Fixtures of the security tests."""

from __future__ import annotations

import pytest
import testinfra
from deployments import Deployments
from probes import wait_for
from testinfra.host import Host

# Hosts that have the settings of the inventory.
CONFIGURED: set[str] = set()


@pytest.fixture(scope="module", autouse=True)
def _settings_of_the_inventory(host: Host, deployments: Deployments) -> None:
    """Apply what differs from the snapshot, once a run: firewall, trusted addresses, limits, names of the site.

    The application learns its other names when a test runs site.yml.
    """
    name = host.backend.get_hostname()
    if name not in CONFIGURED:
        deployments.playbook("playbooks/provision.yml", tags="access,certificate,nginx").wait().succeeded()
        CONFIGURED.add(name)


@pytest.fixture(scope="module")
def outsider(host: Host) -> Host:
    """The host that looks from outside, with its tools, which it has begun to install before the tests."""
    outsider = testinfra.get_host("ansible://outsider", ansible_inventory=host.backend.ansible_inventory)
    state = "systemctl show --property=ActiveState --value tools"
    ended = wait_for(
        lambda: outsider.check_output(state), 600, "the tools are installed", lambda seen: seen in ("active", "failed")
    )
    assert ended == "active", outsider.run("journalctl --no-pager --unit=tools").stdout
    return outsider
