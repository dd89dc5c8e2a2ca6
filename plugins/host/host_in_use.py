"""Report what a host is in use for that Seedbed has not provisioned: the host's part of the action of the same name.

Needs Debian's Python and its standard library alone. Reads the request from stdin, as documented in the action; prints
{"findings": [{"name", "text"}], "former_cluster": [str], "nginx_default_ports": [int], "nginx_default_site_edited":
bool, "redis_server_port": int} as JSON. The name of a finding is a choice of app_take_over; it is "" for what must be
removed first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

Finding = tuple[str, str]
# The version of PostgreSQL in the distribution, by VERSION_ID.
POSTGRESQL = {"12": "15", "13": "17", "24.04": "16"}
# What postgresql_upgrade.py writes, and the steps at which neither cluster is to be configured.
POSTGRESQL_UPGRADE = "/var/lib/seedbed/postgresql-upgrade.json"
UNFINISHED_STEPS = ("begun", "copying", "copied", "released", "returning")
# Databases of users have numbers from this one on.
FIRST_USER_DATABASE = 16384
# pg_hba.conf of a new cluster.
DEFAULT_ACCESS = {
    "local all postgres peer",
    "local all all peer",
    "host all all 127.0.0.1/32",
    "host all all ::1/128",
    "local replication all peer",
    "host replication all 127.0.0.1/32",
    "host replication all ::1/128",
}
LISTEN = "0A"
# Rules of these chains are of ufw, Docker and fail2ban, and follow their own settings.
MANAGED_CHAINS = re.compile(r"-(?:A|j) (?:ufw6?-|DOCKER|f2b-)|-[io] (?:docker0|br-[0-9a-f]{12}) ")
MANAGED_TABLES = re.compile(r"table (?:(?:ip|ip6) (?:filter|nat|mangle|raw|security)|\S+ (?:f2b-table|docker\S*))$")


def run(*command: str) -> str:
    """Return the output of a command; "" if it fails or does not exist."""
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def ask_redis(port: int, command: str) -> str:
    """Return the answer of a Redis on this host that needs no password; "" if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(65536).decode(errors="replace")
    except OSError:
        return ""


def some(words: Iterable[str], most: int = 5) -> str:
    """Return a list in words, cut off after a few."""
    found = list(words)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


