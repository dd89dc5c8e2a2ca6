#!/usr/bin/env python3
"""The demo: a throwaway server on this machine, and the inventory that provisions it."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
from pathlib import Path

from machine import ROOT, SetupError, ensure_engine, exit_with_instructions, say
from testhost import KEY, RELEASES, Host, ca_files, down, remove, up

ADDRESS = "10.177.0.2"
HOST = Host("demo", ROOT / ".demo")
INVENTORY = ROOT / "inventory/demo.yml"
SECRETS = ROOT / "inventory/.secrets/demo"
GROUPS = ("web", "worker", "scheduler", "database", "broker")


def inventory_text(ports: dict[str, int], certificates: list[Path]) -> str:
    """Return an inventory of one host, in the group `demo` and in every group of services."""
    host = {
        "ansible_host": "127.0.0.1",
        "ansible_port": ports["ssh"],
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(KEY),
        # The host and its key are new each time.
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        "app_domain": "127.0.0.1",
        "app_https_port": ports["https"],
        # Ansible's facts show the memory of this machine.
        "app_memory_mb": 1024,
    }
    if certificates:
        host["base_ca_certificates"] = [str(path) for path in certificates]
    # A value in JSON is YAML as well.
    lines = ["# Written by `make demo`.", "---", "demo:", "  hosts:", "    demo1:"]
    lines += [f"      {name}: {json.dumps(value)}" for name, value in host.items()]
    lines += ["  children:", *(f"    {group}: {{hosts: {{demo1: {{}}}}}}" for group in GROUPS)]
    # Around the group demo, whose files then override group_vars/demo_shop.yml.
    lines += ["demo_shop:", "  children:", "    demo: {}"]
    return "\n".join(lines) + "\n"


def ensure_free(port: int, variable: str) -> None:
    """Raise SetupError if another program listens on the port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SetupError(f"Port {port} of this machine is in use. Choose another: make demo {variable}=...")


def create(os: str, ports: dict[str, int]) -> None:
    remove(ensure_engine(), HOST)
    for variable, name in {"PORT": "https", "HTTP_PORT": "http", "SSH_PORT": "ssh"}.items():
        ensure_free(ports[name], variable)
    inner = {"https": 443, "http": 80, "ssh": 22}
    published = [f"127.0.0.1:{ports[name]}:{inner[name]}" for name in inner]
    # It may stay for days, and its doctor asks for them.
    up(HOST, os, ADDRESS, published, upgrades=True)
    INVENTORY.write_text(inventory_text(ports, ca_files()))
    say("Its inventory is inventory/demo.yml. Log in with: ssh -F .demo/ssh_config demo")


def destroy() -> None:
    down(HOST)
    INVENTORY.unlink(missing_ok=True)
    shutil.rmtree(SECRETS, ignore_errors=True)
    say("The demo's SSH configuration, inventory and generated secrets are removed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("create", help="create the server, bare, and its inventory")
    command.add_argument("--os", choices=RELEASES, default="debian13")
    for name, port in {"https": 8443, "http": 8080, "ssh": 2222}.items():
        command.add_argument(f"--{name}-port", type=int, default=port)
    commands.add_parser("destroy", help="remove the server, its inventory and its secrets")

    arguments = parser.parse_args()
    if arguments.command == "destroy":
        destroy()
    else:
        ports = {name: getattr(arguments, f"{name}_port") for name in ("https", "http", "ssh")}
        create(arguments.os, ports)


if __name__ == "__main__":
    exit_with_instructions(main)
