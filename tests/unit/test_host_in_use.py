"""What a host is in use for is found before anything changes; what packages install does not count."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from project import ROOT


def load(path: str) -> ModuleType:
    name = f"{Path(path).parent.name}_{Path(path).stem}"
    found = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


action, program = load("plugins/action/host_in_use.py"), load("plugins/host/host_in_use.py")
upgrade = load("plugins/host/postgresql_upgrade.py")

SERVICES = ["base", "postgresql", "redis", "nginx", "flower", "application", "supervisor"]
PORTS = {"postgresql": 5432, "broker": 6379, "cache": 6380, "http": 80, "https": 443, "flower": 5555}
DEFAULT_SITE = "server { listen 80 default_server; }\n"
ACCESS = """\
# Database administrative login by Unix domain socket
local   all             postgres                                peer
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 md5
local   replication     all                                     peer
"""
REDIS = "bind 127.0.0.1\nport 6379\n"


class Files:
    """The files of a host whose packages are unmodified: nginx, PostgreSQL 17 and Redis are installed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.outputs: dict[str, str] = {}
        self.packaged = {
            "/etc/nginx/nginx.conf": "http {}\n",
            "/etc/nginx/sites-available/default": DEFAULT_SITE,
            "/etc/redis/redis.conf": REDIS,
            "/etc/nftables.conf": "flush ruleset\n",
        }
        for path, text in self.packaged.items():
            self.write(path, text)
        hashes = (f" {path} {hashlib.md5(text.encode()).hexdigest()}\n" for path, text in self.packaged.items())
        self.write("/var/lib/dpkg/status", f"Package: all\nConffiles:\n{''.join(hashes)}\n")
        self.write("/etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\n')
        self.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
        self.write("/etc/postgresql/17/main/postgresql.conf", "port = 5432\n")
        self.write("/etc/postgresql/17/main/pg_hba.conf", ACCESS)
        self.write("/usr/sbin/ufw", "")
        for number in (1, 4, 5):
            self.write(f"/var/lib/postgresql/17/main/base/{number}/PG_VERSION", "17\n")
        self.link("/etc/nginx/sites-enabled/default", "../sites-available/default")
        monkeypatch.setattr(program, "run", lambda *command: self.outputs.get(command[0], ""))
        monkeypatch.setattr(program, "ask_redis", lambda port, command: self.outputs.get(command, ""))

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, path: str, target: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.symlink_to(target)

    def listen(self, port: int, name: str, unit: str = "", number: int = 311) -> None:
        line = f"   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {port} 1 0\n"
        self.write("/proc/net/tcp", f"  sl  local_address ...\n{line}")
        self.write(f"/proc/{number}/comm", f"{name}\n")
        self.write(f"/proc/{number}/cgroup", f"0::/system.slice/{unit}\n")
        self.link(f"/proc/{number}/fd/7", f"socket:[{port}]")

    def host(self, **request: Any) -> Any:
        given = {"application": "shop", "services": SERVICES, "ports": PORTS, "firewall_rules": [], "ssh_port": 22}
        return program.Host(given | request, self.root)

    def findings(self, **request: Any) -> list[tuple[str, str]]:
        return list(self.host(**request).findings())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def test_a_bare_host_is_accepted(files: Files, tmp_path_factory: pytest.TempPathFactory) -> None:
    files.root = tmp_path_factory.mktemp("bare")
    assert files.findings() == []


@pytest.mark.parametrize(
    "rules",
    [
        *("", "ufw allow 22/tcp", "ufw limit OpenSSH", "ufw allow 80,443/tcp\nufw allow 'Nginx Full'", "ufw allow ssh"),
        *("ufw limit to any port 22 proto tcp", "ufw allow in on eth0 to any port 22 proto tcp comment 'ours'"),
    ],
)
def test_unmodified_packages_are_accepted(files: Files, rules: str) -> None:
    """As in a provider's image, also with a firewall that only lets SSH and the site pass."""
    files.outputs["ufw"] = f"Added user rules (see 'ufw status' for running firewall):\n{rules}\n"
    files.outputs["runuser"] = ""
    files.outputs["iptables-save"] = (
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -j ufw-before-input\n-A INPUT -j f2b-sshd\nCOMMIT\n"
    )
    files.outputs["nft"] = "table ip filter\ntable inet f2b-table\n"
    files.listen(80, "nginx", "nginx.service")
    assert files.findings() == []
    assert files.host().nginx_default_ports() == []


@pytest.mark.parametrize(("process", "accepted"), [("prometheus-node", True), ("node_exporter", False)])
def test_only_debians_node_exporter_may_have_its_port(files: Files, process: str, accepted: bool) -> None:
    files.listen(9100, process, "prometheus-node-exporter.service")
    assert (files.findings(ports=PORTS | {"node_exporter": 9100}) == []) is accepted


# What is done to the host, the name of the finding, and words of its text.
CASES: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    "site": ({"/etc/nginx/sites-enabled/blog": "server {}"}, {}, "nginx", "/etc/nginx/sites-enabled/blog"),
    "conf.d": ({"/etc/nginx/conf.d/blog.conf": "server {}"}, {}, "nginx", "/etc/nginx/conf.d/blog.conf"),
    "edited default": ({"/etc/nginx/sites-available/default": "edited"}, {}, "nginx", "sites-enabled/default"),
    "nginx.conf": ({"/etc/nginx/nginx.conf": "edited"}, {}, "nginx", "/etc/nginx/nginx.conf was edited"),
    "databases": ({}, {"runuser": "blog\nrole blogger\n"}, "postgresql", "PostgreSQL 17/main has the databases blog:"),
    "name in use": ({}, {"runuser": "role shop\n"}, "", "has role shop: app_name shop is in use"),
    "server down": ({"/var/lib/postgresql/17/main/base/16384/x": ""}, {}, "postgresql", "1 database, and is down"),
    "access": (
        {"/etc/postgresql/17/main/pg_hba.conf": f"{ACCESS}local blog  blog peer map=b\n"},
        {},
        "postgresql",
        "access rules of its own: local blog blog peer map=b.",
    ),
    "other version": ({"/etc/postgresql/15/main/postgresql.conf": "port = 5432 "}, {}, "", "15/main has port 5432"),
    "other cluster": (
        {"/etc/postgresql/17/old/postgresql.conf": "port=5433\n"},
        {},
        "postgresql",
        "17/old runs beside",
    ),
    "redis.conf": ({"/etc/redis/redis.conf": f"{REDIS}maxmemory 1gb\n"}, {}, "redis", "(redis.conf was edited)"),
    "keys": ({}, {"INFO keyspace": "db0:keys=12,x\r\ndb3:keys=2,x\r\n"}, "redis", "port 6379 is in use (14 keys)"),
    "clients": ({}, {"INFO clients": "connected_clients:3\r\n"}, "redis", "(2 clients)"),
    "dump": ({"/var/lib/redis/dump.rdb": "REDIS0012\xfa\xfe\x00\xfb\x01"}, {}, "redis", "(data on disk)"),
    "supervisor": (
        {"/etc/supervisor/conf.d/blog.conf": "[program:blog]"},
        {},
        "supervisor",
        "/etc/supervisor/conf.d/blog",
    ),
    "ufw": ({}, {"ufw": "Added:\nufw allow 22/tcp\nufw allow 8080/tcp\n"}, "firewall", "removed: allow 8080/tcp."),
    "supervisor, a longer name": ({"/etc/supervisor/conf.d/shopping.conf": ""}, {}, "supervisor", "conf.d/shopping"),
    "ufw range": ({}, {"ufw": "Added:\nufw allow from 10.0.0.7 to any port 22\n"}, "firewall", "allow from 10.0.0.7"),
    "iptables": ({}, {"iptables-save": "-A INPUT -p tcp --dport 25 -j DROP\n"}, "firewall", "--dport 25 -j DROP"),
    "nftables": ({}, {"nft": "table inet filter\n"}, "firewall", "table inet filter"),
    "nftables at boot": (
        {"/etc/systemd/system/a.wants/nftables.service": ""},
        {},
        "firewall",
        "nftables.service is enabled",
    ),
    "iptables-persistent": ({"/etc/iptables/rules.v4": ""}, {}, "firewall", "apt removes that package"),
    "firewalld": ({"/etc/systemd/system/a.wants/firewalld.service": ""}, {}, "", "systemctl disable --now firewalld"),
    "docker": ({"/var/lib/docker/containers/0a1b/config.json": ""}, {}, "docker", "1 container"),
    "folder": ({"/srv/shop/index.html": ""}, {}, "", "app_name shop is in use: /srv/shop."),
    "user": ({"/etc/passwd": "shop:x:1000:1000::/home/shop:/bin/bash\n"}, {}, "", "in use: the user shop."),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_use_is_named(files: Files, case: str) -> None:
    written, outputs, name, words = CASES[case]
    for path, text in written.items():
        (files.root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (files.root / path.lstrip("/")).write_bytes(text.encode("latin-1"))
    files.outputs |= outputs
    [(found, text)] = files.findings()
    assert found == name
    assert words in text


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        # As images of Oracle have them.
        (
            "-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT\n"
            "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
            "INPUT -j REJECT --reject-with icmp-host-prohibited",
        ),
        ("-A INPUT -i eth0 -p tcp -m tcp -j DROP", "INPUT -i eth0 -p tcp -m tcp -j DROP"),
        ('-A INPUT -m comment --comment "the rest" -j DROP', 'INPUT -m comment --comment "the rest" -j DROP'),
        ("-A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT\n-A INPUT -j DROP", ""),
        ("-A INPUT -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited", ""),
        ('-A INPUT -m comment --comment "all" -j ACCEPT\n-A INPUT -j DROP', ""),
        ("-A INPUT -i eth1 -j ACCEPT\n-A INPUT -j DROP", "INPUT -j DROP"),
        ("-A INPUT -p udp -j ACCEPT\n-A INPUT -j DROP", "INPUT -j DROP"),
        ("-A INPUT -s 192.0.2.7/32 -j DROP", ""),
        ("-A INPUT -i lo -j ACCEPT\n-A FORWARD -j DROP", ""),
        ("-A INPUT -m conntrack --ctstate INVALID -j DROP", ""),
        ("-A INPUT -p udp -j DROP", ""),
    ],
)
@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_rules_that_close_the_ports_of_the_site_must_be_removed(
    files: Files, program: str, rules: str, refused: str
) -> None:
    """ufw's rules come after them."""
    files.outputs[f"{program}-save"] = f"*filter\n{rules}\nCOMMIT\n"
    found = [text for name, text in files.findings() if not name]
    assert len(found) == bool(refused)
    assert all(text.endswith(f"type: {program} -D {refused}") for text in found)


