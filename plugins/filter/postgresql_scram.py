"""Filter: the verifier that PostgreSQL stores for a SCRAM-SHA-256 password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stringprep
import unicodedata
from collections.abc import Callable

DOCUMENTATION = r"""
name: postgresql_scram
short_description: Return the SCRAM-SHA-256 verifier of a password
description:
  - Returns the verifier (RFC 5803) that PostgreSQL stores in pg_authid, so that the server never gets the password.
  - Idempotent, the same password and salt source give the same verifier.
positional: salt_of
options:
  _input: {description: The password., type: str, required: true}
  salt_of: {description: "Text that the salt is derived from, such as host and role.", type: str, required: true}
author: Seedbed
"""

EXAMPLES = r"""
verifier: "{{ secret_database_password | postgresql_scram(inventory_hostname ~ ' shop') }}"
"""

RETURN = r"""
_value: {description: The verifier., type: str}
"""

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
    """Return the password as libpq sends it: prepared by RFC 4013, or unchanged if it has a prohibited character."""
    if password.isascii():
        return password
    spaced = (" " if stringprep.in_table_c12(c) else c for c in password)
    mapped = "".join(c for c in spaced if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", mapped)
    if not prepared or any(prohibits(c) for c in prepared for prohibits in _PROHIBITED):
        return password
    if any(map(stringprep.in_table_d1, prepared)):  # right-to-left text must be so throughout
        ends_match = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if any(map(stringprep.in_table_d2, prepared)) or not ends_match:
            return password
    return prepared


def scram_verifier(password: str, salt_of: str) -> str:
    """Return the SCRAM-SHA-256 verifier (RFC 5803) of a password, as in pg_authid.rolpassword.

    The salt is derived from `salt_of` (host and role) instead of being random, so that the same password gives the
    same verifier and a second run changes nothing.
    """
    salt = hashlib.sha256(salt_of.encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(value).decode() for value in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[[str, str], str]]:
        """Return the filters by name."""
        return {"postgresql_scram": scram_verifier}
