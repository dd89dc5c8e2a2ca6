"""What the import refuses before it asks a database, and how it is called. tests/host_services has the rest."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hostctl import cli, dump_file, import_database
from hostctl.deploy.record import Record
from hostctl.host import Host
from hostctl.settings import ReleaseError

PLAIN = b"--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n"


def tar(name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PLAIN, dump_file.PLAIN),
        (b"SET ROLE olduser;\n" + PLAIN, dump_file.PLAIN),
        (gzip.compress(PLAIN, mtime=0), dump_file.GZIP),
        (b"PGDMP\x01\x0e", dump_file.ARCHIVE),
        (tar("toc.dat"), dump_file.ARCHIVE),
    ],
)
def test_the_kind_of_a_dump_is_known_by_its_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(content)
    assert dump_file.DumpFile(path).kind == kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a dump of PostgreSQL"),
        (b"-- MySQL dump 10.19\n", "is not a dump of PostgreSQL"),
        (b"SQLite format 3\0", "is not a dump of PostgreSQL"),
        (tar("media/plant.jpg"), "is not a dump of PostgreSQL"),
        (gzip.compress(b"nothing", mtime=0), "is not a dump of PostgreSQL"),
        (PLAIN.decode().encode("utf-16"), "PowerShell"),
        (b"\x28\xb5\x2f\xfd" + PLAIN, "Unpack it first: zstd -d"),
        (b"PK\x03\x04", "Unpack it first: unzip"),
        (gzip.compress(b"PGDMP", mtime=0), "Unpack it first: gunzip"),
        (gzip.compress(PLAIN, mtime=0)[:20], "not complete, or damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "dump.sql"
    path.write_bytes(content)
    with pytest.raises(ReleaseError, match=reason):
        dump_file.DumpFile(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"missing\.dump cannot be read: No such file"):
        dump_file.DumpFile(tmp_path / "missing.dump")
    with pytest.raises(ReleaseError, match="is a folder"):
        dump_file.DumpFile(tmp_path)


# --- The command


@pytest.fixture
def program(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: host.settings)
    monkeypatch.setattr(cli, "Host", lambda settings: host)
    monkeypatch.setattr(cli.upgrade, "upgrade", lambda settings: None)


@pytest.mark.usefixtures("program")
def test_it_is_refused_while_a_deployment_runs(host: Host, tmp_path: Path, capsys: Any) -> None:
    running = Record(host.settings)
    running.hold()
    assert cli.main(["import-database", str(tmp_path / "x.dump")]) == cli.BUSY
    assert "is running" in capsys.readouterr().err
    running.release()
    running.begin("deploy", "new-2", "anna")
    assert cli.main(["import-database", str(tmp_path / "x.dump")]) == cli.FAILED
    assert "The deploy of new-2 was killed. Run it again" in capsys.readouterr().err


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("words", [[], ["a.dump", "--return", "shop_before_1"]])
def test_a_file_or_a_kept_database_is_required(words: list[str], capsys: Any) -> None:
    assert cli.main(["import-database", *words]) == cli.WRONG_USAGE


@pytest.mark.usefixtures("program")
def test_before_the_server_has_its_settings(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.dump").write_bytes(PLAIN)
    assert cli.main(["import-database", str(tmp_path / "x.dump")]) == cli.FAILED
    assert "migrate.env is missing: run playbooks/provision.yml" in capsys.readouterr().err


def test_the_largest_tables_are_named() -> None:
    assert import_database.table_list({"a": 0, "b": 2, "c": 1234}) == "c 1,234, b 2"
    assert import_database.table_list({"a": 0}) == "no rows"
    many = {f"t{number}": number for number in range(1, 11)}
    assert import_database.table_list(many).endswith("t3 3, and 2 more")
