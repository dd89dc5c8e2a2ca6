"""Who may connect to this host: open ports, the firewall, and bans."""

from __future__ import annotations

import ast
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from ..backup.tools import ToolError, call
from .finding import BAD, OK, WARN, Context, Finding, plural

# The rules of site.yml in ufw's syntax; the files of ufw, and how they were when seedbed-access had applied those.
POLICY = Path("/etc/seedbed/access/firewall")
RULES = (Path("/etc/ufw/user.rules"), Path("/etc/ufw/user6.rules"))
APPLIED = Path("/var/lib/seedbed-access/firewall")
# The addresses of the host; empty or missing without IPv6.
IPV6 = Path("/proc/net/if_inet6")
# What ufw notes of each rule: action, protocol, ports, destination, source port, source, application, direction.
TUPLE = re.compile(
    r"^### tuple ### (?:allow|limit)\S* \w+ (\S+) \S+ \S+ (\S+) (?:(\S+) \S+ )?in(?:_\S+)?(?: .*)?$", re.MULTILINE
)
# A rule for everyone, in ufw's syntax.
OPENED = re.compile(r"(?:allow|limit) (?:in )?([\d,]+)(?:/tcp)?(?:\s|$)")
EVERYWHERE = ("0.0.0.0/0", "::/0")
APPLY = "ansible-playbook -i INVENTORY playbooks/provision.yml --tags access"


# --- Ports ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listener:
    """What listens on an address that others can reach."""

    port: str
    program: str


def ports(context: Context) -> Finding | None:
    """Return the ports that are open to others although no service of this host's groups needs them."""
    if not POLICY.exists():
        return None
    # The policy has what was applied last, as by --tags access: another port of SSH, for instance.
    allowed = {*context.configuration.ports, *ports_of_policy()}
    reachable = listeners()
    programs = {one.port: one.program for one in reachable}
    if strange := added_rules():
        names = [
            f"{port}{f' ({programs[port]})' if port in programs else ''} from {source}" for port, source in strange
        ]
        remedy = f"ufw status numbered; {APPLY}\n# to keep it, write it into app_firewall_rules"
        return Finding(WARN, f"open beyond what the groups allow: port {', '.join(names)}", remedy)
    # Docker publishes ports in front of ufw.
    docker = sorted({one.port for one in reachable if one.program == "docker-proxy" and one.port not in allowed})
    if docker:
        text = f"Docker publishes port {', '.join(docker)}, which ufw does not filter"
        return Finding(WARN, text, "docker ps\n# publish it as 127.0.0.1:PORT:PORT")
    others = {one.port: one for one in reachable if one.port not in allowed}
    if others and (problem := firewall_problem()):
        names = [f"{port} ({one.program})" for port, one in sorted(others.items())]
        return Finding(BAD, f"reachable, as {problem}: port {', '.join(names)}", f"ufw enable; {APPLY}")
    shown = sorted((port for port in allowed if port in programs), key=int)
    # Of these, app_firewall_rules may open some.
    others = len(programs) - len(shown)
    more = f"; {others} more {'listens' if others == 1 else 'listen'}" if others else ""
    return Finding(OK, f"open: {', '.join(shown) or 'none'}{more}")


def ports_of_policy() -> set[str]:
    """Return the ports that the policy opens to everyone, as the rule of SSH has them: allow 22/tcp."""
    return {
        port for line in POLICY.read_text().splitlines() if (rule := OPENED.match(line)) for port in rule[1].split(",")
    }


def listeners() -> list[Listener]:
    """Return what listens with TCP on other addresses than those of this host alone."""
    found = []
    for line in call(["ss", "-Hltnp"], seconds=3).splitlines():
        words = line.split()
        address, _, port = words[3].rpartition(":")
        if not is_loopback(address):
            program = re.search(r'\(\("([^"]+)"', line)
            found.append(Listener(port, program[1] if program else "?"))
    return found


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:  # *
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def added_rules() -> list[tuple[str, str]]:
    """Return what rules open that site.yml has not applied: ports or the name of an application, and from where."""
    if not APPLIED.exists():
        return []
    known = set(APPLIED.read_text().splitlines())
    found = [
        (rule[3].replace("%20", " ") if rule[3] not in (None, "-") else rule[1], rule[2])
        for path in RULES if path.exists()
        for rule in TUPLE.finditer(path.read_text()) if rule[0] not in known
    ]  # fmt: skip
    return [(opened, "anywhere" if source in EVERYWHERE else source) for opened, source in dict.fromkeys(found)]


def firewall_problem() -> str:
    """Return whether packets pass ufw's rules: also not, after its chains were flushed; "" when they do."""
    rules = call(["iptables", "-S", "INPUT"], seconds=3)
    if "-P INPUT DROP" not in rules or "-j ufw-before-input" not in rules:
        return "the firewall is off"
    if IPV6.exists() and IPV6.read_text() and "-P INPUT DROP" not in call(["ip6tables", "-S", "INPUT"], seconds=3):
        return "the firewall is off for IPv6"
    return ""


# --- Access --------------------------------------------------------------------------------------------------------


def access(context: Context) -> Finding | None:
    """Return whether the firewall and fail2ban work."""
    if not POLICY.exists():
        return None
    if problem := firewall_problem():
        return Finding(BAD, problem, f"ufw enable; ufw reload; {APPLY}")
    try:
        call(["systemctl", "--quiet", "is-active", "fail2ban"], seconds=3)
    except ToolError:
        return Finding(
            BAD,
            "fail2ban does not run: no client is banned",
            "systemctl restart fail2ban; journalctl -u fail2ban -n 20",
        )
    # The watch does not need the number.
    return Finding(OK, f"firewall on, {'fail2ban runs' if context.watches else bans()}")


def policy(context: Context) -> Finding | None:
    """Return what differs from the access policy: administrators, sshd, the firewall's rules, jails."""
    if not POLICY.exists():
        return None
    differing = call(["/usr/local/sbin/seedbed-access", "check"], seconds=7).splitlines()
    if differing:
        return Finding(WARN, f"differs from the access policy: {'; '.join(differing)}", APPLY)
    return Finding(OK, "administrators, sshd, firewall and bans as in the policy")


def bans() -> str:
    """Return how many jails fail2ban has, and how many addresses are banned."""
    try:
        jails = ast.literal_eval(call(["fail2ban-client", "banned"], seconds=3))
        banned = {address for jail in jails for addresses in jail.values() for address in addresses}
        return f"fail2ban {plural(len(jails), 'jail')}, {len(banned)} banned"
    except (ToolError, ValueError, SyntaxError, AttributeError):
        return "fail2ban runs"
