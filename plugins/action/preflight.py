"""Ansible action: compare the settings with what can work, and say in whole sentences what to edit, and where.

It runs on the control machine alone: no host is contacted. The first half knows nothing of Ansible.
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase

try:  # where a value was written; Ansible's own messages use it, but it is not a public interface
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

APP = "group_vars/all/app.yml"
VAULT = "group_vars/all/vault.yml"
WIRING = "group_vars/all/wiring.yml"
SECRETS = "group_vars/all/secrets.yml"

# Users, a database and units get the application's name; these exist already. (Flower's user of Redis is `flower`.)
TAKEN = {
    *("root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "backup", "list"),
    *("irc", "nobody", "sshd", "messagebus", "polkitd", "postgres", "template0", "template1", "redis", "nginx"),
    *("ssh", "cron", "dbus", "flower", "operator", "default"),
}

SERVICE_PORTS = {80: "nginx", 443: "nginx", 5432: "PostgreSQL", 5555: "Flower", 6379: "Redis", 6380: "Redis"}

# Worked out from the facts of the host, which are not there yet.
NEEDS_FACTS = "app_memory_mb"

LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = rf"{LABEL}(\.{LABEL})*"
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
KINDS = {
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "list": "a list",
    "dict": "a list of names and values",
}


@dataclass
class Installation:
    """What the checks look at. `values` holds the settings that could be worked out."""

    values: dict[str, Any]
    spec: dict[str, dict[str, Any]]
    project: Path
    inventory: str = "the inventory"
    groups: dict[str, list[str]] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    # The text of a file on this machine, also of one that ansible-vault has encrypted.
    read: Callable[[str], str] = lambda path: Path(path).read_text()

    def members(self, group: str) -> list[str]:
        """The hosts of this installation in a group."""
        return [host for host in self.groups.get(group, []) if host in self.hosts]


@dataclass(frozen=True)
class Problem:
    """A setting, the part of it, and a sentence; `file` says where to edit it when it is written nowhere yet."""

    name: str
    sentence: str
    file: str = APP
    part: str = ""


# --- Types: by the spec in meta/argument_specs.yml ----------------------------------------------------


def quoted(value: Any) -> str:
    """A value as a message shows it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def has_type(value: Any, kind: str) -> bool:
    """Whether a value is of a type; a number may also be text, as -e and some templates give it."""
    if kind == "int":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, str) and re.fullmatch(r"-?\d+", value) is not None
        )
    return isinstance(value, {"str": str, "bool": bool, "list": list, "dict": Mapping}[kind])


def type_problems(value: Any, spec: Mapping[str, Any], part: str = "") -> Iterator[tuple[str, str]]:
    """What is wrong with the form of a value, down to the entries of a list or a dict: which part, and a sentence."""
    if not has_type(value, spec["type"]):
        yield part, type_sentence(value, spec)
        return
    if spec.get("choices") and value not in spec["choices"]:
        yield part, f"must be {one_of(spec['choices'])}; it is {quoted(value)}."
    if spec["type"] == "list":
        for position, entry in enumerate(value, start=1):
            name = entry.get("name", position) if isinstance(entry, Mapping) else position
            yield from type_problems(entry, {**spec, "type": spec["elements"]}, f"{part}.{name}")
    if spec["type"] == "dict" and "options" in spec:
        yield from option_problems(value, spec["options"], part)


def option_problems(value: Mapping[str, Any], options: Mapping[str, Any], part: str) -> Iterator[tuple[str, str]]:
    for name in value:
        if name not in options:
            yield f"{part}.{name}", f"is not a setting; there are {', '.join(options)}."
    for name, spec in options.items():
        if name in value:
            yield from type_problems(value[name], spec, f"{part}.{name}")
        elif spec.get("required"):
            yield f"{part}.{name}", "is missing."


