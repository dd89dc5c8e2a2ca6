"""Read a file that pg_dump wrote: plain SQL, plain SQL compressed by gzip, or an archive (custom or tar format)."""

from __future__ import annotations

import gzip
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .database import Database
from .dump_filter import DumpFilter
from .settings import ReleaseError, tail

PLAIN, GZIP, ARCHIVE = "plain", "gzip", "archive"
HEADER = b"PostgreSQL database dump"
ARCHIVE_START, GZIP_START, TAR_START = b"PGDMP", b"\x1f\x8b", b"toc.dat\0"
# Programs that unpack what others begin with.
UNPACK = {b"\x28\xb5\x2f\xfd": "zstd -d", b"\xfd7zXZ": "unxz", b"BZh": "bunzip2", b"PK\x03\x04": "unzip"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
HEAD = 16 * 1024  # bytes of a file that show what it is
# What belongs to the other server. The filter leaves it out of plain dumps, too.
RESTORE_OPTIONS = (
    "--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions",
    "--no-security-labels",
)  # fmt: skip


class DumpFile:
    """One dump. Raises ReleaseError when the file is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = kind_of(path)

    def inspect(self, database: Database) -> DumpFilter:
        """Read the dump without its rows where it is an archive, else as a whole; return what it has.

        Raises ReleaseError when the dump is not complete, or is none of one database with tables.
        """
        found = DumpFilter()
        with self.lines(database, only_schema=True) as lines:
            for _ in found.filter(lines):
                pass
        if not found.is_complete:
            raise ReleaseError(f"{self.path} is not complete: its last lines are missing. Copy or dump it again.")
        if not found.tables:
            raise ReleaseError(
                f"{self.path} creates no table. Dump schema and data: pg_dump --format=custom --file=FILE DATABASE"
            )
        return found

    @contextmanager
    def lines(self, database: Database, *, only_schema: bool = False) -> Iterator[Iterator[bytes]]:
        """Yield the lines of the dump as SQL. `only_schema` has an effect on archives."""
        if self.kind == ARCHIVE:
            with self.archive(database, only_schema) as lines:
                yield lines
            return
        with gzip.open(self.path) if self.kind == GZIP else self.path.open("rb") as file:
            try:
                yield iter(file)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ReleaseError(f"{self.path} is not complete, or damaged: {error}") from None

    @contextmanager
    def archive(self, database: Database, only_schema: bool) -> Iterator[Iterator[bytes]]:
        options = [*RESTORE_OPTIONS, *(["--schema-only"] if only_schema else []), "--file=-"]
        with self.path.open("rb") as file, tempfile.TemporaryFile("w+") as errors:
            streams = {"stdin": file, "stdout": subprocess.PIPE, "stderr": errors}
            with subprocess.Popen(**database.call("pg_restore", *options, **streams)) as process:
                try:
                    yield iter(process.stdout)
                except BaseException:
                    process.kill()
                    raise
                if process.wait() != 0:
                    errors.seek(0)
                    raise ReleaseError(f"pg_restore cannot read {self.path}: {explain(errors.read())}")


def explain(reason: str) -> str:
    """Return the last lines of pg_restore's error, and what to do where the dump is of a newer version."""
    text = tail(reason, 5).removeprefix("pg_restore: ").removeprefix("error: ")
    if "unsupported version" in text:
        text += (
            "\nA newer pg_dump wrote it. Dump again as plain SQL: pg_dump --format=plain DATABASE | gzip >FILE.sql.gz"
        )
    return text


def kind_of(path: Path) -> str:
    """Return the kind of a dump by its first bytes. Raises ReleaseError when it is none."""
    if path.is_dir():
        raise ReleaseError(f"{path} is a folder. Dump into one file: pg_dump --format=custom --file=FILE DATABASE")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith((ARCHIVE_START, TAR_START)):
        return ARCHIVE
    for start, program in UNPACK.items():
        if head.startswith(start):
            raise ReleaseError(f"{path} is compressed. Unpack it first: {program} {path}")
    kind = PLAIN
    if head.startswith(GZIP_START):
        head, kind = unpacked_head(path), GZIP
    if kind == GZIP and head.startswith((ARCHIVE_START, TAR_START)):
        raise ReleaseError(f"{path} is a compressed archive of pg_dump. Unpack it first: gunzip {path}")
    if head.startswith(UTF_16):
        raise ReleaseError(f"{path} is UTF-16, as PowerShell's > writes it. Dump again: pg_dump --file=FILE DATABASE")
    if b"\0" in head or HEADER not in head:
        raise ReleaseError(
            f"{path} is not a dump of PostgreSQL. Make one with: pg_dump --format=custom --file=FILE DATABASE"
        )
    return kind


def unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(HEAD)
    except (EOFError, OSError, zlib.error) as error:
        raise ReleaseError(f"{path} is not complete, or damaged: {error}") from None
