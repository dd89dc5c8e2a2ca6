"""The site as the control machine sees it: reachable, closed, another server's, or behind a proxy that refuses."""

from __future__ import annotations

import hashlib
import http.server
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins"))
from action import public_check

NOWHERE = "site.invalid"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        self.send_response(self.server.later.pop(0) if self.server.later else self.server.status)
        self.end_headers()

    def do_CONNECT(self) -> None:
        self.send_error(403, "Forbidden by policy")

    def log_message(self, *arguments: object) -> None:
        pass


def serve(status: int = 200) -> http.server.HTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.status, server.hosts, server.later = status, [], []
    return server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=site", "-days", "1"]
    files = ["-keyout", str(folder / "pem"), "-out", str(folder / "crt")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    (folder / "pem").write_text((folder / "pem").read_text() + (folder / "crt").read_text())
    return folder / "pem"


@pytest.fixture
def site(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = serve()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.fingerprint = hashlib.sha256(
        ssl.PEM_cert_to_DER_cert(certificate.read_text()[certificate.read_text().index("-----BEGIN CERT") :])
    ).hexdigest()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def check(port: int, fingerprint: str, domain: str = "127.0.0.1", **more: Any) -> tuple[str, list[str]]:
    given = {"path": "/", "status": 200, "address": "127.0.0.1", "behind_proxy": False, "maintenance": False}
    given |= {"seconds": 2, "patience": 0} | more
    return public_check.check(domain=domain, port=port, fingerprints=[fingerprint], **given)


@pytest.mark.parametrize(("status", "is_warning"), [(403, True), (429, True), (404, False), (500, False)])
def test_only_a_challenge_of_a_proxy_in_front_is_accepted(
    monkeypatch: pytest.MonkeyPatch, status: int, is_warning: bool
) -> None:
    monkeypatch.setattr(public_check, "request", lambda *words: (public_check.Seen(status, "of a CDN"), ""))
    monkeypatch.setattr(public_check, "is_trusted", lambda *words: True)
    problem, warnings = check(443, "of the server", behind_proxy=True)
    assert (bool(warnings), bool(problem)) == (is_warning, not is_warning)
    assert f"answers {status}" in "".join([problem, *warnings])


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


@pytest.mark.parametrize("domain", ["127.0.0.1", "localhost", NOWHERE])
def test_the_site_is_reached_by_its_name_or_else_at_the_servers_address(site: Any, domain: str) -> None:
    assert check(site.server_port, site.fingerprint.upper(), domain) == ("", [])
    assert site.hosts == [f"{domain}:{site.server_port}"]


def test_a_closed_port_is_told(site: Any, closed_port: int) -> None:
    error, warnings = check(closed_port, site.fingerprint)
    place = f"https://127.0.0.1:{closed_port}/ cannot be reached from this machine (127.0.0.1, port {closed_port}: "
    assert error.startswith(place)
    assert "The release is live" in error
    assert "provider's firewall" in error
    assert "app_public_check: false" in error
    assert warnings == []


def test_another_answer_than_on_the_server_fails(site: Any) -> None:
    site.status = 404
    assert "answers 404 to this machine" in check(site.server_port, site.fingerprint, patience=60)[0]
    assert len(site.hosts) == 1, "requested again"


@pytest.mark.parametrize("maintenance", [True, False])
def test_503_is_right_during_maintenance_only(site: Any, maintenance: bool) -> None:
    site.status = 503
    error, warnings = check(site.server_port, site.fingerprint, maintenance=maintenance)
    assert ("answers 503 to this machine, but 200" in error) is not maintenance
    assert warnings == []


def test_the_page_may_be_right_during_maintenance_too(site: Any) -> None:
    assert check(site.server_port, site.fingerprint, maintenance=True) == ("", [])


def test_a_rate_limit_proves_nothing(site: Any) -> None:
    site.status = 429
    assert "app_trusted_addresses" in check(site.server_port, site.fingerprint)[0]


@pytest.mark.parametrize("later", [429, 502, 503, 504])
def test_an_answer_that_says_later_is_requested_again(site: Any, later: int) -> None:
    site.later = [later]
    assert check(site.server_port, site.fingerprint, patience=10) == ("", [])
    assert len(site.hosts) == 2


def test_a_name_that_leads_to_another_server_is_warned_of(site: Any) -> None:
    error, warnings = check(site.server_port, "ab:cd")
    assert "where another server answers" in warnings[0]
    assert error == ""


def test_another_server_and_no_address_of_the_own_only_warns(site: Any) -> None:
    error, warnings = check(site.server_port, "ab:cd", address="also.invalid")
    assert error == ""
    assert "where another server answers" in warnings[0]


def test_a_proxys_refusal_is_not_the_sites(site: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve()
    threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("https_proxy", f"http://user:secret@127.0.0.1:{proxy.server_port}")
    error, warnings = check(closed_port, site.fingerprint)
    proxy.shutdown()
    assert error == ""
    assert "was not requested from this machine" in warnings[0]
    assert "Forbidden by policy" in warnings[0]
    assert "secret" not in warnings[0]


def test_without_any_address_nothing_is_proven(site: Any) -> None:
    error, warnings = check(443, site.fingerprint, NOWHERE, address="also.invalid")
    assert error == ""
    assert "was not requested from this machine" in warnings[0]