@pytest.mark.parametrize(
    ("port", "process", "unit", "refused"),
    [
        (80, "apache2", "apache2.service", "apache2 (process 311, apache2.service) listens on port 80,"),
        (443, "docker-proxy", "", "docker-proxy (process 311) listens on port 443,"),
        (6380, "redis-server", "redis-server@jobs.service", "listens on port 6380,"),
        (5555, "python3", "", "listens on port 5555,"),
        (5432, "postgres", "postgresql@17-main.service", ""),
        (6379, "redis-server", "redis-server.service", ""),
        (8080, "java", "", ""),
    ],
)
def test_a_process_on_a_port_that_is_needed(files: Files, port: int, process: str, unit: str, refused: str) -> None:
    files.listen(port, process, unit)
    found = files.findings()
    assert [name for name, _ in found] == ([""] if refused else [])
    assert all(refused in text for _, text in found)


def test_a_redis_on_another_port_is_left_alone(files: Files) -> None:
    files.write("/etc/redis/redis.conf", REDIS.replace("6379", "6400"))
    assert files.findings() == []
    assert files.host().redis_port == 6400


def test_rules_that_the_settings_keep_are_accepted(files: Files) -> None:
    files.outputs["ufw"] = "Added:\nufw allow 8080/tcp\n"
    assert files.findings(firewall_rules=["allow 8080/tcp"]) == []


