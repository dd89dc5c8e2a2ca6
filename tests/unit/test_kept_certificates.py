"""Names that the site had before keep a certificate that is valid for them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SPEC = importlib.util.spec_from_file_location(
    "certificate_module", Path(__file__).parents[2] / "plugins/modules/certificate.py"
)
certificate = importlib.util.module_from_spec(SPEC)
sys.modules["certificate_module"] = certificate
SPEC.loader.exec_module(certificate)


@pytest.fixture(autouse=True)
def nothing_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "LETSENCRYPT", tmp_path / "letsencrypt")


def run_command(words: list[str], **_: Any) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def provide(folder: Path, *domains: str, keep: tuple[str, ...] = (), check: bool = False) -> list[str]:
    """Provide a self-signed certificate; return what changed."""
    params = {"provider": "self_signed", "issue": False, "directory": str(folder), "domains": list(domains),
              "keep": list(keep), "lineage": "shop"}  # fmt: skip
    module = SimpleNamespace(params=params, check_mode=check, run_command=run_command, fail_json=pytest.fail)
    made = certificate.Certificate(module)
    made.provide()
    return made.changes


def shown(folder: Path, name: str) -> str:
    """Return the names of the certificate that nginx uses for a name, whose key must belong to it."""
    lines = (folder / f"kept/{name}.conf").read_text()
    chain, key = (line.split()[1].rstrip(";") for line in lines.splitlines())
    public = run_command(["openssl", "x509", "-in", chain, "-noout", "-pubkey"])[1]
    assert public == run_command(["openssl", "pkey", "-in", key, "-pubout"])[1] != ""
    assert Path(key).stat().st_mode & 0o777 == 0o600
    return run_command(["openssl", "x509", "-in", chain, "-noout", "-ext", "subjectAltName"])[1].split("\n")[1].strip()


def test_a_name_that_the_new_certificate_lacks_keeps_the_old_one(tmp_path: Path) -> None:
    provide(tmp_path, "old.example", "10.0.0.1")
    assert provide(tmp_path, "new.example", keep=("old.example", "10.0.0.1"))
    for name in ("old.example", "10.0.0.1"):
        assert shown(tmp_path, name) == "DNS:old.example, IP Address:10.0.0.1"
    assert provide(tmp_path, "new.example", keep=("old.example", "10.0.0.1")) == []
    assert shown(tmp_path, "old.example") == "DNS:old.example, IP Address:10.0.0.1"


def test_the_file_has_the_name_as_the_web_server_includes_it(tmp_path: Path) -> None:
    provide(tmp_path, "Old.Example")
    provide(tmp_path, "new.example", keep=("Old.Example",))
    assert shown(tmp_path, "Old.Example") == "DNS:old.example"


def test_a_name_that_the_certificate_has_uses_it(tmp_path: Path) -> None:
    provide(tmp_path, "a.example", "www.a.example")
    provide(tmp_path, "a.example", "www.a.example", keep=("www.a.example",))
    assert f"ssl_certificate {tmp_path}/fullchain.pem;" in (tmp_path / "kept/www.a.example.conf").read_text()


def test_the_last_certificate_counts(tmp_path: Path) -> None:
    """A name that came, went, came and went again."""
    provide(tmp_path, "a.example")
    provide(tmp_path, "b.example", keep=("a.example",))
    provide(tmp_path, "a.example", "www.a.example", keep=("b.example",))
    provide(tmp_path, "b.example", keep=("a.example",))
    assert shown(tmp_path, "a.example") == "DNS:a.example, DNS:www.a.example"


def test_a_name_without_any_certificate_does_not_keep_the_web_server_from_starting(tmp_path: Path) -> None:
    provide(tmp_path, "new.example", keep=("old.example",))
    assert shown(tmp_path, "old.example") == "DNS:new.example"


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    provide(tmp_path, "old.example")
    assert provide(tmp_path, "new.example", keep=("old.example",), check=True)
    assert not (tmp_path / "kept").exists()
