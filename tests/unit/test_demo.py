"""The demo's inventory: one host in every group, reached like a VPS."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml
from demo import GROUPS, ensure_free, inventory_text
from machine import SetupError

PORTS = {"https": 8443, "http": 8080, "ssh": 2222}


def inventory(certificates: list[Path]) -> dict:
    return yaml.safe_load(inventory_text(PORTS, certificates))["demo"]


def test_host_is_in_every_group() -> None:
    children = inventory([])["children"]
    assert {group: list(content["hosts"]) for group, content in children.items()} == {
        group: ["demo1"] for group in GROUPS
    }


def test_the_shops_workers_come_with_a_group_around_it() -> None:
    """So that group_vars/demo overrides them."""
    assert yaml.safe_load(inventory_text(PORTS, []))["demo_shop"] == {"children": {"demo": {}}}


def test_ports_are_those_of_the_command() -> None:
    host = inventory([])["hosts"]["demo1"]
    assert (host["ansible_port"], host["app_https_port"]) == (2222, 8443)
    assert "base_ca_certificates" not in host


def test_host_gets_the_machines_certificates() -> None:
    host = inventory([Path("/certificates/our company: 1.crt")])["hosts"]["demo1"]
    assert host["base_ca_certificates"] == ["/certificates/our company: 1.crt"]


def test_port_in_use_names_the_variable_for_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SetupError, match=f"Port {port} .* make demo SSH_PORT="):
            ensure_free(port, "SSH_PORT")
    ensure_free(port, "SSH_PORT")
