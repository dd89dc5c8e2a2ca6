"""Administrators, SSH, the firewall, visitors and maintenance mode."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterator

from .application import RESERVED
from .problems import Installation, Problem, quoted

USER = "[a-z_][a-z0-9_-]{0,31}"
LOGIN_PATH = r"\*?/[\w./~@+-]*"
FIREWALL_RULE = r"(allow|limit)( [\w./:,+-]+)+"

HEADER = "[A-Za-z][A-Za-z0-9-]*"
OWN_HEADERS = {
    *("x-content-type-options", "x-frame-options", "referrer-policy", "strict-transport-security", "x-request-id"),
    *("content-disposition", "retry-after", "cache-control", "access-control-allow-origin"),
}


def address_problem(address: str) -> str:
    """Return what is wrong with an address or network as nginx takes it; "" if nothing is."""
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        network = None
    if network is None or not re.fullmatch(r"[0-9A-Fa-f.:]+(/\d+)?", address, re.ASCII):
        return "write an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8:1::/48."
    if "/" in address and str(network.network_address) != str(ipaddress.ip_address(address.partition("/")[0])):
        return f"the network is {network}."
    return ""


def check_node_exporter(here: Installation) -> Iterator[Problem]:
    address = here.values["app_node_exporter_address"]
    if address and ("/" in address or address_problem(address)):
        yield Problem(
            "app_node_exporter_address",
            f"must be an address of the server, such as 10.0.0.5; it is {quoted(address)}.",
        )


def check_administrators(here: Installation) -> Iterator[Problem]:
    administrators = here.values["app_administrators"]
    names = [each["name"] for each in administrators]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("app_administrators", f"has more than one administrator named {name}.")
    for each in administrators:
        name, keys = each["name"], each["keys"]
        if not re.fullmatch(USER, name):
            yield Problem("app_administrators", f"is not a valid user name: it must match ^{USER}$.", part=f".{name}")
        elif name in RESERVED or name in (here.values["app_name"], f"{here.values['app_name']}_owner"):
            yield Problem("app_administrators", "is a user of the system or of the application.", part=f".{name}")
        if not keys:
            yield Problem(
                "app_administrators", "is empty, so this administrator could not log in.", part=f".{name}.keys"
            )
        for key in keys:
            if sentence := key_problem(key):
                yield Problem("app_administrators", sentence, part=f".{name}.keys")


def key_problem(key: str) -> str:
    """Return what is wrong with a public SSH key; "" if nothing is. Never repeat the key: it may be a private one."""
    if "PRIVATE KEY" in key:
        return (
            "contains a private key. Write the public key, the file that ends in .pub; if others have seen the private "
            "key, create a new pair."
        )
    form = r"(?P<type>(sk-)?(ssh|ecdsa)-[\w@.-]+) (?P<blob>AAAA[A-Za-z0-9+/]+={0,3})( [^\n\r]*)?"
    shape = re.fullmatch(form, key.strip())
    if not shape:
        return "contains something else than a public key. Write the one line of the file that ends in .pub."
    try:
        blob = base64.b64decode(shape["blob"], validate=True)
    except ValueError:
        blob = b""
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != shape["type"].encode() or len(blob) < length + 36:
        return "contains an incomplete key. Copy the whole line of the file that ends in .pub."
    if shape["type"] == "ssh-dss":
        return "contains a key of type ssh-dss, which sshd rejects. Create one: ssh-keygen -t ed25519."
    return ""


def check_ssh_port(here: Installation) -> Iterator[Problem]:
    port = int(here.values["app_ssh_port"])
    if not 1 <= port <= 65535:
        yield Problem("app_ssh_port", f"must be a port, from 1 to 65535; it is {port}.")
    elif port in here.ports:
        yield Problem("app_ssh_port", f"must not be {port}: {here.ports[port]} listens there.")


def check_trusted(here: Installation) -> Iterator[Problem]:
    for address in here.values["app_trusted_addresses"]:
        if sentence := address_problem(address):
            yield Problem("app_trusted_addresses", f"contains {quoted(address)}; {sentence}")


def check_proxies(here: Installation) -> Iterator[Problem]:
    for address in here.values["app_trusted_proxies"]:
        if sentence := address_problem(address):
            yield Problem("app_trusted_proxies", f"contains {quoted(address)}; {sentence}")
        elif address.endswith("/0"):
            yield Problem(
                "app_trusted_proxies",
                f"contains {quoted(address)}, which is every client: each could then claim any address. "
                "Write the networks that the provider of the proxy publishes.",
            )


def check_firewall(here: Installation) -> Iterator[Problem]:
    """Rules that deny are refused: ufw applies the first rule that matches, and the services' rules come first."""
    for rule in here.values["app_firewall_rules"]:
        if not re.fullmatch(FIREWALL_RULE, rule):
            yield Problem(
                "app_firewall_rules",
                f'contains {quoted(rule)}; a rule must match ^{FIREWALL_RULE}$, such as "allow 25/tcp".',
            )


def check_rate_limit(here: Installation) -> Iterator[Problem]:
    for name, value in here.values["app_rate_limit"].items():
        if int(value) < 0:
            yield Problem("app_rate_limit", f"must be at least 0 (no limit); it is {value}.", part=f".{name}")


def check_login_paths(here: Installation) -> Iterator[Problem]:
    for path in here.values["app_login_paths"]:
        if not re.fullmatch(LOGIN_PATH, path, re.ASCII):
            yield Problem(
                "app_login_paths",
                f"contains {quoted(path)}; write a path such as /admin/login/, or an end such as */login/.",
            )


def check_headers(here: Installation) -> Iterator[Problem]:
    for name, value in here.values["app_response_headers"].items():
        if not re.fullmatch(HEADER, str(name)):
            sentence = f"is not a valid name: it must match ^{HEADER}$."
        elif name.lower() in OWN_HEADERS:
            sentence = "is a header that Seedbed adds. Send it from the application, whose own is kept."
        elif not isinstance(value, str) or not re.fullmatch(r'[^"$\\\n\r]+', value):
            sentence = 'must be text on one line without " $ and \\.'
        else:
            continue
        yield Problem("app_response_headers", sentence, part=f".{name}")


def check_maintenance(here: Installation) -> Iterator[Problem]:
    for address in here.values["app_maintenance_addresses"]:
        if sentence := address_problem(address):
            yield Problem("app_maintenance_addresses", f"contains {quoted(address)}; {sentence}")
    for path in here.values["app_maintenance_paths"]:
        if not re.fullmatch(r"/[^\s\"'\\?]*", path):
            yield Problem("app_maintenance_paths", f"contains {quoted(path)}; write a path such as /readyz/.")
