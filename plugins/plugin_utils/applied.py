"""What a run applies to a host: the digest of each setting, and the clone of this repository that it is run from."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from plugin_utils.preflight.names import SET_BY_ROLES
from plugin_utils.preflight.processes import NEEDS_FACTS
from plugin_utils.secrets_copy import user

# Roles whose variables are options of a run, and of nothing that stays on a host.
RUN_ROLES = ("connection", "preflight", "release", "secrets")
# Settings of what a run deploys, which a CI job gives with -e: each release has its own.
RUN_SETTINGS = ("app_source", "app_git_ref")
# A user's settings, as paths of git; secrets are compared by their own fingerprints, and `make demo` writes its own.
SETTINGS_FOLDERS = (
    "inventory",
    "group_vars",
    ":(exclude)inventory/.secrets*",
    ":(exclude)inventory/demo.yml",
    ":(exclude)group_vars/demo",
)


def read_yaml(path: Path) -> Any:
    return yaml_load(path.read_text())


def documented_settings(project: Path) -> list[str]:
    """Return the names of the settings that docs/settings.md lists by topic."""
    specs = read_yaml(project / "roles/preflight/meta/argument_specs.yml")["argument_specs"]
    names = [*specs["settings"]["options"], *read_yaml(project / "group_vars/all/defaults.yml")]
    return list(dict.fromkeys(names))


def role_variables(project: Path, settings: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the further variables of roles that a user may set, each with its role's default."""
    others = {*settings, *read_yaml(project / "group_vars/all/wiring.yml"), *SET_BY_ROLES}
    for path in sorted(project.glob("roles/*/meta/argument_specs.yml")):
        if path.parents[1].name in RUN_ROLES:
            continue
        options = read_yaml(path)["argument_specs"]["main"].get("options") or {}
        defaults = read_yaml(path.parents[1] / "defaults/main.yml") or {} if options else {}
        yield from ((name, defaults.get(name)) for name in options if name not in others)


def digests(project: Path, variables: Mapping[str, Any], render: Callable[[Any], Any]) -> dict[str, str]:
    """Return the SHA-256 of each documented setting's value for a host; no secret of secrets.yml is among them.

    What cannot be resolved is left out, and what is computed from the memory of the host: only some plays know it.
    """
    settings = documented_settings(project)
    found = {}
    for name in settings:
        if name in variables and name not in RUN_SETTINGS and not needs_facts(name, variables[name]):
            found |= digest_of(name, variables[name], render, project)
    for name, default in role_variables(project, settings):
        # A role's defaults are known in some plays only.
        is_set = name in variables and variables[name] != default
        found |= digest_of(name, variables[name] if is_set else None, render, project)
    return found


def needs_facts(name: str, value: Any) -> bool:
    """Return whether a setting is computed from the host's memory."""
    return "{{" in str(value) and (name == NEEDS_FACTS or NEEDS_FACTS in str(value))


def digest_of(name: str, value: Any, render: Callable[[Any], Any], project: Path) -> dict[str, str]:
    try:
        text = json.dumps(plain(render(value)), sort_keys=True)
    except (AnsibleError, TypeError, ValueError):
        return {}
    # Two clones with the same settings have them in different folders.
    text = text.replace(f"{project}/", "")
    return {name: hashlib.sha256(text.encode()).hexdigest()}


def plain(value: Any) -> Any:
    """Return a rendered value as JSON has it: Ansible renders what is inside when it is read."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


# --- The clone -----------------------------------------------------------------------------------------------------


def clone_of(project: Path, inventory: Path) -> dict[str, Any]:
    """Return who runs Ansible here, from which folder, and its commit.

    `committed`: the commit has all settings, so that it says what they are. Without git, `commit` is "".
    """
    commit = git(project, "rev-parse", "--short=12", "HEAD")
    is_inside = inventory.resolve().is_relative_to(project)
    changed = git(project, "status", "--porcelain", "--ignored", "--", *SETTINGS_FOLDERS) if commit else ""
    return {
        "by": f"{user()}@{socket.gethostname()}",
        "path": str(project),
        "commit": commit or "",
        "committed": bool(commit) and is_inside and changed == "",
    }


def is_built_on(project: Path, clone: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Return whether this clone has the settings that an earlier run had committed, and what was committed after them.

    A shallow clone, as of a CI job, does not know earlier commits: it counts if its own settings are committed.
    """
    if not (clone["committed"] and earlier.get("committed")):
        return False
    if git(project, "rev-parse", "--is-shallow-repository") == "true":
        return True
    return git(project, "merge-base", "--is-ancestor", earlier["commit"], "HEAD") is not None


def git(project: Path, *words: str) -> str | None:
    """Return what git prints; None if it fails or is not on this machine."""
    command = ["git", "-C", str(project), *words]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
