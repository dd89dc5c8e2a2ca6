"""The demo's inventory: one host in every group, reached as a VPS is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml
from demo import GROUPS, ensure_free, inventory_text
from machine import SetupError

PORTS = {"https": 8443, "http": 8080, "ssh": 2222}


def test_the_host_is_in_every_group() -> None:
    inventory = yaml.safe_load(inventory_text(PORTS, []))["all"]
    assert {group: list(content["hosts"]) for group, content in inventory["children"].items()} == {
        group: ["demo"] for group in GROUPS
    }


def test_the_ports_are_those_that_were_asked_for() -> None:
    host = yaml.safe_load(inventory_text(PORTS, []))["all"]["hosts"]["demo"]
    assert (host["ansible_port"], host["app_https_port"]) == (2222, 8443)
    assert "base_ca_certificates" not in host


def test_the_machines_certificates_are_handed_on() -> None:
    files = [Path("/certificates/our company: 1.crt")]
    host = yaml.safe_load(inventory_text(PORTS, files))["all"]["hosts"]["demo"]
    assert host["base_ca_certificates"] == ["/certificates/our company: 1.crt"]


def test_a_port_in_use_names_the_variable_that_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SetupError, match=f"Port {port} .* make demo SSH_PORT="):
            ensure_free(port, "SSH_PORT")
    ensure_free(port, "SSH_PORT")
