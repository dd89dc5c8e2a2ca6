"""Compare the secrets of this machine with those that a host has in use, by fingerprints; record these on the host.

One host also keeps a copy of the generated secrets, from which a machine fetches those that it lacks.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments
from plugin_utils.generated import LOGIN, MARK, PREVIOUS, current, keep, kept, read, staged, staging
from plugin_utils.host_program import PYTHON, HostProgramAction
from plugin_utils.secrets_copy import (
    comparison,
    content,
    copy_state,
    damage,
    fetch,
    fetched_line,
    keep_fetched,
    missing_files,
    new_copy,
    read_state,
    write_state,
)

DOCUMENTATION = r"""
module: secret_fingerprints
short_description: Compare the secrets with those that a host has in use
description:
  - O(state=fetch) writes secrets that O(folder) lacks to the temporary folder of this run, from the copy that the host
    keeps. After a host that keeps a copy, it asks no other.
  - O(state=check) compares, and changes nothing, here or on the host. RV(problem) says which secrets differ.
  - O(state=keep) writes fetched secrets to O(folder), except in check mode. It runs after O(state=check).
  - O(state=record) writes secrets that this run has generated to O(folder), salted hashes of all to the host, and with
    O(copy=keep) the generated ones to its copy.
  - Without recorded fingerprints, those of its files in use count.
  - Supports check mode.
options:
  state:
    description: What to do.
    type: str
    choices: [fetch, check, keep, record]
    required: true
  secrets:
    description: Name and value of each secret.
    type: dict
    default: {}
  folder:
    description: Folder of the generated secrets on the control machine, one file each.
    type: path
    required: true
  file:
    description: The file of the fingerprints on the host.
    type: path
    default: /etc/seedbed/secrets.json
  copy_file:
    description: The file of the copy on the host.
    type: path
    default: /etc/seedbed/secrets-copy.json
  copy:
    description: With O(state=record), whether the host keeps a copy of the generated secrets, or has its copy removed.
    type: str
    choices: [keep, remove, ignore]
    default: ignore
  use:
    description: >-
      Which of both to use where a secret differs from that of the copy: V(server) takes the copy and keeps O(folder)
      beside it; empty, O(state=check) fails.
    type: str
    default: ""
  leader:
    description: The host that keeps the copy.
    type: str
    default: ""
  places:
    description: Where a host without fingerprints has secrets in use; C(secrets_places) of the role secrets.
    type: list
    elements: dict
    default: []
  replace:
    description: Accept different secrets.
    type: bool
    default: false
  replace_chosen:
    description: Accept different values of secrets that the user has set, as a rotation does.
    type: bool
    default: false
  left_out:
    description: Hosts that may have secrets in use and are not in this run. If there are any, none may be generated.
    type: list
    elements: str
    default: []
author: Seedbed
"""

EXAMPLES = r"""
- name: Compare the secrets with those of the host
  secret_fingerprints:
    state: check
    folder: inventory/.secrets/production
    secrets: {database_password: "{{ secret_database_password }}"}
"""

RETURN = r"""
problem: {description: Which secrets differ and what to do; empty if none do., type: str, returned: with O(state=check)}
"""

ABSENT = {"recorded": False, "salt": "", "fingerprints": {}, "copy": {}}


def fingerprint(value: str, salt: str) -> str:
    """Return the fingerprint of a secret, as the host computes it."""
    digest = hashlib.sha256(value.encode()).hexdigest()
    return hashlib.scrypt(digest.encode(), salt=bytes.fromhex(salt), n=2**12, r=8, p=1, dklen=32).hex()


def matches(value: str, name: str, host: Mapping[str, Any]) -> bool:
    """Return whether a host has this value of a secret in use, or knows none of it."""
    known = host["fingerprints"].get(name)
    return not known or fingerprint(value, host["salt"]) in known


def differing(secrets: Mapping[str, str], folder: Path, host: Mapping[str, Any]) -> list[str]:
    """Return the names of secrets that differ from those of a host.

    During a rotation, which a marker file shows, the host may still have the previous values.
    """
    folder = current(folder)
    names = [name for name, value in secrets.items() if not matches(value, name, host)]
    if not (folder / MARK).exists():
        return names
    return [name for name in names if name != LOGIN and not matches(read(folder / f"{name}{PREVIOUS}"), name, host)]


def chosen(names: Iterable[str], secrets: Mapping[str, str], folder: Path) -> list[str]:
    """Return the names of secrets that the user has set: neither in a file, nor generated by this run."""
    files = (current(folder), staging(folder))
    return [name for name in names if name != LOGIN and secrets[name] not in [read(place / name) for place in files]]


def folder_with(names: Iterable[str], folder: Path, host: Mapping[str, Any]) -> Path | None:
    """Return the folder beside `folder` that has the host's secrets, as after renaming the inventory."""
    beside = [path for path in sorted(folder.parent.glob("*/")) if path != folder]
    return next(
        (path for path in beside if all((path / n).is_file() and matches(read(path / n), n, host) for n in names)), None
    )


