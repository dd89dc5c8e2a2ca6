"""Validate private SSH keys that are copied to servers: they must have no passphrase."""

from __future__ import annotations

import re
from pathlib import Path

from ansible.errors import AnsibleError

from .problems import Installation

PUBLIC = re.compile(r"(ssh|ecdsa|sk)-\S+ AAAA")


def key_file_problem(here: Installation, name: str) -> str:
    """Return what is wrong with the file that a setting names; "" if nothing is.

    The sentence never contains the key.
    """
    if "\n" in name or "PRIVATE KEY" in name or PUBLIC.match(name):
        return "must be the path of a private SSH key on this machine, not the key itself."
    try:
        path = here.project / Path(name).expanduser()
    except RuntimeError:
        return f"({name}) is in the home folder of a user that this machine does not have."
    if not path.is_file():
        return f"names the file {path}, which does not exist on this machine."
    try:
        text = here.read(str(path))
    except (AnsibleError, OSError) as error:
        return f"names the file {path}, which cannot be read: {str(error).splitlines()[0].rstrip('.')}."
    except UnicodeError:
        text = ""
    return private_key_problem(path, text)


def private_key_problem(path: Path, text: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    load = load_ssh_private_key if "OPENSSH PRIVATE KEY-----" in text else load_pem_private_key
    try:
        load(text.encode(), None)
    except TypeError:
        new = f"{path}-server"
        return (
            f"names {path}, a key with a passphrase; a server cannot enter one. Create a key without: ssh-keygen "
            f"-t ed25519 -N '' -f {new}; name it here, and add {new}.pub where it logs in."
        )
    except UnsupportedAlgorithm as error:
        return f"names {path}, which is encrypted, or of a kind that is not supported: {error}."
    except ValueError:
        if PUBLIC.match(text):
            return f"must name a private SSH key; {path} is a public one. (Name the file without .pub.)"
        return f"must name a private SSH key; {path} is none. Create one: ssh-keygen -t ed25519 -N '' -f FILE."
    return ""
