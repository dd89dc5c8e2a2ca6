"""Domains of the site, and certificates by ACME."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from .problems import Installation, Problem, quoted

LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = rf"{LABEL}(\.{LABEL})*"
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


def all_domains(here: Installation) -> Iterator[tuple[str, str]]:
    """Yield every domain of the site, and the setting that names it."""
    yield here.values["app_domain"], "app_domain"
    for name in here.values["app_domain_aliases"]:
        yield name, "app_domain_aliases"


def check_aliases(here: Installation) -> Iterator[Problem]:
    names = here.values["app_domain_aliases"]
    for name in names:
        if not re.fullmatch(DOMAIN, name):
            yield Problem("app_domain_aliases", f"contains {quoted(name)}; write a domain such as www.example.org.")
    for name in sorted({name for name in names if [here.values["app_domain"], *names].count(name) > 1}):
        yield Problem("app_domain_aliases", f"contains {quoted(name)}, which is already a domain of the site.")


def check_acme(here: Installation) -> Iterator[Problem]:
    email, server = here.values["app_certificate_email"], here.values["app_acme_directory_url"]
    if not re.fullmatch(r"https://[^\s/]+/\S*", server):
        yield Problem("app_acme_directory_url", f"must be a URL that begins with https://; it is {quoted(server)}.")
    elif not email and server != LETS_ENCRYPT:
        yield Problem("app_acme_directory_url", "is set, but app_certificate_email is empty. Set both, or neither.")
    if not email:
        return
    if not re.fullmatch(r"[^\s@,]+@[^\s@,]+\.[^\s@,]+", email):
        yield Problem("app_certificate_email", f"must be empty or an email address; it is {quoted(email)}.")
    for name, setting in all_domains(here):
        if is_address(name) or "." not in name:
            yield Problem(
                setting,
                f"is {quoted(name)}, for which no CA issues a certificate. Write a public domain such as "
                'shop.example.org, or set app_certificate_email to "".',
            )
    if len(here.members("web")) > 1:
        yield Problem(
            "app_certificate_email",
            'is set, but a CA validates only one of several web servers. Set it to "", and provide a certificate in '
            "app_certificate_files.",
        )


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
