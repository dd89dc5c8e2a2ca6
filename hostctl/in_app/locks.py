"""Lock files: one worker of a name and release, one beat; and whether a worker is dead."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def lock(path: Path, seconds: float = 0) -> bool:
    """Lock a file until this process ends; return False when another process holds the lock for `seconds` more.

    A POSIX lock (lockf, not flock) belongs to the process alone, so the children of a killed worker do not keep it.
    Closing any descriptor of the file releases it: nothing else in this process may open the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


@contextmanager
def dead_worker(node: str, releases: Path) -> Iterator[bool]:
    """Yield whether a worker of this host is dead; it cannot start before this ends."""
    name, _, release = node.rpartition("@")[0].partition(".")
    try:
        descriptor = os.open(releases / release / "run" / f"{name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        yield True  # The release was removed.
        return
    try:
        try:
            # Shared, because reading is enough for that: a worker cannot write to the folders of other releases.
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
