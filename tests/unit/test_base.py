"""The role base: kernel settings of every interface, what it says of those not set, and restart policies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles/base"


def variable(name: str, **given: Any) -> Any:
    """Return a variable of the role, rendered by Ansible."""
    loader = DataLoader()
    known = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    return Templar(loader, variables={**known, **given}).template(known[name])


def test_redirects_and_source_routes_are_refused_on_every_interface() -> None:
    """`all` does not cover interfaces for IPv6, and not for the redirects of IPv4."""
    settings = variable("__base_sysctl")
    kinds = ("accept_redirects", "send_redirects", "accept_source_route", "secure_redirects")
    found = {name for name in settings if name.endswith(kinds)}
    assert found == {f"net.ipv4.conf.*.{kind}" for kind in kinds} | {
        "net.ipv6.conf.*.accept_redirects",
        "net.ipv6.conf.*.accept_source_route",
    }
    assert {settings[name] for name in found} == {0}


REFUSED = """\
Setting '/proc/sys/net/ipv4/conf/all/rp_filter' to '2'
Couldn't write '2' to 'net/ipv4/conf/all/rp_filter', ignoring: Read-only file system
No match for glob: net/ipv6/conf/*/accept_redirects
Couldn't write '1' to 'kernel/unknown', ignoring: No such file or directory
"""


@pytest.mark.parametrize("kind", ["docker", "kvm"])
def test_settings_that_could_not_be_set_are_named(kind: str) -> None:
    """A container is only mentioned in one; what `*` matches nowhere, as without IPv6, is not a failure."""
    load = {"stderr": REFUSED}
    note = variable("__base_sysctl_note", ansible_facts={"virtualization_type": kind}, __base_sysctl_load=load)
    assert note.startswith("2 kernel settings could not be set, ")
    assert note.endswith(": net.ipv4.conf.all.rp_filter, kernel.unknown.")
    assert ("container" in note) is (kind == "docker")


# --- Restart policies -----------------------------------------------------------------------------

POLICY = {"StartLimitIntervalSec": "0", "Restart": "always", "RestartSec": "2", "RestartPreventExitStatus": ""}


def test_policy_has_no_end() -> None:
    text = (ROLE / "templates/restart/70-seedbed-restart.conf.j2").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", text, re.M)) == POLICY


def test_every_service_of_the_table_has_the_policy() -> None:
    """Of those that Debian's units run. One that a role starts under another name has a template unit."""
    services = yaml.safe_load((ROOT / "group_vars/all/wiring.yml").read_text())["app_services"]
    for name, service in services.items():
        restarted = {unit.removesuffix(".service").removesuffix("@") for unit in service.get("restart", [])}
        assert set(service.get("units", [])) <= restarted, name
    assert "ssh.service" in services["base"]["restart"]


def test_policies_are_written_and_removed() -> None:
    units = {"base_restart_units": ["nginx.service"], "base_unmanaged_units": ["supervisor.service"]}
    folder, name = "/etc/systemd/system", variable("__base_restart_drop_in")
    assert variable("__base_restart_policies", **units) == [
        {"dest": f"{folder}/nginx.service.d/{name}", "src": f"restart/{name}.j2"},
        {"dest": f"{folder}/supervisor.service.d/{name}", "absent": True},
    ]
