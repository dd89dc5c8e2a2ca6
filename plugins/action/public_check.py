"""Request the site from this machine by its public address, as a visitor does, so that a closed port is seen."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: public_check
short_description: Request the site from this machine by its public address
description:
  - Connects to O(domain); where that does not resolve yet, or leads to another server, to O(address), with the name of
    the domain. The server is recognized by the fingerprint of its certificate.
  - Fails if the site cannot be reached, or does not answer O(status); during maintenance 503 is right, too.
  - A status that says "later" (429, 502, 503, 504) is requested again for O(patience) seconds.
  - An HTTP proxy of this machine (C(https_proxy)) is used where the site cannot be reached directly. If it refuses,
    nothing is proven, and the task only warns.
options:
  domain: {type: str, required: true, description: Name of the site.}
  port: {type: int, default: 443, description: Port of HTTPS as visitors see it.}
  path: {type: str, default: /, description: The page to request.}
  status: {type: int, default: 200, description: The status of its answer.}
  address: {type: str, default: "", description: "Address of the server, where the domain does not lead to it yet."}
  fingerprints: {type: list, elements: str, default: [], description: SHA-256 of the servers' certificates.}
  behind_proxy: {type: bool, default: false, description: "Does a CDN or balancer answer for the site?"}
  maintenance: {type: bool, default: false, description: "Is maintenance mode on?"}
  seconds: {type: int, default: 10, description: Seconds for one connection.}
  patience: {type: int, default: 15, description: "Seconds for an answer that does not say later."}
author: Seedbed
"""

EXAMPLES = r"""
- name: Request the site
  public_check:
    domain: shop.example.org
    address: 192.0.2.10
"""

RETURN = r"""
warnings:
  description: What was not proven, or leads to another server.
  type: list
  elements: str
"""

# Attempts to connect: a packet may be lost.
ATTEMPTS = 2
HELP = (
    "The release is live on the server. Open port {port} for everyone: in the provider's firewall (security group) and "
    "in any router in between; on the server, `ufw status` and `systemctl status nginx` show the rest. If this machine "
    "is not meant to reach the site, set app_public_check: false in group_vars/ENV/app.yml."
)


# With these a proxy in front of the server, such as a CDN, refuses what is no browser.
CHALLENGES = (403, 429)
CHALLENGED = "{url} answers {status} from the proxy in front of the server: whether the site works was not seen."

# Statuses that are retried: nginx's rate limit, an application that is busy or away.
LATER = (429, 502, 503, 504)
MAINTENANCE = 503


class Page(NamedTuple):
    """The page to request, and the statuses that are accepted."""

    domain: str
    port: int
    path: str
    accepted: tuple[int, ...]
    seconds: int
    deadline: float

    @property
    def url(self) -> str:
        return f"https://{self.domain}{'' if self.port == 443 else f':{self.port}'}{self.path}"


class Seen(NamedTuple):
    """An answer: its status, and the SHA-256 of the server's certificate."""

    status: int
    fingerprint: str


