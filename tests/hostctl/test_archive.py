"""Receiving the archive of a release: in parts, with little memory, and only where there is room."""

from __future__ import annotations

import errno
import gzip
import io
import os
import time
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import pytest

from hostctl import cli
from hostctl.deploy import archive, build, record
from hostctl.host import Host
from hostctl.settings import BusyError, ReleaseError
from tests.hostctl.fakes import NEW, make_release

KEY = uuid.uuid4().hex


@pytest.fixture(autouse=True)
def owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.shutil, "chown", lambda *arguments: None)


class Zeros(io.RawIOBase):
    """So many bytes, which are nowhere in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        found = bytes(min(size, self.left) if size >= 0 else self.left)
        self.left -= len(found)
        return found


def receive(host: Host, *words: str, data: Any = b"") -> None:
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    archive.receive(host, cli.parse(["receive", NEW, "--key", KEY, *words]), source)


def store(host: Host, *words: str, data: Any = b"") -> Path:
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    return archive.store(host, cli.parse(["deploy", NEW, "-", "--key", KEY, *words]), source)


def incoming(host: Host) -> list[str]:
    return sorted(file.name for file in (host.settings.home / "incoming").iterdir())


def test_a_large_archive_needs_little_memory(host: Host) -> None:
    size = 200 * 2**20
    tracemalloc.start()
    try:
        stored = store(host, "--bytes", str(size), data=Zeros(size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored.stat().st_size == size
    assert peak < 8 * 2**20


def test_parts_are_joined_also_when_one_comes_twice(host: Host) -> None:
    receive(host, "--bytes", "9", "--offset", "0", data=b"arc")
    for _ in range(2):
        receive(host, "--bytes", "9", "--offset", "3", data=b"hi")
    with pytest.raises(ReleaseError, match="8 of 9 bytes"):
        store(host, "--bytes", "9", "--offset", "5", data=b"ved")
    stored = store(host, "--bytes", "9", "--offset", "5", data=b"ve-1")
    assert stored.read_bytes() == b"archive-1"
    assert incoming(host) == [stored.name]


def test_a_part_without_the_ones_before_it_is_refused(host: Host) -> None:
    with pytest.raises(ReleaseError, match="The beginning of the archive is missing"):
        store(host, "--bytes", "9", "--offset", "5", data=b"ve-1")


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    found = os.statvfs("/")
    values = [*found[:2], *found[2:4], free // found.f_frsize, *found[5:]]
    monkeypatch.setattr(build.os, "statvfs", lambda path: os.statvfs_result(values))


def test_room_is_checked_before_anything_is_sent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive and its files, beside what the environment of a release needs."""
    gigabyte = 2**30
    room(monkeypatch, gigabyte)
    receive(host, "--bytes", str(gigabyte // 4), "--unpacked", str(gigabyte // 2))
    with pytest.raises(ReleaseError, match="no space for another release: 1024 MiB are free"):
        receive(host, "--bytes", str(gigabyte // 2), "--unpacked", str(gigabyte // 2))
    with pytest.raises(ReleaseError, match="no space for another release"):
        store(host, "--bytes", "5", "--unpacked", str(gigabyte), data=b"bytes")
    make_release(host, NEW)
    receive(host, "--bytes", str(gigabyte // 2), "--unpacked", str(gigabyte // 2))
    assert incoming(host) == []


def test_the_size_of_an_archive_without_its_compression_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(12345)))
    assert archive.unpacked_size(tmp_path / "a.tar.gz") == 12345
    (tmp_path / "b.tar.gz").write_bytes(b"")
    assert archive.unpacked_size(tmp_path / "b.tar.gz") == 0


def test_a_running_deployment_is_reported_before_anything_is_sent(host: Host) -> None:
    book = record.Record(host.settings)
    book.hold()
    with pytest.raises(BusyError):
        receive(host, "--bytes", "9", "--unpacked", "9")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any, length: int) -> None:
        target.write(source.read(2))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.shutil, "copyfileobj", full)
    with pytest.raises(ReleaseError, match=r"^The disk of \S+ is full, so the archive cannot be stored\. Free some"):
        store(host, data=b"archive")
    assert incoming(host) == []


def test_a_part_whose_sender_is_gone_is_removed(host: Host) -> None:
    folder = host.settings.home / "incoming"
    for name, age in (("old", 2 * archive.STALE), ("new", 0)):
        (folder / f"{name}.part").touch()
        os.utime(folder / f"{name}.part", (time.time() - age,) * 2)
    (folder / "built.tar.gz").touch()
    archive.discard(host)
    assert incoming(host) == ["new.part"]