def type_sentence(value: Any, spec: Mapping[str, Any]) -> str:
    if value is None:
        return f"must be {KINDS[spec['type']]}; it is empty." + (
            ' (Empty text is "".)' if spec["type"] == "str" else ""
        )
    shown = "something else" if spec.get("no_log") else quoted(value)
    if spec["type"] == "str" and isinstance(value, bool | int | float):
        kind = KINDS["bool"] if isinstance(value, bool) else "a number"
        return f"must be text; YAML reads {shown} as {kind}. Put it in quotes."
    if spec["type"] == "bool" and isinstance(value, str):
        return (
            f"must be true or false, without quotes; it is the text {shown}. (With -e, write -e '{{\"NAME\": true}}'.)"
        )
    return f"must be {KINDS[spec['type']]}; it is {shown}."


def one_of(choices: list[str]) -> str:
    return quoted(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(quoted, choices))}"


# --- Sense: one function a topic, yielding problems ----------------------------------------------------

Values = Mapping[str, Any]


def like(name: str, pattern: str, wanted: str) -> Callable[[Installation], Iterator[Problem]]:
    """A check that a text matches a pattern as a whole."""

    def check(here: Installation) -> Iterator[Problem]:
        value = here.values[name]
        if not re.fullmatch(pattern, value):
            yield Problem(name, f"must be {wanted}; it is {quoted(value)}.")

    return check


def check_name(here: Installation) -> Iterator[Problem]:
    name = here.values["app_name"]
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,23}", name):
        yield Problem(
            "app_name",
            f'must begin with a small letter and hold at most 24 small letters, digits and "_"; it is {quoted(name)}.',
        )
    elif name in TAKEN or name.startswith("pg_"):
        yield Problem("app_name", f"must not be {quoted(name)}: the system or a service has a user of that name.")


def is_git_url(source: str) -> bool:
    """As release_archive decides it."""
    return "://" in source or (":" in source and "@" in source.partition(":")[0]) or source.endswith(".git")


def inside(path: str) -> bool:
    """Whether a path stays inside the folder it starts from, and can stand in a unit file."""
    return (
        re.fullmatch(r"[\w./-]*", path, re.ASCII) is not None
        and not path.startswith("/")
        and ".." not in path.split("/")
    )


def check_source(here: Installation) -> Iterator[Problem]:
    source, version, directory, requirements = (
        here.values[name] for name in ("app_source", "app_git_ref", "app_project_dir", "app_requirements")
    )
    places = {"app_project_dir": directory, "app_requirements": requirements}
    for name, path in places.items():
        if not inside(path):
            yield Problem(
                name,
                f"must be a path inside the project, of letters, digits and ._/- only; it is {quoted(path)}.",
            )
    if not requirements:
        yield Problem("app_requirements", "must name the project's requirements file or its uv.lock; it is empty.")
    if is_git_url(source):
        return
    folder = here.project / source
    if version:
        yield Problem(
            "app_git_ref",
            f"is {quoted(version)}, but app_source is a folder, which has no versions. Empty it, or give a git URL.",
        )
    if not source:
        yield Problem("app_source", "must name the project's folder or git URL; it is empty.")
    elif not folder.is_dir():
        yield Problem("app_source", f"names the folder {folder}, which does not exist.")
    elif not (folder / directory / "manage.py").is_file():
        yield Problem("app_project_dir", f"must name the folder of manage.py; {folder / directory} has none.")
    if folder.is_dir() and requirements and not (folder / requirements).is_file():
        yield Problem("app_requirements", f"names {requirements}, which {folder} does not have.")


def check_time_zone(here: Installation) -> Iterator[Problem]:
    zone = here.values["app_time_zone"]
    if not time_zone_exists(zone) and time_zone_exists("UTC"):
        yield Problem("app_time_zone", f"must be a time zone such as Europe/Berlin or UTC; there is no {quoted(zone)}.")