class Host:
    """A host whose files are below `root`."""

    def __init__(self, request: dict[str, Any], root: Path = Path("/")) -> None:
        self.root = root
        self.name: str = request["application"]
        self.services: list[str] = request["services"]
        self.ports: dict[str, int] = request["ports"]
        self.rules: list[str] = request["firewall_rules"]
        self.ssh_port: int = request["ssh_port"]

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read(self, path: Path | str) -> str:
        """Return the text of a file, or "" if it does not exist."""
        try:
            return (self.path(path) if isinstance(path, str) else path).read_text(errors="replace")
        except OSError:
            return ""

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern.lstrip("/")))

    def shown(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"

    @cached_property
    def packaged(self) -> dict[str, str]:
        """The configuration files of packages and their MD5 hashes as installed."""
        return dict(re.findall(r"^ (/\S+) ([0-9a-f]{32})$", self.read("/var/lib/dpkg/status"), re.MULTILINE))

    def is_edited(self, path: Path) -> bool:
        """Return whether a file differs from that of its package, or is of no package."""
        target = path.resolve()
        try:
            name, found = self.shown(target), hashlib.md5(target.read_bytes()).hexdigest()
        except (OSError, ValueError):
            return True
        return self.packaged.get(name) != found

    # -- what Seedbed has provisioned

    def is_ours(self, service: str) -> bool:
        """Return whether Seedbed has configured a service. One that it shares with others is not ours alone."""
        if service == "nginx":
            text = self.read("/etc/systemd/system/nginx.service.d/60-seedbed.conf")
            return "ProtectSystem=" in text
        if service == "postgresql":
            return any("hba_file" in self.read(path) for path in self.our_clusters)
        if service == "redis":
            return self.path("/etc/redis/redis-broker.conf").exists()
        if service == "flower":
            return self.path(f"/etc/systemd/system/{self.name}-flower.service").exists()
        if service == "firewall":
            return self.path("/etc/seedbed/access").exists()
        return False

    @property
    def our_clusters(self) -> list[Path]:
        """Our settings of PostgreSQL, also of a cluster that we share."""
        return self.paths("/etc/postgresql/*/main/conf.d/60-seedbed.conf")

    @property
    def postgresql_version(self) -> str:
        """The version of PostgreSQL that the distribution has."""
        system = re.search(r'^VERSION_ID="?([\d.]+)', self.read("/etc/os-release"), re.MULTILINE)
        return POSTGRESQL.get(system[1] if system else "", "")

    @property
    def former_cluster(self) -> list[str]:
        """The version of a cluster that a Debian before its upgrade had, and today's; [] if there is none.

        pg_upgradecluster leaves the old cluster with `manual` in start.conf. The new one must have databases, and
        no playbooks/upgrade-postgresql.yml may be unfinished.
        """
        wanted = self.postgresql_version
        if "postgresql" not in self.services or not wanted:
            return []
        if (unfinished := self.unfinished_upgrade()) and unfinished != wanted:
            return [unfinished, wanted]
        for file in self.our_clusters:
            start = re.sub(r"#.*", "", self.read(file.parents[1] / "start.conf")).strip()
            if (version := file.parents[2].name) == wanted:
                continue
            if start in ("", "auto") or not self.databases_on_disk(self.path(f"/var/lib/postgresql/{wanted}/main")):
                return [version, wanted]
        return []

    def unfinished_upgrade(self) -> str:
        """Return the version that an unfinished upgrade moves the databases from, or ""."""
        try:
            state = json.loads(self.read(POSTGRESQL_UPGRADE))
        except ValueError:
            return ""
        return state["old"] if state.get("step") in UNFINISHED_STEPS else ""

    def databases_on_disk(self, data: Path) -> int:
        """Return how many databases a cluster has beside those of a new one, also when it is down."""
        names = (path.name for path in data.glob("base/*"))
        return sum(name.isdigit() and int(name) >= FIRST_USER_DATABASE for name in names)

    # -- findings

    def findings(self) -> Iterator[Finding]:
        yield from self.application()
        for service, look in {"nginx": self.nginx, "postgresql": self.postgresql, "redis": self.redis}.items():
            if service in self.services and not self.is_ours(service):
                yield from look()
        if "supervisor" in self.services:
            yield from self.supervisor()
        yield from self.listeners()
        if not self.is_ours("firewall"):
            yield from self.firewall()
            yield from self.containers()

    def application(self) -> Iterator[Finding]:
        """Yield users and folders of another owner with the application's name."""
        ours = (f"/etc/{self.name}/hostctl.json", f"/etc/{self.name}/release.json")
        ours += (f"/etc/sysusers.d/{self.name}.conf", f"/usr/lib/sysusers.d/{self.name}.conf")
        if "application" not in self.services or any(self.path(path).exists() for path in ours):
            return
        places = ("/etc/{}", "/srv/{}", "/opt/{}-flower", "/var/www/{}", "/etc/ssl/{}", "/var/cache/{}")
        places += ("/etc/nginx/conf.d/{}.conf", "/usr/local/lib/{}", "/usr/local/sbin/{}ctl")
        found = [place.format(self.name) for place in places]
        found = [place for place in found if self.path(place).is_file() or self.paths(f"{place}/*")]
        users = {line.partition(":")[0] for line in self.read("/etc/passwd").splitlines()}
        found += [f"the user {name}" for name in (self.name, f"{self.name}-build") if name in users]
        if found:
            yield "", f"app_name {self.name} is in use: {some(found, 9)}. Choose another app_name, or remove these."

    def nginx_sites(self) -> list[Path]:
        """Return the enabled files that are neither ours nor unmodified ones of packages."""
        files = [*self.paths("/etc/nginx/sites-enabled/*"), *self.paths("/etc/nginx/conf.d/*.conf")]
        return [file for file in files if file.name != f"{self.name}.conf" and self.is_edited(file)]

    def nginx(self) -> Iterator[Finding]:
        if files := self.nginx_sites():
            yield "nginx", f"nginx serves {some(map(self.shown, files))}: these sites stay beside that of {self.name}."
        if self.path("/etc/nginx/nginx.conf").exists() and self.is_edited(self.path("/etc/nginx/nginx.conf")):
            yield "nginx", "/etc/nginx/nginx.conf was edited: it stays."

    def nginx_default_ports(self) -> list[int]:
        """Return the ports for which another site than ours is the default server."""
        ports = set()
        for file in self.nginx_sites():
            text = re.sub(r"#.*", "", self.read(file))
            for words in re.findall(r"\blisten\s+([^;]+);", text):
                if re.search(r"\bdefault(_server)?\b", words):
                    ports.add(int((re.match(r"(?:\S*:)?(\d+)(?:\s|$)", words) or ["", "80"])[1]))
        return sorted(ports)

    def postgresql(self) -> Iterator[Finding]:
        wanted = self.postgresql_version
        for folder in self.paths("/etc/postgresql/*/*"):
            version, cluster = folder.parent.name, folder.name
            settings = self.read(folder / "postgresql.conf")
            port = int((re.findall(r"^\s*port\s*=\s*'?(\d+)", settings, re.MULTILINE) or ["5432"])[-1])
            title = f"PostgreSQL {version}/{cluster}"
            if (version, cluster) != (wanted, "main"):
                if port == self.ports["postgresql"]:
                    yield (
                        "",
                        f"{title} has port {port}, which {wanted}/main needs. Move it to another port, or drop it.",
                    )
                else:
                    yield "postgresql", f"{title} runs beside {wanted}/main, on port {port}: it stays."
                continue
            yield from self.databases(title, self.path(f"/var/lib/postgresql/{version}/{cluster}"), port)
            if rules := self.edited_access(folder / "pg_hba.conf"):
                yield "postgresql", f"{title} has access rules of its own: {some(rules)}. They stay."

    def databases(self, title: str, data: Path, port: int) -> Iterator[Finding]:
        """Yield databases and roles of others."""
        names = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' UNION ALL"
        names += " SELECT 'role ' || rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'"
        psql = (
            "runuser",
            "--user",
            "postgres",
            "--",
            "psql",
            "--no-psqlrc",
            "-tA",
            f"--port={port}",
            "--command",
            names,
        )
        found = run(*psql).splitlines()
        ours = [self.name, *(f"role {self.name}{end}" for end in ("", "_2", "_owner"))]
        if not self.our_clusters and (taken := [name for name in found if name in ours]):
            yield "", f"{title} has {some(taken)}: app_name {self.name} is in use. Choose another, or remove these."
        databases = [name for name in found if not name.startswith("role ") and name not in ours]
        if databases:
            yield "postgresql", f"{title} has the databases {some(databases)}: they stay, as do their users' logins."
        # It is down.
        if not found and (number := self.databases_on_disk(data)):
            yield "postgresql", f"{title} has {count(number, 'database')}, and is down: it is started."

    def edited_access(self, file: Path) -> list[str]:
        """Return the access rules that are not those of a new cluster, nor ours."""
        text = re.sub(r"^# BEGIN Seedbed.*?^# END Seedbed[^\n]*", "", self.read(file), flags=re.MULTILINE | re.DOTALL)
        rules = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return [rule for rule in rules if re.sub(r" (md5|scram-sha-256)$", "", rule) not in DEFAULT_ACCESS]

    @property
    def redis_port(self) -> int:
        """The port of Debian's instance; 0 if Redis is not installed."""
        text = self.read("/etc/redis/redis.conf")
        return int((re.findall(r"^port\s+(\d+)", text, re.MULTILINE) or ["6379"])[-1]) if text else 0

    def redis(self) -> Iterator[Finding]:
        port = self.redis_port
        if port not in (self.ports["broker"], self.ports["cache"]):
            return
        about = ["redis.conf was edited"] if self.is_edited(self.path("/etc/redis/redis.conf")) else []
        if keys := sum(map(int, re.findall(r"^db\d+:keys=(\d+)", ask_redis(port, "INFO keyspace"), re.MULTILINE))):
            about.append(count(keys, "key"))
        elif self.redis_files():
            about.append("data on disk")
        clients = re.search(r"^connected_clients:(\d+)", ask_redis(port, "INFO clients"), re.MULTILINE)
        if clients and int(clients[1]) > 1:
            about.append(count(int(clients[1]) - 1, "client"))
        if about:
            yield (
                "redis",
                f"Debian's Redis on port {port} is in use ({', '.join(about)}): it is stopped and disabled, its data "
                "stay in /var/lib/redis. To keep it running, set another port in /etc/redis/redis.conf.",
            )

    def redis_files(self) -> bool:
        """Return whether Debian's instance has keys on disk: an RDB file with a database, or an append-only file."""
        dump = self.path("/var/lib/redis/dump.rdb")
        selects = re.compile(rb"\xfe[\x00-\x40]\xfb")
        return (dump.exists() and bool(selects.search(dump.read_bytes()[:4096]))) or any(
            file.stat().st_size for file in self.paths("/var/lib/redis/appendonlydir/*.incr.aof")
        )

    def supervisor(self) -> Iterator[Finding]:
        ours = re.compile(re.escape(self.name) + r"[-@.]")
        files = [path for path in self.paths("/etc/supervisor/conf.d/*.conf") if not ours.match(path.name)]
        marks = self.paths(f"/etc/systemd/system/supervisor.service.d/{self.name}-supervisor.conf")
        if files and not marks:
            yield (
                "supervisor",
                f"Supervisor has the programs of {some(map(self.shown, files))}: they stay, and get the sandbox of "
                "supervisord when it restarts.",
            )

    # -- ports

    def listeners(self) -> Iterator[Finding]:
        """Yield processes that listen on ports which services of ours need."""
        service_of = {"http": "nginx", "https": "nginx", "broker": "redis", "cache": "redis"}
        # The names of processes, of which the kernel keeps 15 characters.
        expected = {"http": "nginx", "https": "nginx", "postgresql": "postgres", "node_exporter": "prometheus-node"}
        if self.redis_port:
            expected |= {
                name: "redis-server" for name in ("broker", "cache") if self.ports.get(name) == self.redis_port
            }
        sockets = self.listening()
        owners = self.owners({inode for inodes in sockets.values() for inode in inodes})
        for name, port in self.ports.items():
            if port not in sockets or self.is_ours(service_of.get(name, name)):
                continue
            processes = sorted({owners.get(inode, "an unknown process") for inode in sockets[port]})
            for process in processes:
                if process.partition(" ")[0] != expected.get(name):
                    yield (
                        "",
                        f"{process} listens on port {port}, which Seedbed needs. Stop it, or move it to another port.",
                    )

    def listening(self) -> dict[int, set[str]]:
        """Return the sockets that listen for TCP, by port."""
        found: dict[int, set[str]] = {}
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for words in (line.split() for line in self.read(table).splitlines()[1:]):
                if len(words) > 9 and words[3] == LISTEN:
                    found.setdefault(int(words[1].rpartition(":")[2], 16), set()).add(words[9])
        return found

    def owners(self, inodes: set[str]) -> dict[str, str]:
        """Return the process of each socket, with its ID and unit. Of several, the one that started first."""
        found: dict[str, str] = {}
        for process in sorted(self.paths("/proc/[0-9]*"), key=lambda path: -int(path.name)):
            for inode in inodes & set(self.sockets(process)):
                unit = re.search(r"/([^/]+\.service)\b", self.read(process / "cgroup"))
                about = f"process {process.name}" + (f", {unit[1]}" if unit else "")
                found[inode] = f"{self.read(process / 'comm').strip()} ({about})"
        return found

    def sockets(self, process: Path) -> Iterator[str]:
        """Yield the sockets of a process, as far as it still runs."""
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(link.readlink()).removeprefix("socket:[").removesuffix("]")

    # -- firewall

    def firewall(self) -> Iterator[Finding]:
        if rules := self.other_ufw_rules():
            yield (
                "firewall",
                f"ufw has rules that are removed: {some(rules)}. To keep them, write them into app_firewall_rules.",
            )
        rules = []
        for command in ("iptables", "ip6tables"):
            lines = run(f"{command}-save", "-t", "filter").splitlines()
            found = [line for line in lines if line.startswith("-A") and not MANAGED_CHAINS.search(line)]
            closing = list(self.closing_rules(found))
            rules += [line for line in found if line not in closing]
            for line in closing:
                yield (
                    "",
                    f"{command} closes the ports of the site before ufw can open them ({line}). Remove the rule where "
                    f"it is made, such as /etc/iptables/rules.v4, and type: {command} -D {line.removeprefix('-A ')}",
                )
        if rules:
            yield (
                "firewall",
                f"iptables has rules that are not ufw's: {some(rules, 3)}. They stay, before those of ufw.",
            )
        tables = [line for line in run("nft", "list", "tables").splitlines() if not MANAGED_TABLES.match(line.strip())]
        if tables:
            yield "firewall", f"nftables has tables that are not ufw's: {some(tables)}. They stay, beside ufw."
        if self.paths("/etc/systemd/system/*.wants/nftables.service"):
            yield "firewall", "nftables.service is enabled: at boot /etc/nftables.conf may remove the rules of ufw."
        if self.paths("/etc/iptables/rules.v[46]"):
            yield (
                "firewall",
                "iptables-persistent has rules in /etc/iptables: apt removes that package, as ufw conflicts with it.",
            )
        if self.paths("/etc/systemd/system/*.wants/firewalld.service"):
            yield "", "firewalld is enabled, and Seedbed uses ufw. Type: systemctl disable --now firewalld"

    def closing_rules(self, rules: list[str]) -> Iterator[str]:
        """Yield rules that reject every connection, unless rules before them accept those to the site."""
        needed = {str(self.ports[name]) for name in ("http", "https") if name in self.ports}
        accepted: set[str] = set()
        for line in (rule for rule in rules if rule.startswith("-A INPUT ")):
            if line.endswith("-j ACCEPT"):
                accepted |= {port for ports in re.findall(r"--dports? (\S+)", line) for port in ports.split(",")}
            condition = re.sub(
                r'-m comment --comment (".*?"|\S+)|-i (?!lo )\S+|-p tcp|-m tcp|--reject-with \S+', "", line
            )
            if re.fullmatch(r"-A INPUT\s+-j ACCEPT\s*", condition) and not re.search(r"-i |-p ", line):
                # Every connection: no rule after it has an effect.
                return
            if re.fullmatch(r"-A INPUT\s+-j (REJECT|DROP)\s*", condition) and not needed <= accepted:
                yield line

    def other_ufw_rules(self) -> list[str]:
        """Return the rules that Seedbed would remove, except those for SSH and for ports that it opens."""
        if not self.path("/usr/sbin/ufw").exists():
            return []
        profiles = {"openssh", "ssh", "nginx full", "nginx http", "nginx https", "www full", "http", "https"}
        ports = {22, self.ssh_port, 80, 443}
        found = []
        for line in run("ufw", "show", "added").splitlines():
            if not line.startswith("ufw ") or (rule := line.removeprefix("ufw ")) in self.rules:
                continue
            match = re.match(
                r"(?:allow|limit) (?:in )?(?:on \S+ )?(?:to any port )?'?([^/' ]+(?: [A-Za-z]+)?)'?"
                r"(?:/tcp| proto tcp)?(?: comment .*)?$",
                rule,
            )
            opened = match[1].lower() if match else ""
            numbers = [int(word) for word in opened.split(",") if word.isdigit()]
            if opened not in profiles and not (numbers and set(numbers) <= ports):
                found.append(rule)
        return found

    def containers(self) -> Iterator[Finding]:
        if number := len(self.paths("/var/lib/docker/containers/*")):
            yield "docker", f"Docker has {count(number, 'container')}: ufw does not filter the ports that they publish."


def main() -> dict[str, Any]:
    host = Host(json.load(sys.stdin))
    default = host.path("/etc/nginx/sites-enabled/default")
    return {
        "findings": [{"name": name, "text": text} for name, text in host.findings()],
        "former_cluster": host.former_cluster,
        "nginx_default_ports": host.nginx_default_ports(),
        "nginx_default_site_edited": default.exists() and host.is_edited(default),
        "redis_server_port": host.redis_port,
    }


if __name__ == "__main__":
    print(json.dumps(main()))
