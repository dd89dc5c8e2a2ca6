"""Files and folders of a release, written by root: the build user owns the release, and its links are not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..settings import ReleaseError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def open_folder(folder: Path, top: Path, *, make: bool = False) -> Iterator[int]:
    """Give a descriptor of a folder below `top`, or of `top`; with `make`, missing folders are made.

    Raises ReleaseError where a part below `top`, or its own last one, is a link or a file.
    """
    place = None
    try:
        place = os.open(top, FOLDER)
        for part in folder.relative_to(top).parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=place)
            below = os.open(part, FOLDER, dir_fd=place)
            os.close(place)
            place = below
    except OSError as error:
        if place is not None:
            os.close(place)
        if isinstance(error, FileNotFoundError):
            raise
        raise ReleaseError(f"{folder} must be a folder of the release without a link in its path: {error}") from None
    try:
        yield place
    finally:
        os.close(place)


def replace_file(
    path: Path, top: Path, content: str | bytes, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Write a new file in place of one or of a link. `owner` is a user's and a group's ID.

    Raises ReleaseError like `open_folder`, and where there is a folder of that name.
    """
    with open_folder(path.parent, top) as folder:
        try:
            with suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=folder)
            handle = os.open(path.name, NEW_FILE, mode, dir_fd=folder)
        except (IsADirectoryError, FileExistsError):
            raise ReleaseError(f"{path} must not be in the project: a deployment writes this file.") from None
        with os.fdopen(handle, "wb") as file:
            if owner:
                os.fchown(handle, *owner)
                os.fchmod(handle, mode)
            file.write(content.encode() if isinstance(content, str) else content)
