"""Begin or end a rotation of the generated secrets, in their folder on the control machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments
from plugin_utils.generated import LOGIN, MARK, NEXT, PREVIOUS, generate, read

DOCUMENTATION = r"""
module: rotate_secrets
short_description: Begin or end a rotation of the generated secrets
description:
  - O(state=begin) generates new values and keeps the previous ones beside them; O(state=end) deletes the previous ones.
  - Runs on the control machine. If it is killed at any point, the same call completes it.
  - Supports check mode.
options:
  state:
    description: What to do.
    type: str
    choices: [begin, end]
    required: true
  folder:
    description: Folder of the secrets, one file each.
    type: str
    required: true
  secrets:
    description: Name and value in use of each secret. A value that differs from its file was set by the user and stays.
    type: dict
    required: true
  keep_previous:
    description: Secrets whose previous value stays until the next rotation.
    type: list
    elements: str
    default: []
  logins:
    description: The two login roles of the database, which alternate. Empty strings are ignored.
    type: list
    elements: str
    default: []
author: Seedbed
"""

EXAMPLES = r"""
- name: Generate new secrets and keep the previous ones
  rotate_secrets:
    state: begin
    folder: inventory/.secrets/production
    secrets: {database_password: "{{ secret_database_password }}"}
    logins: [shop, shop_2]
"""

RETURN = r"""
names: {description: Secrets that rotate., type: list, elements: str}
user_defined: {description: Secrets that the user set., type: list, elements: str}
"""


def write(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner can read it."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def prepare(folder: Path, wanted: Mapping[str, str], logins: Iterable[str]) -> None:
    """Write the new values beside the current ones, then the marker: from then on, a run completes this rotation."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for incomplete in folder.glob(f"*{NEXT}"):
        incomplete.unlink()
    names = [name for name, value in wanted.items() if read(folder / name) == value]
    for name in names:
        write(folder / f"{name}{NEXT}", f"{generate(len(wanted[name]))}\n")
    first, second = [*logins, "", ""][:2]
    if first:
        write(folder / f"{LOGIN}{NEXT}", f"{second if read(folder / LOGIN) in ('', first) else first}\n")
    write(folder / MARK, "".join(f"{name}\n" for name in names))


def begin(folder: Path, wanted: Mapping[str, str], logins: Iterable[str] = ()) -> list[str]:
    """Replace each generated secret and keep its previous value beside it. Returns the names."""
    mark = folder / MARK
    if not mark.exists():
        prepare(folder, wanted, logins)
    for following in sorted(folder.glob(f"*{NEXT}")):
        current = following.with_suffix("")
        if current.name != LOGIN:
            write(current.with_name(current.name + PREVIOUS), f"{read(current)}\n")
        following.replace(current)
    return read(mark).split()


def end(folder: Path, keep_previous: Iterable[str]) -> list[str]:
    """Delete the previous values, except those in `keep_previous`. Returns the names of all secrets that rotated."""
    mark = folder / MARK
    names = read(mark).split()
    for name in set(names) - set(keep_previous):
        (folder / f"{name}{PREVIOUS}").unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    return names


class ActionModule(ActionBase):
    """Call begin or end."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = documented_arguments(self, DOCUMENTATION)
        folder, wanted = Path(args["folder"]), args["secrets"]
        if self._task.check_mode:
            return result | {"changed": True, "names": [], "user_defined": []}
        if args["state"] == "begin":
            names = begin(folder, wanted, filter(None, args["logins"]))
        else:
            names = end(folder, args["keep_previous"])
        user_defined = [name for name in wanted if name not in names]
        return result | {"changed": True, "names": names, "user_defined": user_defined}
