"""Where settings are, and where they belong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .problems import APP, VAULT, Problem

# Groups that say what a host runs. A host's environment is another group, around all hosts of the inventory.
# (The demo shop's own settings are in group_vars/demo_shop.yml.)
SERVICE_GROUPS = {"all", "ungrouped", "web", "worker", "scheduler", "database", "broker", "demo_shop"}
# Ten times as fast where PyYAML has it, as its wheels have: an inventory may be large.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SHIPPED = {"defaults.yml", "secrets.yml", "wiring.yml"}


def environment_of(groups: Mapping[str, list[str]], hosts: list[str], inventory: str, project: Path) -> str:
    """Return the group of the user's settings: named like the inventory file, or around all hosts; else ENV."""
    around = [name for name in groups if name not in SERVICE_GROUPS and set(hosts) <= set(groups[name])]
    named = Path(inventory).stem
    if named in around:
        return named
    with_files = [name for name in around if (project / "group_vars" / name).exists()]
    return (with_files or around or ["ENV"])[0]


def in_environment(file: str, environment: str) -> str:
    return file.replace("/ENV/", f"/{environment}/") if file in (APP, VAULT) else file


def line_of(name: str, path: Path) -> int:
    """Return the number of the line that sets a variable in a file of variables; 0 if none does."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeError):
        return 0
    return next((number for number, line in enumerate(lines, start=1) if line.startswith(f"{name}:")), 0)


def misplaced_files(project: Path, environment: str) -> Iterator[Problem]:
    """Yield files of the user in group_vars/all, where those of Seedbed would override them."""
    for path in sorted((project / "group_vars/all").iterdir()):
        if path.name not in SHIPPED and path.suffix in {"", ".yml", ".yaml", ".json"}:
            place = f"group_vars/{environment}/{path.name}"
            yield Problem(
                "this file",
                f"belongs in group_vars/{environment}/. Type: mkdir -p group_vars/{environment}; "
                f"mv group_vars/all/{path.name} {place}",
                f"group_vars/all/{path.name}",
            )


def unwritable_problems(folders: Mapping[str, Path]) -> Iterator[Problem]:
    """Yield the folders on this machine that a run must write to, but cannot, by the settings that name them."""
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Problem(name, f"is {folder}, which this user cannot write to. Set {name} to another folder in {APP}.")


def shadowed_problems(inventory: Path, effective: Mapping[str, Any], shipped: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield settings under `vars:` of an inventory file, if group_vars/all overrides them.

    Ansible gives group_vars/all precedence over variables of a group in an inventory file.
    """
    try:
        document = yaml.load(inventory.read_text(), Loader=LOADER)
    except (OSError, UnicodeError, yaml.YAMLError):
        return  # a folder, a script, or another format
    for name, value in inventory_vars(document):
        if name in shipped and value != effective.get(name) and effective.get(name) == shipped[name]:
            yield Problem(
                name,
                f"has no effect under `vars:` of an inventory, since group_vars/all has precedence. Move it to {APP}.",
                str(inventory),
            )


def inventory_vars(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables of every group of an inventory in YAML."""
    if not isinstance(document, Mapping):
        return
    for group in document.values():
        if isinstance(group, Mapping):
            if isinstance(group.get("vars"), Mapping):
                yield from group["vars"].items()
            yield from inventory_vars(group.get("children"))
