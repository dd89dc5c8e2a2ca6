"""The ports that are open to everyone, and those that only the host itself reaches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from installation import Installation
from probes import open_ports
from testinfra.host import Host

PUBLIC = {22, 80, 443}
# PostgreSQL, Redis (broker, cache), Flower.
PRIVATE = {5432, 6379, 6380, 5555}


@pytest.fixture(scope="module")
def listening(host: Host) -> dict[int, set[str]]:
    """Return every TCP port with a listener, and the addresses that it listens on."""
    ports: dict[int, set[str]] = {}
    for line in host.check_output("ss --no-header --tcp --listening --numeric").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        ports.setdefault(int(port), set()).add(address)
    return ports


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("[::1]", "[::ffff:127.0.0.1]")


def test_open_ports(app: Installation) -> None:
    """Of all 65535, from the machine that runs the tests."""
    assert open_ports(app.address, range(1, 65536)) == PUBLIC


def test_listeners_beyond_loopback(listening: dict[int, set[str]]) -> None:
    """A firewall would hide them from the scan."""
    beyond = {port for port, addresses in listening.items() if not all(map(is_loopback, addresses))}
    assert beyond == PUBLIC


def test_no_udp_listeners_beyond_loopback(host: Host) -> None:
    output = host.check_output("ss --no-header --udp --listening --numeric")
    addresses = {line.split()[3].rpartition(":")[0] for line in output.splitlines()}
    assert {address for address in addresses if not is_loopback(address)} == set()


@pytest.mark.parametrize("port", sorted(PRIVATE))
def test_services_listen_on_loopback(listening: dict[int, set[str]], port: int) -> None:
    assert listening.get(port) == {"127.0.0.1"}


def listeners(host: Host, sockets: str) -> set[str]:
    """Return the programs that listen; for Python, the names of their scripts."""
    pids = re.findall(r"pid=(\d+)", host.check_output(f"ss --no-header --listening --processes {sockets}"))
    lines = [line.split() for line in host.check_output(f"ps -o args= -p {','.join(pids)}").splitlines()]
    return {Path(words[1] if "python" in words[0] and len(words) > 1 else words[0]).name for words in lines}


def test_gunicorn_listens_on_its_socket_only(host: Host, app: Installation, release: str) -> None:
    socket = f"/srv/{app.name}/releases/{release}/run/web.sock"
    assert listeners(host, f"--unix 'src {socket}'") == {"gunicorn"}
    assert "gunicorn" not in listeners(host, "--tcp --udp")


USERS = {"www-data": True, "redis": False, "nobody": False}  # language-lint: allow nobody


@pytest.mark.parametrize(("user", "allowed"), USERS.items())
def test_only_nginx_and_the_application_reach_the_socket(
    host: Host, app: Installation, user: str, allowed: bool
) -> None:
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect('/srv/{app.name}/current/run/web.sock')"
    result = host.run(f'runuser -u {user} -- python3 -c "{connect}"')
    assert result.succeeded == allowed, result.stderr
    assert allowed or "PermissionError" in result.stderr
