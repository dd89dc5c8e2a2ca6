"""The target of backups: what is wrong there shows only when a copy is needed, so it is checked before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .problems import Installation, Problem, one_of, quoted
from .ssh_keys import key_file_problem

KEYS = {
    "s3": {"endpoint": "https://s3.example.net", "bucket": "backups", "access_key": "", "secret_key": ""},
    "sftp": {"host": "backup.example.net", "user": "shop", "ssh_key": "/home/ada/.ssh/shop-backup", "host_keys": ""},
}
OPTIONAL = {"s3": ("region", "folder"), "sftp": ("port", "folder")}
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
HOST_KEY = re.compile(r"(ssh-|ecdsa-sha2-)\S+ [A-Za-z0-9+/=]{40,}")


def check_target(here: Installation) -> Iterator[Problem]:
    target = here.values["app_backup_target"]
    if not target:
        return
    if not here.values["app_backup"]:
        yield Problem("app_backup_target", "is set, and app_backup is false. Remove one of them.")
    if target.get("type") not in KEYS:
        yield Problem("app_backup_target", f"must be {one_of(list(KEYS))}.", part=".type")
        return
    for part, sentence in part_problems(target, here):
        yield Problem("app_backup_target", sentence, part=f".{part}")


def part_problems(target: dict[str, Any], here: Installation) -> Iterator[tuple[str, str]]:
    """Yield each wrong key of a target, and a sentence."""
    kind = target["type"]
    known = ["type", *KEYS[kind], *OPTIONAL[kind]]
    for name in target:
        if name not in known:
            yield name, f"is unknown for {kind}: known are {', '.join(known)}."
    for name, example in KEYS[kind].items():
        if not target.get(name):
            yield name, f"is missing{f', such as {example}' if example else ''}."
    folder = target.get("folder", "")
    if folder and not FOLDER.fullmatch(str(folder)):
        yield "folder", f"({quoted(folder)}) must be a relative path of letters, digits, dots, dashes and underscores."
    if kind == "s3" and target.get("endpoint") and not re.fullmatch(r"https://[^\s/]+/?", str(target["endpoint"])):
        yield "endpoint", f"({quoted(target['endpoint'])}) must be https:// and a host, without a path."
    if kind == "sftp":
        yield from sftp_problems(target, here)


def sftp_problems(target: dict[str, Any], here: Installation) -> Iterator[tuple[str, str]]:
    keys = target.get("host_keys") or []
    if not isinstance(keys, list) or not all(HOST_KEY.match(str(key)) for key in keys):
        scan = f"ssh-keyscan -p {target.get('port', 22)} {target.get('host', 'HOST')}"
        yield (
            "host_keys",
            f"must be a list of keys such as ssh-ed25519 AAAA...: all that {scan} prints, without the name at the "
            "beginning of each line. Compare them with what the provider says.",
        )
    name = target.get("ssh_key")
    if name and (sentence := key_file_problem(here, str(name))):
        yield "ssh_key", sentence
