"""The archive of a release: received in parts, never held in memory, and stored where the build user can read it."""

from __future__ import annotations

import errno
import os
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import BinaryIO

from ..host import Host
from ..settings import ReleaseError, Settings
from .build import check_disk_space
from .record import Record

CHUNK = 2**20
# Seconds after which a partly received archive is given up.
STALE = 3600


def folder(settings: Settings) -> Path:
    return settings.home / "incoming"


def part_file(settings: Settings, options: Namespace) -> Path:
    """Return the file that an archive is received into, named after the call's idempotency key."""
    return folder(settings) / f"{options.key.hex}.part"


def receive(host: Host, options: Namespace, stdin: BinaryIO) -> None:
    """Store a part of an archive; without an offset, only check that there is room for the whole.

    Raises BusyError when a deployment is running, ReleaseError when the disk has no room.
    """
    if options.offset is None:
        Record(host.settings).refuse_second()
        require_space(host, options)
    else:
        append(part_file(host.settings, options), options.offset, stdin)


def require_space(host: Host, options: Namespace) -> None:
    """Raise ReleaseError unless the host has room for the archive and its release."""
    if options.release not in host.built():
        check_disk_space(host, stored=options.bytes or 0, unpacked=options.unpacked or 0)


def store(host: Host, options: Namespace, stdin: BinaryIO) -> Path:
    """Store the archive, or its last part, where the build user can read it; return its path.

    Raises ReleaseError when it is incomplete, cannot be read, or when the disk has no room for it.
    """
    part = part_file(host.settings, options)
    remove_stale(host.settings)
    if str(options.archive) == "-":
        if not options.offset:
            require_space(host, options)
        append(part, options.offset or 0, stdin)
    else:
        copy(options.archive, part)
    size = part.stat().st_size
    if options.bytes not in (None, size):
        os.truncate(part, options.offset or 0)
        raise ReleaseError(f"The archive is incomplete: {size} of {options.bytes} bytes. Run the same command again.")
    path = folder(host.settings) / f"{options.release}.{os.getpid()}.tar.gz"
    part.chmod(0o640)
    shutil.chown(part, "root", host.settings.name)
    part.rename(path)
    return path


def append(part: Path, offset: int, source: BinaryIO) -> None:
    """Write a part of an archive at its offset, so that a repeated call changes nothing."""
    part.touch(0o600)
    with part.open("r+b") as file:
        if file.seek(0, os.SEEK_END) < offset:
            raise ReleaseError("The beginning of the archive is missing. Run the same command again.")
        file.truncate(offset)
        file.seek(offset)
        try:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
        except OSError as error:
            raise disk_error(part, error) from None


def copy(archive: Path, part: Path) -> None:
    try:
        with archive.open("rb") as source:
            append(part, 0, source)
    except OSError as error:
        raise ReleaseError(f"Cannot read the archive {archive}: {error.strerror}.") from None


def disk_error(part: Path, error: OSError) -> Exception:
    """Return the error to raise when a part cannot be written; on a full disk the part is removed."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    part.unlink(missing_ok=True)
    return ReleaseError(
        f"The disk of {part.parent} is full, so the archive cannot be stored. Free some space "
        "(`du -xh --max-depth=3 / | sort -h | tail`), then run the same command again."
    )


def skip(stdin: BinaryIO) -> None:
    """Read what is sent and not needed: the sender would see a broken pipe."""
    while stdin.read(CHUNK):
        pass


def unpacked_size(archive: Path) -> int:
    """Return the bytes of a .tar.gz without its compression, from its last four bytes: at least that many."""
    try:
        with archive.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    except OSError:
        return 0


def remove_stale(settings: Settings) -> None:
    """Remove partly received archives whose sender is gone."""
    for part in folder(settings).glob("*.part"):
        if time.time() - part.stat().st_mtime > STALE:
            part.unlink(missing_ok=True)


def discard(host: Host) -> None:
    """Remove stored archives: their releases are built, or failed."""
    for archive in folder(host.settings).glob("*.tar.gz"):
        archive.unlink(missing_ok=True)
    remove_stale(host.settings)
