"""What each host of an installation runs and lets in, and that they work together."""

from __future__ import annotations

import pytest
from cluster import Cluster
from installation import Installation
from probes import Visitor, open_ports
from testinfra.host import Host

# Who may reach what, of the ports that anything uses.
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

KNOCK = """
import socket
for port in PORTS:
    with socket.socket() as knock:
        knock.settimeout(1)
        if knock.connect_ex(('ADDRESS', port)) == 0:
            print(port)
"""


def address(host: Host) -> str:
    return host.ansible.get_variables()["ansible_host"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_answers_outside(hosts: dict[str, Host], name: str) -> None:
    assert open_ports(address(hosts[name]), range(1, 65536)) == OUTSIDE[name]


@pytest.mark.parametrize(("source", "target"), INSIDE)
def test_what_one_host_reaches_on_another(hosts: dict[str, Host], source: str, target: str) -> None:
    script = KNOCK.replace("PORTS", str(PORTS)).replace("ADDRESS", address(hosts[target]))
    found = {int(port) for port in hosts[source].check_output(f'python3 -c "{script}"').split()}
    assert found == INSIDE[source, target] | {22}


def test_each_host_runs_what_its_groups_say(cluster: Cluster, app: Installation) -> None:
    release = cluster.current
    workers = {f"{app.name}-worker-{worker['name']}@{release}" for worker in app.workers}
    assert set(cluster.processes()) == workers | {f"{app.name}-web@{release}"}
    assert set(cluster.at("work").processes()) == workers | {f"{app.name}-beat"}
    assert not cluster.at("work").host.exists("nginx")
    assert not cluster.at("data").host.file(f"/srv/{app.name}").exists


def test_an_order_on_one_host_is_carried_out_on_another(visitor: Visitor) -> None:
    assert visitor.finished_order(visitor.order(), 30)


def test_flower_is_behind_the_front_door(app: Installation, visitor: Visitor) -> None:
    assert visitor.get("/flower/").status == 401