def test_services_that_the_host_does_not_get_are_not_looked_at(files: Files) -> None:
    files.write("/etc/nginx/sites-enabled/blog", "server {}")
    files.listen(80, "apache2")
    assert files.findings(services=["base", "redis"], ports={"broker": 6379, "cache": 6380}) == []


# What versions write; the earliest is commit 7e689fa.
OURS = {
    "/etc/systemd/system/nginx.service.d/60-seedbed.conf": "[Service]\nProtectSystem=strict\n",
    "/etc/postgresql/17/main/conf.d/60-seedbed.conf": "hba_file = '/etc/postgresql/17/main/pg_hba.seedbed.conf'\n",
    "/etc/redis/redis-broker.conf": "port 6379\n",
    "/etc/nginx/conf.d/shop.conf": "server { listen 80 default_server; }",
    "/etc/systemd/system/shop-flower.service": "",
    "/etc/seedbed/access/firewall": "allow 22/tcp\n",
    "/etc/systemd/system/supervisor.service.d/shop-supervisor.conf": "",
}


@pytest.mark.parametrize("mark", ["/etc/shop/hostctl.json", "/etc/shop/release.json", "/etc/sysusers.d/shop.conf"])
def test_a_host_that_seedbed_has_provisioned_is_recognized(files: Files, mark: str) -> None:
    """With its user, database, files and rules, and whatever was added later."""
    for path, text in (OURS | {mark: ""}).items():
        files.write(path, text)
    files.write("/etc/passwd", "shop:x:998:998::/srv/shop/shared:/usr/sbin/nologin\n")
    files.write("/etc/nginx/conf.d/blog.conf", "server {}")
    files.write("/etc/supervisor/conf.d/shop@1.conf", "")
    files.write("/srv/shop/current", "")
    files.outputs |= {"runuser": "shop\nrole shop\n", "ufw": "Added:\nufw allow 8080/tcp\n", "nft": "table inet mine\n"}
    files.listen(6379, "redis-server", "redis-server@broker.service")
    assert files.findings() == []