class ActionModule(ActionBase):
    """Look at the site once; changes nothing."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = documented_arguments(self, DOCUMENTATION)
        error, warnings = check(**arguments)
        result: dict[str, Any] = {"changed": False, "warnings": warnings}
        return result | ({"failed": True, "msg": error} if error else {})


def check(
    domain: str,
    port: int,
    path: str,
    status: int,
    address: str,
    fingerprints: list[str],
    behind_proxy: bool,
    maintenance: bool,
    seconds: int,
    patience: int,
) -> tuple[str, list[str]]:
    """Return why the site cannot be reached, or "", and warnings."""
    known = {one.replace(":", "").lower() for one in fingerprints}
    accepted = (status, MAINTENANCE) if maintenance else (status,)
    page = Page(domain, port, path, accepted, seconds, time.monotonic() + patience)
    warnings: list[str] = []
    resolved, here = addresses_of(domain), addresses_of(address)
    failure = "no address"
    if resolved:
        seen, failure = request(resolved, [port], page)
        if seen and (seen.fingerprint in known or not known):
            return verdict(seen, page), []
        if seen and behind_proxy and is_trusted(domain, port, seconds):
            if seen.status in CHALLENGES:
                return "", [CHALLENGED.format(url=page.url, status=seen.status)]
            return verdict(seen, page), []
        if seen:
            warnings = [
                f"{domain} leads to {', '.join(resolved)}, where another server answers: have the DNS name this "
                f"server, {address}. (If that is a proxy in front of this server, name it in app_trusted_proxies.)"
            ]
    if here and (not resolved or warnings):
        # The name does not lead here yet; a port of a router is not the server's own.
        seen, failure = request(here, list(dict.fromkeys([port, 443])), page)
        if seen:
            return verdict(seen, page), warnings
    if warnings and not here:
        # An alias of SSH as ansible_host has no address of its own.
        return "", warnings
    if not resolved and not here:
        return "", [f"The site was not requested from this machine: it finds no address of {domain} or {address}."]
    if proxy := proxy_of(domain):
        said = request_by_proxy(proxy, f"https://{domain}:{port}{path}", seconds)
        return "", warnings + ([f"The site was not requested from this machine: {failure}; {said}."] if said else [])
    place = f"{', '.join(here if warnings or not resolved else resolved)}, port {port}"
    return f"{page.url} cannot be reached from this machine ({place}: {failure}). {HELP.format(port=port)}", warnings


def verdict(seen: Seen, page: Page) -> str:
    """Return what is wrong with an answer, or ""."""
    if seen.status in page.accepted:
        return ""
    if seen.status == 429:
        return (
            f"{page.url} answers 429 to this machine: a rate limit, so it is not known whether the site works. The "
            "release is live. Add this machine's address to app_trusted_addresses, which nginx does not limit."
        )
    return (
        f"{page.url} answers {seen.status} to this machine, but {page.accepted[0]} on the release's own socket. The "
        "release is live. Look at what is in between: nginx (nginx_settings), a proxy or balancer "
        "(app_trusted_proxies). To deploy without this check: app_public_check: false in group_vars/ENV/app.yml."
    )


def addresses_of(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def request(addresses: list[str], ports: list[int], page: Page) -> tuple[Seen | None, str]:
    """Request a page until its answer does not say later; return the answer, or None and the last error."""
    while True:
        seen, failure = request_once(addresses, ports, page)
        if not seen or seen.status in page.accepted or seen.status not in LATER or time.monotonic() > page.deadline:
            return seen, failure
        time.sleep(1)


def request_once(addresses: list[str], ports: list[int], page: Page) -> tuple[Seen | None, str]:
    """Request a page from the first address that answers; return the answer, or None and the last error."""
    failure = "no address"
    for attempt in range(ATTEMPTS):
        for number in ports:
            for address in addresses:
                try:
                    with socket.create_connection((address, number), page.seconds) as connection:
                        return ask(connection, page), ""
                except (OSError, http.client.HTTPException) as error:
                    failure = str(error) or type(error).__name__
        time.sleep(0.5 if attempt + 1 < ATTEMPTS else 0)
    return None, failure


def ask(connection: socket.socket, page: Page) -> Seen:
    """Request a page over a connection. The certificate is not verified, but compared by its fingerprint."""
    with without_verification().wrap_socket(connection, server_hostname=page.domain) as tls:
        certificate = tls.getpeercert(binary_form=True) or b""
        client = http.client.HTTPConnection(page.domain)
        client.sock = tls
        host = f"[{page.domain}]" if ":" in page.domain else page.domain
        name = host if page.port == 443 else f"{host}:{page.port}"
        client.request("GET", page.path, headers={"Host": name, "User-Agent": "seedbed", "Connection": "close"})
        status = client.getresponse().status
    return Seen(status, hashlib.sha256(certificate).hexdigest())


def without_verification() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def is_trusted(domain: str, port: int, seconds: int) -> bool:
    """Return whether the certificate of the name is valid for this machine."""
    try:
        with (
            socket.create_connection((domain, port), seconds) as connection,
            ssl.create_default_context().wrap_socket(connection, server_hostname=domain),
        ):
            return True
    except OSError:
        return False


def proxy_of(domain: str) -> str:
    """Return the URL of this machine's HTTP proxy for the site, or ""."""
    if urllib.request.proxy_bypass_environment(domain):
        return ""
    return urllib.request.getproxies_environment().get("https", "")


def request_by_proxy(proxy: str, url: str, seconds: int) -> str:
    """Return what a proxy says about the site, or "" when the site answers by it."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": proxy}), urllib.request.HTTPSHandler(context=without_verification())
    )
    try:
        opener.open(url, timeout=seconds).close()
    except urllib.error.HTTPError:
        # The site's own answer; a refusal of the proxy is an OSError.
        return ""
    except (OSError, http.client.HTTPException) as error:
        return f"by the proxy {proxy.rpartition('@')[2].rpartition('/')[2]}: {getattr(error, 'reason', error)}"
    return ""
