"""Generated secrets: files in their folder, and before that in the temporary folder of this run."""

from __future__ import annotations

import hashlib
import os
import secrets
import string
from pathlib import Path

from ansible import constants

ALPHABET = string.ascii_letters + string.digits
# Files beside the values: the login role of the database, and what a rotation leaves there until it has ended.
# The marker file names the secrets that rotate.
LOGIN, MARK = "database_login", "rotation"
NEXT, PREVIOUS = ".next", ".previous"


def generate(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def read(path: Path) -> str:
    """Return the text of a file, or "" if it does not exist."""
    return path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""


def create(path: Path, text: str) -> None:
    """Create a file that only its owner can read, atomically. A file that exists stays, as another process wrote it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink(missing_ok=True)


def temporary(purpose: str, folder: Path) -> Path:
    """Return a path for this run and this folder of secrets.

    Ansible deletes its temporary folder at the end of the run; all of its processes share it.
    """
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return Path(constants.DEFAULT_LOCAL_TMP) / purpose / name


def staging(folder: Path) -> Path:
    """Return the folder of secrets that this run has generated and not kept yet."""
    return temporary("generated", folder)


def current(folder: Path) -> Path:
    """Return the folder to read secrets from: in check mode, a temporary one if secrets were fetched."""
    fetched = temporary("fetched", folder)
    return fetched if fetched.exists() else folder


def existing(path: Path) -> Path | None:
    """Return the file that has a secret: that of its folder, else that of this run; None if there is none."""
    files = (folder(path.parent) / path.name for folder in (current, staging))
    return next((file for file in files if file.exists()), None)


def secret(path: Path, length: int) -> str:
    """Return a secret from its file, or one that this run generates, the same in all of its tasks."""
    if not existing(path):
        create(staging(path.parent) / path.name, f"{generate(length)}\n")
    return read(existing(path) or path)


def staged(folder: Path) -> list[str]:
    """Return the names of secrets that this run has generated and that are not in their folder yet."""
    names = (path.name for path in staging(folder).glob("[!.]*"))
    return sorted(name for name in names if not (current(folder) / name).exists())


def keep(folder: Path) -> list[str]:
    """Write the secrets that this run has generated to their folder. Returns their names."""
    names = staged(folder)
    for name in names:
        create(folder / name, f"{read(staging(folder) / name)}\n")
    return names


def kept(value: str, name: str, folder: Path) -> str:
    """Return the value that counts after keep(): that of the file, if another run has written it first."""
    return read(folder / name) if value == read(staging(folder) / name) else value