def test_what_is_shared_must_stay_accepted(files: Files) -> None:
    """The settings of a shared server differ, so a run without app_take_over would take it over."""
    for path in OURS:
        files.write(path, "# shared\n")
    files.write("/etc/shop/hostctl.json", "")
    files.write("/etc/nginx/conf.d/blog.conf", "server {}")
    files.write(
        "/etc/postgresql/17/main/pg_hba.conf", f"# BEGIN Seedbed, shop\nlocal shop\n# END Seedbed, shop\n{ACCESS}"
    )
    files.outputs["runuser"] = "shop\nblog\nrole shop\nrole shop_owner\nrole blog\n"
    assert [name for name, _ in files.findings()] == ["nginx", "postgresql"]


@pytest.mark.parametrize(
    ("version", "start", "databases", "found"),
    [
        ("15", "auto\n", (), ["15", "17"]),
        ("15", "", (), ["15", "17"]),
        ("15", "auto\n", (16385,), ["15", "17"]),
        # pg_upgradecluster has been here.
        ("15", "# Automatic startup configuration\n\nmanual\n", (5, 16385), []),
        # Disabled by a person: the new cluster would serve without rows.
        ("15", "manual\n", (5,), ["15", "17"]),
        ("17", "auto\n", (), []),
    ],
)
def test_databases_in_the_cluster_of_an_earlier_debian_are_found(
    files: Files, version: str, start: str, databases: tuple[int, ...], found: list[str]
) -> None:
    folder = f"/etc/postgresql/{version}/main"
    files.write(f"{folder}/conf.d/60-seedbed.conf", OURS["/etc/postgresql/17/main/conf.d/60-seedbed.conf"])
    files.write(f"{folder}/start.conf", start)
    for number in databases:
        files.write(f"/var/lib/postgresql/17/main/base/{number}/PG_VERSION", "17\n")
    assert files.host().former_cluster == found
    assert files.host(services=["nginx"]).former_cluster == []


