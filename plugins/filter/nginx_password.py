"""Filter: a salted hash of a password, as nginx's auth_basic_user_file has it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

DOCUMENTATION = r"""
name: nginx_password
short_description: Return the hash of a password for a file of auth_basic
description:
  - Returns C({SSHA}), which nginx understands on every system. Needs no library.
  - Idempotent, the same password and salt source give the same hash.
positional: salt_of
options:
  _input: {description: The password., type: str, required: true}
  salt_of: {description: "Text that the salt is derived from, such as site and user.", type: str, required: true}
author: Seedbed
"""

EXAMPLES = r"""
line: "{{ user }}:{{ password | nginx_password(site ~ ' ' ~ user) }}"
"""

RETURN = r"""
_value: {description: The hash., type: str}
"""


def salted_hash(password: str, salt_of: str) -> str:
    """Return {SSHA} and the base64 of SHA-1 and salt. The salt is derived, so that a second run changes nothing."""
    salt = hashlib.sha256(salt_of.encode()).digest()[:16]
    return "{SSHA}" + base64.b64encode(hashlib.sha1(password.encode() + salt).digest() + salt).decode()


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[[str, str], str]]:
        """Return the filters by name."""
        return {"nginx_password": salted_hash}