def time_zone_exists(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def check_environment(name: str) -> Callable[[Installation], Iterator[Problem]]:
    def check(here: Installation) -> Iterator[Problem]:
        for key, value in here.values[name].items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
                yield Problem(name, 'cannot name an environment variable (letters, digits and "_").', part=f".{key}")
            elif isinstance(value, bool):
                yield Problem(name, f'must be in quotes: YAML would hand it on as "{value}".', part=f".{key}")
            elif not isinstance(value, str | int | float) or not one_line(str(value)):
                yield Problem(name, 'must be one line of text or a number. (Empty text is "".)', part=f".{key}")

    return check


def one_line(text: str) -> bool:
    return not re.search(r"[\n\r\0]", text)


def check_mail(here: Installation) -> Iterator[Problem]:
    if here.values["app_email_url"] and not re.match(r"[a-z+]+:", here.values["app_email_url"]):
        yield Problem("app_email_url", "must be empty or a URL such as smtp://user:password@host:587/?tls=true.")
    addresses = ["app_email_from"] + (["app_admin_email"] if here.values["app_admin_user"] else [])
    for name in addresses:
        if not re.fullmatch(r"[^\n\r]*[^\s@]+@[^\s@]+", here.values[name]):
            yield Problem(name, f"must be a mail address; it is {quoted(here.values[name])}.")


def check_numbers(here: Installation) -> Iterator[Problem]:
    if not 1 <= int(here.values["app_https_port"]) <= 65535:
        yield Problem("app_https_port", f"must be a port, from 1 to 65535; it is {here.values['app_https_port']}.")
    if int(here.values["app_hsts_seconds"]) < 0:
        yield Problem("app_hsts_seconds", f"must be 0 or more (seconds); it is {here.values['app_hsts_seconds']}.")
    if int(here.values["app_health_check_timeout"]) < 1:
        yield Problem("app_health_check_timeout", f"must be at least 1 (seconds); it is {here.values['app_health_check_timeout']}.")
    if int(here.values["app_keep_releases"]) < 1:
        keep = here.values["app_keep_releases"]
        yield Problem("app_keep_releases", f"must be at least 1, the one that serves; it is {keep}.")
    for name, value in here.values["app_web"].items():
        least = 64 if name == "memory_mb" else 1
        if int(value) < least:
            yield Problem("app_web", f"must be at least {least}; it is {value}.", part=f".{name}")


def check_memory(here: Installation) -> Iterator[Problem]:
    if int(here.values[NEEDS_FACTS]) < 256:
        yield Problem(NEEDS_FACTS, f"must be at least 256, in megabytes; it is {here.values[NEEDS_FACTS]}.")


def check_workers(here: Installation) -> Iterator[Problem]:
    workers = here.values["app_workers"]
    names = [worker["name"] for worker in workers]
    if not workers:
        yield Problem("app_workers", "must list at least one worker; it is empty.")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("app_workers", f"has more than one worker called {name}; each needs a name of its own.")
    for worker in workers:
        for part, sentence in worker_problems(worker):
            yield Problem("app_workers", sentence, part=f".{worker['name']}{part}")


def worker_problems(worker: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", worker["name"]):
        yield "", 'must be called by small letters, digits and "_", a letter first.'
    if not worker["queues"]:
        yield ".queues", "is empty, so this worker would never get a task."
    for queue in worker["queues"]:
        if not re.fullmatch(r"[\w.-]+", queue, re.ASCII):
            yield ".queues", f'holds {quoted(queue)}; a queue is called by letters, digits, ".", "-" and "_".'
    for number, least in {"concurrency": 1, "stop_timeout": 0, "memory_mb": 64}.items():
        if int(worker.get(number, least)) < least:
            yield f".{number}", f"must be at least {least}; it is {worker[number]}."


def check_sandbox(here: Installation) -> Iterator[Problem]:
    for path in here.values["app_sandbox"]["read_write_paths"]:
        if not re.fullmatch(r"/[\w./-]+", path, re.ASCII) or ".." in path.split("/"):
            yield Problem("app_sandbox", f"holds {quoted(path)}; write a folder's whole path.", part=".read_write_paths")
    for address in here.values["app_sandbox"]["egress_allow"]:
        if sentence := address_sentence(address):
            yield Problem("app_sandbox", f"holds {quoted(address)}; {sentence}", part=".egress_allow")
    if here.values["app_sandbox"]["egress_allow"] and here.values["app_process_manager"] != "systemd":
        sentence = (
            "is for systemd, which confines each process by itself: empty it, or set app_process_manager to systemd."
        )
        yield Problem("app_sandbox", sentence, part=".egress_allow")


def check_visitor_limits(here: Installation) -> Iterator[Problem]:
    for name, value in here.values["app_rate_limit"].items():
        if int(value) < 0:
            yield Problem("app_rate_limit", f"must be at least 0 (no limit); it is {value}.", part=f".{name}")


def check_maintenance(here: Installation) -> Iterator[Problem]:
    for address in here.values["app_maintenance_addresses"]:
        if sentence := address_sentence(address):
            yield Problem("app_maintenance_addresses", f"holds {quoted(address)}; {sentence}")
    for path in here.values["app_maintenance_paths"]:
        if not re.fullmatch(r"/[^\s\"'\\?]*", path):
            yield Problem("app_maintenance_paths", f"holds {quoted(path)}; write a path such as /readyz/.")


def address_sentence(address: str) -> str:
    """What is wrong with an address or network as nginx takes it; "" when nothing is."""
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        network = None
    if network is None or not re.fullmatch(r"[0-9A-Fa-f.:]+(/\d+)?", address, re.ASCII):
        return "write an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8:1::/48."
    if "/" in address and str(network.network_address) != str(ipaddress.ip_address(address.partition("/")[0])):
        return f"the network is {network}."
    return ""


def check_access(here: Installation) -> Iterator[Problem]:
    administrators = here.values["app_administrators"]
    names = [each["name"] for each in administrators]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("app_administrators", f"has more than one administrator called {name}.")
    for each in administrators:
        name, keys = each["name"], each["keys"]
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
            yield Problem(
                "app_administrators",
                'must be called by at most 32 small letters, digits, "-" and "_", a letter first.',
                part=f".{name}",
            )
        elif name in TAKEN or name in (here.values["app_name"], f"{here.values['app_name']}_owner"):
            yield Problem("app_administrators", "is a user of the system or of the application.", part=f".{name}")
        if not keys:
            yield Problem("app_administrators", "is empty: nobody could log in.", part=f".{name}.keys")
        for key in keys:
            if sentence := key_sentence(key):
                yield Problem("app_administrators", sentence, part=f".{name}.keys")


def key_sentence(key: str) -> str:
    """What is wrong with a public key for SSH; "" when nothing is. It is not repeated: it may be a private one."""
    if "PRIVATE KEY" in key:
        return "holds a private key! Give the public one, the file that ends in .pub; make a new pair if others saw it."
    form = r"(?P<type>(sk-)?(ssh|ecdsa)-[\w@.-]+) (?P<blob>AAAA[A-Za-z0-9+/]+={0,3})( [^\n\r]*)?"
    shape = re.fullmatch(form, key.strip())
    if not shape:
        return "holds what is no public key: write one line, as ssh-keygen put it into a file that ends in .pub."
    try:
        blob = base64.b64decode(shape["blob"], validate=True)
    except ValueError:
        blob = b""
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != shape["type"].encode() or len(blob) < length + 36:
        return "holds a key that is not whole: copy all of the line of the file that ends in .pub."
    if shape["type"] == "ssh-dss":
        return "holds a key of the type ssh-dss, which sshd refuses; make one by ssh-keygen -t ed25519."
    return ""


def check_ssh_port(here: Installation) -> Iterator[Problem]:
    port = int(here.values["app_ssh_port"])
    if not 1 <= port <= 65535:
        yield Problem("app_ssh_port", f"must be a port, from 1 to 65535; it is {port}.")
    elif port in SERVICE_PORTS:
        yield Problem("app_ssh_port", f"must not be {port}: {SERVICE_PORTS[port]} listens there.")


def check_trusted(here: Installation) -> Iterator[Problem]:
    for address in here.values["app_trusted_addresses"]:
        if sentence := address_sentence(address):
            yield Problem("app_trusted_addresses", f"holds {quoted(address)}; {sentence}")


def check_firewall(here: Installation) -> Iterator[Problem]:
    # What denies would come too late: the first rule that fits counts, and those that allow are there already.
    for rule in here.values["app_firewall_rules"]:
        if not re.fullmatch(r"(allow|limit)( [\w./:,+-]+)+", rule):
            yield Problem("app_firewall_rules", f'holds {quoted(rule)}; write a rule of ufw, such as "allow 25/tcp".')


def check_urls(here: Installation) -> Iterator[Problem]:
    forms = {
        "app_database_url": "postgres(ql)?://",
        "app_database_owner_url": "postgres(ql)?://",
        "app_broker_url": "rediss?://",
        "app_cache_url": "rediss?://",
    }
    for name, form in forms.items():
        if here.values[name] and not re.match(form, here.values[name]):
            begin = "postgresql://" if "postgres" in form else "redis:// or rediss://"
            yield Problem(name, f"must be empty or a URL that begins with {begin}.")
    if here.values["app_database_owner_url"] and not here.values["app_database_url"]:
        yield Problem("app_database_owner_url", "is set, but app_database_url is empty; set both, or neither.")


def check_hosts(here: Installation) -> Iterator[Problem]:
    """Who is in which group; a service is on a host of the inventory, or somebody else's by its URL."""
    for name in here.hosts:
        if name not in here.groups.get("all", []):
            yield Problem("app_hosts", f"names {name}, which {here.inventory} does not have.", here.inventory)
    for group in ("web", "worker"):
        if not here.members(group):
            yield Problem(group, "must be a group of at least one host; it has none.", here.inventory)
    schedulers = here.members("scheduler")
    if len(schedulers) != 1:
        found = ", ".join(schedulers) or "none"
        yield Problem(
            "scheduler",
            f"must be a group of exactly one host, since beat must run only once; it has {found}.",
            here.inventory,
        )
    urls = {"database": ["app_database_url"], "broker": ["app_broker_url", "app_cache_url"]}
    for group, names in urls.items():
        found, given = here.members(group), all(here.values[name] for name in names)
        if given and found:
            yield Problem(
                group, f"must be an empty group, since {' and '.join(names)} name other servers.", here.inventory
            )
        elif not given and len(found) != 1:
            yield Problem(
                group,
                f"must be a group of one host; it has {', '.join(found) or 'none'}. "
                f"For somebody else's server, empty it and set {' and '.join(names)} in {APP}.",
                here.inventory,
            )


def check_private_address(here: Installation) -> Iterator[Problem]:
    """Firewall, PostgreSQL and Redis take no name, and URLs no bare address of IPv6."""
    address = here.values.get("app_private_address")
    if address is None or len(here.hosts) < 2:
        return
    try:
        ipaddress.IPv4Address(str(address))
    except ValueError:
        yield Problem(
            "app_private_address",
            f"must be the IPv4 address at which the other hosts reach this one, such as 10.0.0.11; it is "
            f"{quoted(address)}. Set it for each host in {here.inventory}.",
            here.inventory,
        )


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_more_domains(here: Installation) -> Iterator[Problem]:
    names = here.values["app_domain_aliases"]
    for name in names:
        if not re.fullmatch(DOMAIN, name):
            yield Problem("app_domain_aliases", f"holds {quoted(name)}; write a plain name such as www.example.org.")
    for name in sorted({name for name in names if [here.values["app_domain"], *names].count(name) > 1}):
        yield Problem("app_domain_aliases", f"holds {quoted(name)}, which is named already.")


def check_acme(here: Installation) -> Iterator[Problem]:
    email, server = here.values["app_certificate_email"], here.values["app_acme_directory_url"]
    if not re.fullmatch(r"https://[^\s/]+/\S*", server):
        yield Problem("app_acme_directory_url", f"must be a URL that begins with https://; it is {quoted(server)}.")
    elif not email and server != LETS_ENCRYPT:
        yield Problem(
            "app_acme_directory_url", "names a server to ask, but app_certificate_email is empty. Set it too."
        )
    if not email:
        return
    if not re.fullmatch(r"[^\s@,]+@[^\s@,]+\.[^\s@,]+", email):
        yield Problem("app_certificate_email", f"must be empty or a mail address; it is {quoted(email)}.")
    for name, part in named_domains(here):
        if is_address(name) or "." not in name:
            yield Problem(
                part,
                f"is {quoted(name)}, for which no CA gives a certificate: write a name of the DNS such as "
                "shop.example.org, or empty app_certificate_email.",
            )
    if len(here.members("web")) > 1:
        yield Problem(
            "app_certificate_email",
            "is set, but a CA asks only one of several web servers. Empty it, and give a certificate of your own "
            "in app_certificate_files.",
        )


def named_domains(here: Installation) -> Iterator[tuple[str, str]]:
    """Every name of the site, and the setting that has it."""
    yield here.values["app_domain"], "app_domain"
    for name in here.values["app_domain_aliases"]:
        yield name, "app_domain_aliases"


def check_certificate_files(here: Installation) -> Iterator[Problem]:
    """The operator's own certificate: a server must never meet one that browsers refuse."""
    given = here.values["app_certificate_files"]
    if not given:
        return
    if here.values["app_certificate_email"]:
        yield Problem("app_certificate_files", "is set, and app_certificate_email too; empty one of them.")
        return
    texts = {}
    for part in ("certificate", "key"):
        if not given.get(part):
            yield Problem("app_certificate_files", "is missing: name the file.", part=f".{part}")
            continue
        try:
            texts[part] = here.read(given[part])
        except (AnsibleError, OSError, UnicodeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            yield Problem("app_certificate_files", f"cannot be read from {given[part]}: {reason}.", part=f".{part}")
    if len(texts) == 2:
        domains = [name for name, _ in named_domains(here)]
        for part, sentence in pem_problems(texts["certificate"], texts["key"], domains, datetime.now(UTC)):
            yield Problem("app_certificate_files", f"({given[part]}) {sentence}", part=f".{part}")


def pem_problems(chain: str, key: str, domains: list[str], now: datetime) -> Iterator[tuple[str, str]]:
    """What is wrong with a certificate and its chain, or with its key, for a site of these names."""
    # Not needed by most, and slow to load.
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        yield "certificate", "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)."
        return
    site = certificates[0]
    try:
        private = load_pem_private_key(key.encode(), None)
    except TypeError:
        yield (
            "key",
            "is encrypted by a passphrase, which nobody types when the server starts: remove it by `openssl pkey`.",
        )
    except (ValueError, UnsupportedAlgorithm):
        yield "key", "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)."
    else:
        if private.public_key() != site.public_key():
            order = any(private.public_key() == other.public_key() for other in certificates[1:])
            reason = (
                "has the site's certificate after its chain; put it first."
                if order
                else "is not the certificate of the key."
            )
            yield "certificate", reason
            if order:
                return
    for certificate in certificates:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        whose = "" if certificate is site else f", in its chain {certificate.subject.rfc4514_string()},"
        if ends <= now:
            yield "certificate", f"has expired{whose} on {ends:%Y-%m-%d %H:%M} UTC. Get a new one."
        if begins > now:
            yield (
                "certificate",
                f"is not valid yet{whose} before {begins:%Y-%m-%d %H:%M} UTC. Wait, or set the clock right.",
            )
    names = certificate_names(site)
    missing = [name for name in domains if not {name.lower(), "*." + name.lower().partition(".")[2]} & names]
    if missing:
        yield "certificate", f"is for {', '.join(sorted(names)) or 'no name'}, and not for {', '.join(missing)}."
    for issued, issuer in pairwise(certificates):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            yield (
                "certificate",
                f"has its chain in the wrong order: {issuer.subject.rfc4514_string()} did not issue "
                f"{issued.subject.rfc4514_string()}. Each is followed by the one that issued it.",
            )


def certificate_names(certificate: Any) -> set[str]:
    """The names and addresses that a certificate is for."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.get_values_for_type(x509.DNSName)} | {
        str(address) for address in found.get_values_for_type(x509.IPAddress)
    }


CHECKS: dict[Callable[[Installation], Iterator[Problem]], tuple[str, ...]] = {
    check_name: ("app_name",),
    like(
        "app_domain",
        DOMAIN,
        "a plain name such as shop.example.org, or an address, without https://, port and path",
    ): ("app_domain",),
    check_source: ("app_source", "app_git_ref", "app_project_dir", "app_requirements"),
    like("app_settings_module", DOTTED, "a module such as core.settings"): ("app_settings_module",),
    like("app_wsgi_app", rf"{DOTTED}:{DOTTED}", "a module and a callable, such as core.wsgi:application"): ("app_wsgi_app",),
    like("app_celery_app", rf"{DOTTED}(:{DOTTED})?", "a module, such as core or core.celery:app"): ("app_celery_app",),
    like("app_python", r"python3|\d+\.\d+(\.\d+)?", 'python3 or a version such as "3.12"'): ("app_python",),
    like("app_health_path", r"/[^\s\"'\\]*", "a path such as /healthz/"): ("app_health_path",),
    like("app_admin_user", r"[\w.@+-]{0,150}", 'a user name of letters, digits and ".@+-_", or empty'): (
        "app_admin_user",
    ),
    check_time_zone: ("app_time_zone",),
    check_environment("app_environment"): ("app_environment",),
    check_environment("app_migration_environment"): ("app_migration_environment",),
    check_mail: ("app_domain", "app_email_url", "app_email_from", "app_admin_user", "app_admin_email"),
    check_numbers: ("app_https_port", "app_web", "app_keep_releases", "app_health_check_timeout", "app_hsts_seconds"),
    check_memory: (NEEDS_FACTS,),
    check_workers: ("app_workers",),
    check_sandbox: ("app_sandbox", "app_process_manager"),
    like("app_max_upload", r"[1-9]\d*[mg]", 'megabytes or gigabytes, such as "10m" or "2g"'): ("app_max_upload",),
    check_visitor_limits: ("app_rate_limit",),
    check_maintenance: ("app_maintenance_addresses", "app_maintenance_paths"),
    check_access: ("app_administrators", "app_name"),
    check_ssh_port: ("app_ssh_port",),
    check_trusted: ("app_trusted_addresses",),
    check_firewall: ("app_firewall_rules",),
    check_more_domains: ("app_domain", "app_domain_aliases"),
    check_acme: ("app_domain", "app_domain_aliases", "app_certificate_email", "app_acme_directory_url"),
    check_certificate_files: ("app_domain", "app_domain_aliases", "app_certificate_email", "app_certificate_files"),
    check_urls: ("app_database_url", "app_database_owner_url", "app_broker_url", "app_cache_url"),
    check_hosts: ("app_database_url", "app_broker_url", "app_cache_url"),
    check_private_address: (),
}


def setting_problems(here: Installation) -> Iterator[Problem]:
    """Everything that is wrong with the settings. A check runs only on settings whose types are right."""
    broken = set()
    for name, spec in here.spec.items():
        if name not in here.values:
            broken.add(name)
            continue
        for part, sentence in type_problems(here.values[name], spec):
            broken.add(name)
            yield Problem(name, sentence, part=part)
    for check, needs in CHECKS.items():
        if not broken & set(needs):
            yield from check(here)


# --- Names and secrets ---------------------------------------------------------------------------------


def name_problems(
    given: list[str], app_names: list[str], secret_names: list[str], roles: Mapping[str, list[str]]
) -> Iterator[Problem]:
    """Names that nothing reads, most likely misspelt: Ansible itself would say nothing.

    `secret_...` of one's own are welcome, unless they are nearly one of ours.
    """
    for name in given:
        prefix = name.partition("_")[0]
        if prefix == "app":
            known, closeness = app_names, 0.6
        elif prefix == "secret":
            known, closeness = secret_names, 0.9
        else:
            known, closeness = roles.get(prefix, []), 0.6
        if not known or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=closeness)
        if close or prefix != "secret":
            yield Problem(name, "is not a setting." + (f" Did you mean {close[0]}?" if close else " Is it misspelt?"))


def secret_problems(secrets: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with secrets, whose values are never shown."""
    for name, value in secrets.items():
        if not isinstance(value, str):
            yield Problem(name, "must be text: put it in quotes.", VAULT)
        elif not value.strip():
            yield Problem(name, "is empty. Give it a value, or remove the line to have one made.", VAULT)
        elif "CHANGEME" in value.upper():
            yield Problem(name, "is still CHANGEME. Give it a value, or remove the line to have one made.", VAULT)
        elif not one_line(value):
            yield Problem(name, "must be one line. (In YAML, write it in quotes, not after | or >.)", VAULT)
        elif name == "secret_flower_password" and re.search("[:,]", value):
            yield Problem(name, "must hold no colon and no comma: Flower separates by them.", VAULT)
        elif name == "secret_flower_password" and not value.isascii():
            yield Problem(name, "must hold ASCII characters only: Flower cannot compare others.", VAULT)


# --- Ansible -------------------------------------------------------------------------------------------


class ActionModule(ActionBase):
    """`preflight:` with `project`, the top of the repository."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.project = Path(self._task.args["project"])
        self.reasons: set[str] = set()
        problems = list(self.problems())
        if not problems:
            return result | {"changed": False}
        lines = [f"  {self.place(wrong)}: {wrong.name}{wrong.part} {wrong.sentence}" for wrong in problems]
        count = "one setting needs" if len(lines) == 1 else f"{len(lines)} settings need"
        return result | {"failed": True, "msg": "\n".join([f"Nothing was changed: {count} an edit.", *lines])}

    def problems(self) -> Iterator[Problem]:
        spec = self.load("roles/preflight/meta/argument_specs.yml")["argument_specs"]["settings"]["options"]
        app_names = [*spec, *self.load(WIRING), *self.load(SECRETS)]
        secret_names = [name for name in self.load(SECRETS) if name.startswith("secret_")]
        yield from name_problems(sorted(self.variables), app_names, secret_names, self.role_names())
        values: dict[str, Any] = {}
        for name, option in spec.items():
            yield from self.resolve(name, values, option.get("required", False))
        yield from self.resolve("app_private_address", values, required=False, file="the inventory")
        hosts = values.get("app_hosts")
        yield from setting_problems(
            Installation(
                values=values,
                spec=spec,
                project=self.project,
                inventory=self.shown(self.variables.get("inventory_file") or "the inventory"),
                groups=self.variables["groups"],
                hosts=hosts if isinstance(hosts, list) else self.variables["groups"]["all"],
                read=self.read,
            )
        )
        secrets: dict[str, Any] = {}
        for name in sorted(name for name in self.variables if name.startswith("secret_")):
            yield from self.resolve(name, secrets, required=True, file=VAULT)
        yield from secret_problems(secrets)

    def resolve(self, name: str, values: dict[str, Any], required: bool, file: str = APP) -> Iterator[Problem]:
        """Work a variable out and put it into `values`, or say why that cannot be done."""
        if name not in self.variables:
            if required:
                yield Problem(name, "is missing. Every setting needs its line there.", file)
            return
        if name == NEEDS_FACTS and "{{" in str(self.variables[name]):
            return
        try:
            values[name] = self._templar.template(self.variables[name])
        except AnsibleError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            if reason not in self.reasons:  # what others are made of is named once
                self.reasons.add(reason)
                yield Problem(name, f"cannot be worked out: {reason}.", file)

    def role_names(self) -> dict[str, list[str]]:
        """The variables of every role, by its prefix."""
        specs = self.project.glob("roles/*/meta/argument_specs.yml")
        found = {path.parent.parent.name: self.load(path)["argument_specs"]["main"]["options"] for path in specs}
        return {role: list(options) for role, options in found.items() if options}

    def read(self, path: str) -> str:
        return self._loader.get_text_file_contents(str(self.project / Path(path).expanduser()))

    def load(self, path: Path | str) -> Any:
        return yaml_load((self.project / path).read_text())

    def place(self, problem: Problem) -> str:
        """The file to edit: where the value is written, with its line, else where it belongs."""
        origin = Origin.get_tag(self.variables.get(problem.name)) if Origin else None
        if origin and origin.path:
            return self.shown(origin.path) + (f":{origin.line_num}" if origin.line_num else "")
        if origin and origin.description:
            return "-e" if "'-e'" in origin.description else origin.description
        # True, false and nothing do not carry the place where they were written.
        known = self.load(APP).get(problem.name, ...)
        elsewhere = problem.name in self.variables and known not in (..., self.variables[problem.name])
        return "inventory, host_vars or -e" if elsewhere else problem.file

    def shown(self, path: str) -> str:
        """A path as short as it can be, without the links that lead to it."""
        full = Path(path).resolve()
        top = self.project.resolve()
        return str(full.relative_to(top)) if full.is_relative_to(top) else str(full)
