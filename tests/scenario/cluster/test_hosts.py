"""What each host of an installation runs and accepts, and that the hosts work together."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cluster import Cluster
from deployments import ROOT
from installation import Installation
from probes import Visitor, open_ports
from testinfra.host import Host

# The ports that answer, of those that anything uses.
OUTSIDE = {"front": {22, 80, 443}, "work": {22}, "data": {22}}
INSIDE = {
    ("front", "data"): {5432, 6379, 6380},
    ("work", "data"): {5432, 6379, 6380},
    ("front", "work"): {5555},
    ("data", "work"): {5555},
    ("work", "front"): {80, 443},
    ("data", "front"): {80, 443},
}
PORTS = (22, 80, 443, 5432, 5555, 6379, 6380, 8000)

# At the same time, since a dropped packet is waited for.
SCAN = """
import socket
from concurrent.futures import ThreadPoolExecutor
def scan(port):
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex(('ADDRESS', port)) == 0
with ThreadPoolExecutor(len(PORTS)) as pool:
    print(*(port for port, is_open in zip(PORTS, pool.map(scan, PORTS)) if is_open))
"""


def address(host: Host) -> str:
    return host.ansible.get_variables()["ansible_host"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_ports_open_to_everyone(hosts: dict[str, Host], name: str) -> None:
    assert open_ports(address(hosts[name]), range(1, 65536)) == OUTSIDE[name]


@pytest.mark.parametrize(("source", "target"), INSIDE)
def test_ports_open_to_the_other_hosts(hosts: dict[str, Host], source: str, target: str) -> None:
    script = SCAN.replace("PORTS", str(PORTS)).replace("ADDRESS", address(hosts[target]))
    found = {int(port) for port in hosts[source].check_output(f'python3 -c "{script}"').split()}
    assert found == INSIDE[source, target] | {22}


def test_each_host_runs_what_its_groups_say(cluster: Cluster, app: Installation) -> None:
    release = cluster.current
    workers = {f"{app.name}-worker-{worker['name']}@{release}" for worker in app.workers}
    assert set(cluster.processes()) == workers | {f"{app.name}-web@{release}"}
    assert set(cluster.at("work").processes()) == workers | {f"{app.name}-beat"}
    assert not cluster.at("work").host.exists("nginx")
    assert not cluster.at("data").host.file(f"/srv/{app.name}").exists


def test_only_the_leader_has_a_copy_of_the_secrets(hosts: dict[str, Host]) -> None:
    found = {
        name: host.run("stat --format='%a %U' /etc/seedbed/secrets-copy.json").stdout for name, host in hosts.items()
    }
    assert found == {"front": "600 root\n", "work": "", "data": ""}


def test_flower_is_served_by_the_web_host(visitor: Visitor) -> None:
    assert visitor.get("/flower/").status == 401


def test_logs_of_all_hosts_name_them(cluster: Cluster, app: Installation) -> None:
    """As `make logs` prints them, read over SSH."""
    command = [sys.executable, str(ROOT / "tools/logs.py"), "-i", str(cluster.inventory), "-n", "5", "worker"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # DATE TIME HOST UNIT: MESSAGE
    found = set(re.findall(rf"^\S+ \S+ (\w+) {app.name}-worker-", done.stdout, re.MULTILINE))
    assert found == {"front", "work"}, done.stdout
