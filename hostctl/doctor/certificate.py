"""The certificate, as nginx serves it."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from ..backup.tools import call
from . import application
from .finding import BAD, OK, WARN, Context, Finding

# Days that a certificate must last.
WARN_DAYS, BAD_DAYS = 20, 7
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
PROVISION = "ansible-playbook -i INVENTORY playbooks/provision.yml --tags certificate"


def certificate(context: Context) -> Finding | None:
    """Return who has issued the certificate that visitors get, for how long it lasts, and whether it is the file's."""
    file = context.configuration.certificate
    if not file or "web" not in context.configuration.groups:
        return None
    try:
        served = handshake(urlsplit(context.configuration.url).hostname or context.settings.domain)
    except OSError as error:
        return Finding(BAD, f"no TLS on port 443: {error}", "systemctl status nginx; nginx -t")
    issuer, expires = describe(served)
    days = (expires - context.now) / 86400
    values = {"certificate_days": round(days, 2)}
    text = f"{issuer}, {days:.0f} days"
    if days < WARN_DAYS:
        limit = BAD_DAYS if days < BAD_DAYS else WARN_DAYS
        text = f"{issuer}, {'expired' if days < 0 else f'expires in {days:.1f} days (limit {limit})'}"
        return Finding(BAD if days < BAD_DAYS else WARN, text, remedy(file), values)
    problem = differs(file, served)
    if problem:
        return Finding(
            WARN, f"{text}; {problem}", f"nginx -t && systemctl reload nginx; {PROVISION}", values, alert=True
        )
    return Finding(OK, f"{text}, served = file", values=values)


def handshake(domain: str, timeout: float = 3) -> bytes:
    """Return the certificate that nginx shows for a name, in DER. Raises OSError."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    # An expired or self-signed one is looked at, too.
    unchecked.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(application.HTTPS, timeout) as plain,
        unchecked.wrap_socket(plain, server_hostname=domain) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def describe(certificate: bytes) -> tuple[str, float]:
    """Return the issuer of a certificate, and when it expires, in seconds since 1970."""
    words = ["openssl", "x509", "-noout", "-issuer", "-subject", "-enddate", "-nameopt", "RFC2253,utf8,-esc_msb"]
    lines = call(words, seconds=3, stdin=ssl.DER_cert_to_PEM_cert(certificate)).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    if found["issuer"] == found["subject"]:
        issuer = "self-signed"
    else:
        name = re.search(r"(?:^|,)O=((?:\\.|[^,\\])+)", found["issuer"]) or re.search(
            r"CN=((?:\\.|[^,\\])+)", found["issuer"]
        )
        issuer = re.sub(r"\\(.)", r"\1", name[1]) if name else found["issuer"]
    return issuer, ssl.cert_time_to_seconds(found["notAfter"])


def differs(file: str, served: bytes) -> str:
    """Return what differs between the file and what is served, or ""."""
    try:
        found = PEM.search(Path(file).read_text())
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    if not found:
        return f"{file} has no certificate"
    return "" if ssl.PEM_cert_to_DER_cert(found[0]) == served else f"nginx does not serve the one in {file}"


def remedy(file: str) -> str:
    if "/letsencrypt/" in str(Path(file).resolve()):
        return "certbot renew; journalctl -u certbot -n 30"
    return PROVISION
