"""Groups of the inventory, managed services, and the addresses at which hosts reach each other."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from .problems import APP, Installation, Problem, quoted

URL_SCHEMES = {
    "app_database_url": ["postgresql", "postgres"],
    "app_database_owner_url": ["postgresql", "postgres"],
    "app_broker_url": ["redis", "rediss"],
    "app_cache_url": ["redis", "rediss"],
}
PROXY = r"http://[\w.\[\]:-]+:\d+/?"
MANAGED = {"database": ["app_database_url"], "broker": ["app_broker_url", "app_cache_url"]}


def check_urls(here: Installation) -> Iterator[Problem]:
    for name, schemes in URL_SCHEMES.items():
        if here.values[name] and not re.match(f"({'|'.join(schemes)})://", here.values[name]):
            yield Problem(name, f"must be empty or a URL that begins with {schemes[0]}:// or {schemes[1]}://.")
    if here.values["app_database_owner_url"] and not here.values["app_database_url"]:
        yield Problem("app_database_owner_url", "is set, but app_database_url is empty. Set both, or neither.")


def check_proxy(here: Installation) -> Iterator[Problem]:
    """Every user of the server can read the proxy's URL, so it contains no password."""
    url = here.values["app_http_proxy"]
    if url and not re.fullmatch(PROXY, url):
        yield Problem(
            "app_http_proxy", f"must be empty or match ^{PROXY}$ (no user, no password); it is {quoted(url)}."
        )
    for name in here.values["app_no_proxy"]:
        if not re.fullmatch(r"[\w.:/*-]+", name):
            yield Problem(
                "app_no_proxy", f"contains {quoted(name)}; write a name, a domain such as .example.org or an address."
            )
    if here.values["app_no_proxy"] and not url:
        yield Problem("app_no_proxy", "is set, but app_http_proxy is empty. Set both, or only the latter.")


def check_groups(here: Installation) -> Iterator[Problem]:
    """Each service runs on a host of its group, or is managed elsewhere and has a URL."""
    for name in here.hosts:
        if name not in here.groups.get("all", []):
            yield Problem("app_hosts", f"names {name}, which {here.inventory} does not have.", here.inventory)
    for group in ("web", "worker"):
        if not here.members(group):
            yield group_problem(here, group, "must have at least one host; it has none.")
    schedulers = here.members("scheduler")
    if len(schedulers) != 1:
        found = ", ".join(schedulers) or "none"
        yield group_problem(
            here, "scheduler", f"must have exactly one host, since beat must run only once; it has {found}."
        )
    for group, names in MANAGED.items():
        found, given = here.members(group), all(here.values[name] for name in names)
        if given and found:
            yield group_problem(here, group, f"must be empty, since {' and '.join(names)} name other servers.")
        elif not given and len(found) != 1:
            yield group_problem(
                here,
                group,
                f"must have one host; it has {', '.join(found) or 'none'}. For a managed service leave the group empty "
                f"and set {' and '.join(names)} in {APP}.",
            )


def group_problem(here: Installation, group: str, sentence: str) -> Problem:
    return Problem(f"group {group}", sentence, here.inventory)


def check_private_address(here: Installation) -> Iterator[Problem]:
    """Firewall, PostgreSQL and Redis take no names, and URLs no IPv6 address without brackets."""
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
