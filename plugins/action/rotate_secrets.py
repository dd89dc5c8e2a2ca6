"""Ansible action: begin or end a change of the generated secrets, in their folder on the control machine.

    rotation:
      state: begin or end
      folder: where the secrets are, a file each
      secrets: name and value of each that shall change; if its file has another, somebody chose it, and it stays
      kept: those whose former value stays until the next change
      logins: the two names that take turns, "" for none

It may be killed at any point: the same again completes it. The first half knows nothing of Ansible.
"""

from __future__ import annotations

import os
import secrets
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

ALPHABET = string.ascii_letters + string.digits
# While this file exists, a change is under way; it names what changes.
MARK = "rotation"
LOGIN = "database_login"
NEXT, PREVIOUS = ".next", ".previous"


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""


def begin(folder: Path, wanted: Mapping[str, str], logins: Iterable[str] = ()) -> list[str]:
    """Put a new value in the place of each generated secret; the former one is beside it. Returns their names."""
    mark = folder / MARK
    if not mark.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{NEXT}"):
            leftover.unlink()
        names = [name for name, value in wanted.items() if read(folder / name) == value]
        for name in names:
            length = len(wanted[name])
            write(folder / f"{name}{NEXT}", "".join(secrets.choice(ALPHABET) for _ in range(length)) + "\n")
        first, second = [*logins, "", ""][:2]
        if first:
            write(folder / f"{LOGIN}{NEXT}", f"{second if read(folder / LOGIN) in ('', first) else first}\n")
        # From here on it is completed, whoever kills it.
        write(mark, "".join(f"{name}\n" for name in names))
    for following in sorted(folder.glob(f"*{NEXT}")):
        current = following.with_suffix("")
        if current.name != LOGIN:
            write(current.with_name(current.name + PREVIOUS), f"{read(current)}\n")
        following.replace(current)
    return read(mark).split()


def end(folder: Path, kept: Iterable[str]) -> list[str]:
    """Forget the former values, but for those that are kept. Returns the names of what changed."""
    mark = folder / MARK
    names = read(mark).split()
    for name in set(names) - set(kept):
        (folder / f"{name}{PREVIOUS}").unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    return names


class ActionModule(ActionBase):
    """Returns `names`, those that change, and `chosen`, those that somebody chose."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        folder, wanted = Path(args["folder"]), args["secrets"]
        if self._task.check_mode:
            return result | {"changed": True, "names": [], "chosen": []}
        if args["state"] == "begin":
            names = begin(folder, wanted, [login for login in args["logins"] if login])
        else:
            names = end(folder, args["kept"])
        return result | {"changed": True, "names": names, "chosen": [name for name in wanted if name not in names]}
