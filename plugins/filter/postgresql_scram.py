"""Ansible filter: the verifier that PostgreSQL stores for a SCRAM-SHA-256 password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stringprep
import unicodedata
from collections.abc import Callable

ITERATIONS = 4096  # PostgreSQL's scram_iterations

_PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(password: str) -> str:
    """Return the password as libpq sends it: by RFC 4013, or unchanged where that forbids one of its characters."""
    if password.isascii():
        return password
    spaced = (" " if stringprep.in_table_c12(c) else c for c in password)
    mapped = "".join(c for c in spaced if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", mapped)
    if not prepared or any(prohibits(c) for c in prepared for prohibits in _PROHIBITED):
        return password
    if any(map(stringprep.in_table_d1, prepared)):  # written from right to left, so all of it must be
        ends_match = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if any(map(stringprep.in_table_d2, prepared)) or not ends_match:
            return password
    return prepared


def scram_verifier(password: str, salt_of: str) -> str:
    """Return the SCRAM-SHA-256 verifier (RFC 5803) of a password, as in pg_authid.rolpassword.

    The salt follows from `salt_of`, which names host and role, and not from chance: so the same
    password gives the same verifier, and a second run can see that nothing has changed.
    """
    salt = hashlib.sha256(salt_of.encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(value).decode() for value in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[[str, str], str]]:
        """Return the filters by name."""
        return {"postgresql_scram": scram_verifier}
