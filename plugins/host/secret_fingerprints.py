"""Read or write the fingerprints of the installation's secrets: the host's part of the action plugin of the same name.

Needs Debian's Python and its standard library alone. Reads {"file", "places", "record", "copy"} from stdin; prints
{"recorded": bool, "salt": str, "fingerprints": {name: [str]}, "copy": {...}}, as JSON. Without recorded fingerprints,
those of the secrets in its files are computed here. "copy" is {"file", "action", "content"}. The action "read" returns
the copy of the generated secrets, {} if there is none, and is the only way for a secret to leave the host; "write"
replaces the copy by "content"; "remove" deletes it; "" ignores it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def fingerprint(digest: str, salt: str) -> str:
    """Return the fingerprint of a secret, given its SHA-256 hash in hexadecimal."""
    return hashlib.scrypt(digest.encode(), salt=bytes.fromhex(salt), n=2**12, r=8, p=1, dklen=32).hex()


def variable(text: str, name: str) -> str | None:
    """Return the value of a variable in a file of roles/runtime/templates/environment.j2."""
    found = re.search(rf'^{re.escape(name)}="(.*)"$', text, re.MULTILINE)
    return re.sub(r'\\([\\"$`])', r"\1", found[1]) if found else None


def digests(place: dict[str, str]) -> list[str]:
    """Return the SHA-256 hashes of the secret's values in one place: a variable of a file, or a user of Redis's."""
    try:
        text = Path(place["file"]).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    if "user" in place:
        line = re.search(rf"^user {re.escape(place['user'])} .*$", text, re.MULTILINE)
        return re.findall(r"#([0-9a-f]{64})\b", line[0]) if line else []
    value = variable(text, place["variable"])
    if value and place["part"] == "user":
        value = urlsplit(value).username
    elif value and place["part"] == "password":
        value = unquote(urlsplit(value).password or "")
    elif value and place["part"] == "after_colon":
        value = value.partition(":")[2]
    return [hashlib.sha256(value.encode()).hexdigest()] if value else []


def in_use(places: list[dict[str, str]], salt: str) -> dict[str, list[str]]:
    """Return the fingerprints of the secrets in the host's files, by the secret's name."""
    found: dict[str, list[str]] = {}
    for place in places:
        values = [fingerprint(digest, salt) for digest in digests(place)]
        if values:
            # The application's file comes before Redis's, which also has the previous password during a rotation.
            found.setdefault(place["secret"], values)
    return found


def write(path: Path, text: str) -> None:
    """Replace the file atomically; only root can read it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def read_copy(path: Path) -> dict[str, Any]:
    """Return the copy of the generated secrets; {} without one, or if it is damaged: the next run replaces it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main() -> dict[str, Any]:
    os.umask(0o022)
    request = json.load(sys.stdin)
    path, copy = Path(request["file"]), request["copy"]
    found: dict[str, Any] = {"copy": {}}
    # Before the fingerprints: a host must not have those of secrets that no copy has.
    if copy["action"] == "write":
        write(Path(copy["file"]), json.dumps(copy["content"], indent=1) + "\n")
    elif copy["action"] == "read":
        found["copy"] = read_copy(Path(copy["file"]))
    elif copy["action"] == "remove":
        Path(copy["file"]).unlink(missing_ok=True)
    if request["record"]:
        write(path, json.dumps(request["record"], indent=1) + "\n")
    if path.exists():
        return found | {"recorded": True} | json.loads(path.read_text())
    salt = secrets.token_hex(16)
    return found | {"recorded": False, "salt": salt, "fingerprints": in_use(request["places"], salt)}


if __name__ == "__main__":
    print(json.dumps(main()))