def generated_problem(names: list[str], folder: Path, host: Mapping[str, Any], leader_left_out: str) -> list[str]:
    """Return where the generated secrets that differ are, and how to use them, as lines."""
    state, lines = read_state(folder), []
    if state and state.problem:
        lines.append(f"The copy of {state.host} cannot be used: {state.problem}.")
    elif state:
        if different := [name for name in names if name in state.differing]:
            lines += comparison(state, different, folder)
        if others := [name for name in names if name not in state.names]:
            lines.append(
                f"The copy of {state.host} has no {', '.join(others)}: the machine that recorded it sets "
                f"{', '.join(f'secret_{name}' for name in others)} in group_vars. Get these files, such as vault.yml."
            )
        if lines:
            return lines
    if other := folder_with(names, folder, host):
        return [
            *lines,
            f"{other} has them: the folder is named after the inventory file. "
            f"Type: rm -rf {shlex.quote(str(folder))} && mv {shlex.quote(str(other))} {shlex.quote(str(folder))}",
        ]
    if leader_left_out:
        lines.append(
            f"Run once without --limit: they are fetched from {leader_left_out}, if it keeps a copy of them. Or:"
        )
    lines.append(
        f"Copy {folder}/, with every file in it, from the machine that ran site.yml or rotate-secrets.yml last."
    )
    return lines


def holder(folder: Path) -> str:
    """Return where this run has its generated secrets from."""
    state = read_state(folder)
    return f"The copy of {state.host}" if state and current(folder) != folder else str(folder)


def replacement_problem(
    name: str, names: list[str], arguments: Mapping[str, Any], folder: Path, host: Mapping[str, Any]
) -> str:
    """Return which secrets of a host this run would replace, and what to do instead."""
    set_by_user = chosen(names, arguments["secrets"], folder)
    generated = [secret for secret in names if secret not in set_by_user]
    missing = [secret for secret in generated if not (current(folder) / secret).exists()]
    lines = [f"Nothing was changed: this run would replace secrets that {name} has in use: {', '.join(names)}."]
    if generated:
        where = "has no file for" if missing == generated else "has other values of" if not missing else "lacks some of"
        lines.append(f"{holder(folder)} {where} {'these' if generated == names else ', '.join(generated)}.")
        lines += generated_problem(generated, folder, host, leader_left_out(arguments))
    if set_by_user:
        lines.append(
            f"group_vars or the inventory set {', '.join(f'secret_{secret}' for secret in set_by_user)}: restore the "
            "value, or change it without downtime by playbooks/rotate-secrets.yml (docs/secrets.md)."
        )
    lines.append(
        "To replace them all the same, add -e secrets_replace=true: requests and tasks fail until that run has ended."
    )
    return "\n".join(lines)


def leader_left_out(arguments: Mapping[str, Any]) -> str:
    return arguments["leader"] if arguments["leader"] in arguments["left_out"] else ""


def missing_hosts_problem(folder: Path, arguments: Mapping[str, Any]) -> str:
    leader = leader_left_out(arguments)
    fetch_them = (
        f"Run once without --limit: they are fetched from {leader}, if it keeps a copy of them. " if leader else ""
    )
    return (
        f"Nothing was changed: {folder} has no file for {', '.join(staged(folder))}, and this run leaves out "
        f"{' and '.join(arguments['left_out'])}, which may have secrets in use. {fetch_them}Or copy the folder from "
        "the machine that ran site.yml last. For a new installation, run site.yml without --limit."
    )


def choice_problem(arguments: Mapping[str, Any], folder: Path) -> str:
    """Return what is wrong in `secrets_use`; "" if nothing is."""
    if arguments["use"] not in ("", "server"):
        return f"Nothing was changed: secrets_use is {arguments['use']!r}, and must be server or empty."
    if arguments["use"] and arguments["replace"]:
        return "Nothing was changed: secrets_use=server and secrets_replace contradict each other. Remove one of them."
    state = read_state(folder)
    if arguments["use"] and (not state or state.problem):
        leader = leader_left_out(arguments)
        none = f"this run leaves out {leader}, which may keep one" if leader else "no host in this run keeps one"
        reason = f"that of {state.host} cannot be used: {state.problem}" if state else none
        return f"Nothing was changed: secrets_use=server needs a copy of the secrets, and {reason}. Remove secrets_use."
    return ""