@pytest.mark.parametrize("step", [*upgrade.UNFINISHED, upgrade.RETURNING, upgrade.DONE, upgrade.RETURNED])
def test_an_unfinished_upgrade_of_postgresql_is_found(files: Files, step: str) -> None:
    """Both clusters look complete then."""
    files.write("/etc/postgresql/15/main/conf.d/60-seedbed.conf", "hba_file = 'x'\n")
    files.write("/etc/postgresql/15/main/start.conf", "manual\n")
    files.write("/var/lib/postgresql/17/main/base/16385/PG_VERSION", "17\n")
    files.write(upgrade.STATE, json.dumps({"step": step, "old": "15", "new": "17"}))
    unfinished = step not in (upgrade.DONE, upgrade.RETURNED)
    assert files.host().former_cluster == (["15", "17"] if unfinished else [])


@pytest.mark.parametrize(
    ("text", "ports"),
    {
        "listen 80 default_server;": [80],
        "listen [::]:443 ssl default_server; listen 10.0.0.7:80 default;": [80, 443],
        "# listen 80 default_server;\nlisten 80;": [],
        "listen unix:/run/x.sock default_server;": [80],
        "listen 127.0.0.1 default_server;": [80],
    }.items(),
)
def test_default_servers_of_others(files: Files, text: str, ports: list[int]) -> None:
    files.write("/etc/nginx/sites-enabled/blog", f"server {{ {text} }}")
    assert files.host().nginx_default_ports() == ports


def test_the_refusal_says_what_to_write() -> None:
    findings = [{"name": "nginx", "text": "a"}, {"name": "redis", "text": "b"}, {"name": "", "text": "c"}]
    text = action.problem(findings, [], "server1")
    assert text.startswith("No service was changed: server1 is in use by others (3).\n  nginx: a\n")
    assert "  remove first: c\n" in text
    assert "app_take_over: [nginx, redis]" in text
    accepted = action.problem(findings, ["nginx", "redis"], "server1")
    assert "remove first: c" in accepted
    assert "app_take_over" not in accepted
    assert action.problem(findings[:2], ["nginx", "redis"], "server1") == ""
    former = action.problem([], [], "server1", ["15", "17"])
    assert "its databases in PostgreSQL 15" in former
    assert former.endswith("playbooks/upgrade-postgresql.yml")


# --- The real host and the real Redis protocol ----------------------------------------------------------------------


def test_the_sockets_of_this_machine_are_found() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        host = program.Host({"application": "x", "services": [], "ports": {}, "firewall_rules": [], "ssh_port": 22})
        [inode] = host.listening()[port]
        assert f"(process {os.getpid()}" in host.owners({inode})[inode]


@pytest.fixture
def answering() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100) == b"INFO keyspace\r\n"
                connection.sendall(b"$30\r\n# Keyspace\r\ndb0:keys=5,expires=0\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_redis_is_asked(answering: int) -> None:
    assert "db0:keys=5" in program.ask_redis(answering, "INFO keyspace")


def test_a_port_without_redis_answers_nothing() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert program.ask_redis(unused.getsockname()[1], "INFO keyspace") == ""
