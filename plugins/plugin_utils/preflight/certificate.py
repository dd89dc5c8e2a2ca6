"""Certificate files of the user: no server must get a certificate that browsers reject."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from ansible.errors import AnsibleError

from .domains import all_domains
from .problems import Installation, Problem


def check_certificate_files(here: Installation) -> Iterator[Problem]:
    given = here.values["app_certificate_files"]
    if not given:
        return
    if here.values["app_certificate_email"]:
        yield Problem("app_certificate_files", "is set, and app_certificate_email too. Set only one of them.")
        return
    texts = {}
    for part in ("certificate", "key"):
        if not given.get(part):
            yield Problem("app_certificate_files", "is missing: write the path of the file.", part=f".{part}")
            continue
        try:
            texts[part] = here.read(given[part])
        except (AnsibleError, OSError, UnicodeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            yield Problem("app_certificate_files", f"cannot be read from {given[part]}: {reason}.", part=f".{part}")
    if len(texts) == 2:
        domains = [name for name, _ in all_domains(here)]
        for part, sentence in pem_problems(texts["certificate"], texts["key"], domains, datetime.now(UTC)):
            yield Problem("app_certificate_files", f"({given[part]}) {sentence}", part=f".{part}")


def pem_problems(chain: str, key: str, domains: list[str], now: datetime) -> Iterator[tuple[str, str]]:
    """Yield ("certificate" or "key", sentence) for what is wrong with the files for a site of these domains."""
    # Slow to load, and needed only with files.
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        yield "certificate", "contains no PEM certificate (-----BEGIN CERTIFICATE-----)."
        return
    wrong_key = list(key_problems(certificates, key))
    yield from wrong_key
    if any("after its chain" in sentence for _, sentence in wrong_key):
        return
    yield from validity_problems(certificates, now)
    names = certificate_names(certificates[0])
    missing = [name for name in domains if not {name.lower(), "*." + name.lower().partition(".")[2]} & names]
    if missing:
        yield "certificate", f"is for {', '.join(sorted(names)) or 'no domain'}, and not for {', '.join(missing)}."
    yield from chain_problems(certificates)


def key_problems(certificates: list[Any], key: str) -> Iterator[tuple[str, str]]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.encode(), None)
    except TypeError:
        yield (
            "key",
            "is encrypted with a passphrase, so nginx could not start. Remove it: openssl pkey -in KEY -out NEW.",
        )
        return
    except (ValueError, UnsupportedAlgorithm):
        yield "key", "contains no PEM private key (-----BEGIN PRIVATE KEY-----)."
        return
    if private.public_key() == certificates[0].public_key():
        return
    if any(private.public_key() == other.public_key() for other in certificates[1:]):
        yield "certificate", "has the site's certificate after its chain. Put it first."
    else:
        yield "certificate", "does not belong to the key."


def validity_problems(certificates: list[Any], now: datetime) -> Iterator[tuple[str, str]]:
    for certificate in certificates:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        where = "" if certificate is certificates[0] else f", in its chain {certificate.subject.rfc4514_string()},"
        if ends <= now:
            yield "certificate", f"has expired{where} on {ends:%Y-%m-%d %H:%M} UTC. Get a new one."
        if begins > now:
            yield (
                "certificate",
                f"is not valid yet{where} before {begins:%Y-%m-%d %H:%M} UTC. Wait, or correct the clock.",
            )


def chain_problems(certificates: list[Any]) -> Iterator[tuple[str, str]]:
    from cryptography.exceptions import InvalidSignature

    for issued, issuer in pairwise(certificates):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            yield (
                "certificate",
                f"has its chain in the wrong order: {issuer.subject.rfc4514_string()} did not issue "
                f"{issued.subject.rfc4514_string()}. Each certificate must be followed by its issuer.",
            )


def certificate_names(certificate: Any) -> set[str]:
    """Return the domains and addresses of a certificate."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.get_values_for_type(x509.DNSName)} | {
        str(address) for address in found.get_values_for_type(x509.IPAddress)
    }
