"""Fixtures of the security tests.

The hosts are snapshots: they have the defaults, and a release that knows another address. The tests apply the settings
of the inventory when they need them: two files begin with a run of site.yml, which deploys a release with its names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import testinfra
from deployments import Deployments
from probes import wait_for
from testinfra.host import Host

# Hosts that have the settings of the inventory, apart from the application.
CONFIGURED: set[str] = set()
# Files that run site.yml, or need no site.
WITHOUT_SITE = ("test_access", "test_secrets")


@pytest.fixture(scope="module", autouse=True)
def _settings_of_the_inventory(
    request: pytest.FixtureRequest, host: Host, deployments: Deployments, variables: dict[str, Any]
) -> None:
    """Apply the settings that differ from the snapshot, once a run: firewall, trusted addresses, limits, names."""
    name = host.backend.get_hostname()
    if request.path.stem not in WITHOUT_SITE and not knows_its_names(deployments, variables):
        deployments.playbook("site.yml").wait().succeeded()
    elif name not in CONFIGURED:
        deployments.playbook("playbooks/provision.yml", tags="access,certificate,nginx").wait().succeeded()
    CONFIGURED.add(name)


@pytest.fixture(scope="module")
def other_settings(host: Host) -> Iterator[None]:
    """For a file that leaves the host with settings of its own: the next file provisions those of the inventory."""
    yield
    CONFIGURED.discard(host.backend.get_hostname())


def knows_its_names(deployments: Deployments, variables: dict[str, Any]) -> bool:
    """Return whether the current release has the names of the site in the inventory."""
    (alias,) = variables["app_domain_aliases"]
    environment = f"/etc/{deployments.app.name}/releases/{deployments.current}/app.env"
    return deployments.host.run(f"grep -q '^ALLOWED_HOSTS=.*{alias}' {environment}").succeeded


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
