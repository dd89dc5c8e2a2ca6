"""A certificate authority for tests: valid certificates, and invalid ones that no real authority would issue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LONG = timedelta(days=90)


def pem(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> str:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock).decode()


def text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, its key, and the certificate alone; all as PEM."""

    chain: str
    key: str
    site: str

    def __iter__(self) -> Iterator[str]:
        yield from (self.chain, self.key)

    @property
    def locked_key(self) -> str:
        return pem(serialization.load_pem_private_key(self.key.encode(), None), b"secret")


@dataclass
class Authority:
    """A root that issues certificates directly."""

    name: str = "Tests"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name} root")])
        builder = self.builder(subject, subject, self.key, now - LONG, now + LONG)
        self.root = builder.add_extension(x509.BasicConstraints(True, 0), critical=True).sign(self.key, hashes.SHA256())

    @property
    def chain(self) -> str:
        return text(self.root)

    @staticmethod
    def builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
    ) -> x509.CertificateBuilder:
        named = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        return named.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)

    def issue(self, *names: str, begins: datetime | None = None, ends: datetime | None = None) -> Pair:
        """Issue a certificate for these names and addresses; valid for 90 days by default."""
        key = ec.generate_private_key(ec.SECP256R1())
        begins = begins or datetime.now(UTC) - timedelta(hours=1)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        builder = self.builder(subject, self.root.subject, key, begins, ends or begins + LONG)
        alternatives = x509.SubjectAlternativeName([general_name(name) for name in names])
        site = text(builder.add_extension(alternatives, critical=False).sign(self.key, hashes.SHA256()))
        return Pair(site + self.chain, pem(key), site)