def check(arguments: Mapping[str, Any], host: Mapping[str, Any], name: str) -> str:
    """Return which secrets differ from those of a host and what to do; "" if the run may go on."""
    secrets, folder = arguments["secrets"], Path(arguments["folder"])
    if problem := choice_problem(arguments, folder):
        return problem
    names = [] if arguments["replace"] else differing(secrets, folder, host)
    if arguments["replace_chosen"]:
        accepted = chosen(names, secrets, folder)
        names = [secret for secret in names if secret not in accepted]
    if names:
        return replacement_problem(name, names, arguments, folder, host)
    if arguments["left_out"] and staged(folder):
        return missing_hosts_problem(folder, arguments)
    return ""


def new_record(secrets: Mapping[str, str], host: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprints to write to a host; {} if it has them."""
    known = host["recorded"] and set(host["fingerprints"]) == set(secrets)
    if known and all(matches(value, name, host) for name, value in secrets.items()):
        return {}
    salt = token_hex(16)
    return {"salt": salt, "fingerprints": {name: [fingerprint(value, salt)] for name, value in secrets.items()}}


def request(arguments: Mapping[str, Any], action: str = "", **changes: Any) -> dict[str, Any]:
    """Return what the host's program gets: what to do with the copy, its new content, and fingerprints to record."""
    copy = {"file": arguments["copy_file"], "action": action, "content": changes.get("content", {})}
    return {key: arguments[key] for key in ("file", "places")} | {"record": changes.get("record", {}), "copy": copy}


Ask = Callable[..., dict[str, Any]]


def fetched(arguments: Mapping[str, Any], name: str, ask: Ask) -> bool:
    """Fetch secrets from a host's copy to the temporary folder of this run. Returns whether there were any."""
    folder = Path(arguments["folder"])
    # One copy is used, that of the leader; of another host, if the leader is a new one.
    if arguments["replace"] or read_state(folder) or not (copy := ask(arguments, action="read")["copy"]):
        return False
    state, found = copy_state(name, copy, folder), False
    if state.differing and arguments["use"] == "server":
        fetch(copy["files"], folder, replace=True)
        state, found = copy_state(name, copy, current(folder)), True
    elif not state.differing and not state.problem and missing_files(copy["files"], folder):
        fetch(copy["files"], folder, replace=False)
        found = True
    write_state(state, folder)
    return found


def record(arguments: Mapping[str, Any], ask: Ask, check_mode: bool) -> bool:
    """Keep generated secrets on this machine, then record on the host. Returns whether the host changes."""
    secrets, folder = arguments["secrets"], Path(arguments["folder"])
    if not check_mode:
        # First on this machine: a host must not know secrets that are lost here.
        keep(folder)
        secrets = {name: kept(value, name, folder) for name, value in secrets.items()}
    host = ask(arguments, action="" if arguments["copy"] == "ignore" else "read")
    changes: dict[str, Any] = {"record": new_record(secrets, host)}
    files = content(secrets, current(folder))
    if arguments["copy"] == "keep" and (damage(host["copy"]) or host["copy"]["files"] != files):
        changes |= {"action": "write", "content": new_copy(files)}
    elif arguments["copy"] == "remove" and host["copy"]:
        changes |= {"action": "remove"}
    changed = bool(changes["record"]) or "action" in changes
    if changed and not check_mode:
        ask(arguments, **changes)
    return changed


class ActionModule(HostProgramAction):
    """Run plugins/host/secret_fingerprints.py; the comparison is made here."""

    program = "secret_fingerprints.py"
    documentation = DOCUMENTATION

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super(HostProgramAction, self).run(tmp, task_vars)
        arguments = documented_arguments(self, DOCUMENTATION)
        name = (task_vars or {})["inventory_hostname"]
        folder, check_mode = Path(arguments["folder"]), self._task.check_mode
        if arguments["state"] == "fetch":
            # In check mode, nothing is kept: say it here.
            if fetched(arguments, name, self.host_answer) and check_mode:
                self._display.display(f"  {fetched_line(folder)}")
            return {"changed": False}
        if arguments["state"] == "keep":
            line = "" if check_mode else fetched_line(folder)
            if line:
                keep_fetched(folder)
                self._display.display(f"  {line}")
            return {"changed": bool(line)}
        if arguments["state"] == "check":
            host = self.host_answer(arguments)
            return {"changed": False, "problem": check(arguments, host, name)}
        return {"changed": record(arguments, self.host_answer, check_mode)}

    def host_answer(self, arguments: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """Return what the program prints for a request with these changes."""
        return self.execute(request(arguments, **changes))

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the program. A host without Python has no secrets."""
        command = f"if [ -x {PYTHON[0]} ]; then {self.command()}; else echo {shlex.quote(json.dumps(ABSENT))}; fi"
        return self.answer(command, request)
