"""The site as a visitor sees it: TLS, redirects, assets, headers, health, and Flower's password."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl

import pytest
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host

PROTECTION = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Strict-Transport-Security": r"max-age=\d+",
}
ASSET = re.compile(r'(?:href|src)="(/static/[^"]+)"')


def test_shop_is_served(visitor: Visitor, release: str) -> None:
    """The visitor trusts the host's own certificate only, and only for the site's name."""
    answer = visitor.get("/")
    assert answer.status == 200
    assert "Seeds for small gardens" in answer.body
    assert answer.body.count('<li class="card">') >= 6
    assert release in answer.body


@pytest.mark.parametrize("path", ["/", "/products/tomato/?a=b"])
def test_http_redirects_to_https(app: Installation, path: str) -> None:
    connection = http.client.HTTPConnection(app.address, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (301, f"{app.url}{path}")


def test_assets_are_served_and_cached(visitor: Visitor) -> None:
    assets = set(ASSET.findall(visitor.get("/").body))
    assert {asset.rpartition(".")[2] for asset in assets} >= {"css", "svg"}
    for asset in assets:
        answer = visitor.get(asset)
        assert answer.status == 200, asset
        assert answer.body
        assert "immutable" in answer.headers["Cache-Control"]
        assert int(re.search(r"max-age=(\d+)", answer.headers["Cache-Control"])[1]) >= 30 * 24 * 3600


def test_text_is_compressed(visitor: Visitor) -> None:
    css = next(asset for asset in ASSET.findall(visitor.get("/").body) if asset.endswith(".css"))
    assert visitor.get(css, headers={"Accept-Encoding": "gzip"}).headers["Content-Encoding"] == "gzip"


def test_pages_are_not_compressed(visitor: Visitor) -> None:
    """Their length would reveal the secrets in them (BREACH)."""
    answer = visitor.get("/", headers={"Accept-Encoding": "gzip"})
    assert "Seeds for small gardens" in answer.body
    assert answer.headers["Content-Encoding"] is None


def ask_for(host_name: str, connection: http.client.HTTPConnection) -> int:
    """Return the status of the answer to a request for that name."""
    connection.request("GET", "/", headers={"Host": host_name})
    return connection.getresponse().status


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_other_host_names_are_refused(app: Installation, tls: bool) -> None:
    """nginx closes the connection."""
    connection = http.client.HTTPConnection(app.address, timeout=5)
    if tls:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(app.address, timeout=5, context=context)
    with pytest.raises((http.client.RemoteDisconnected, ssl.SSLError)):
        ask_for("elsewhere.example", connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_tls_is_supported(app: Installation, visitor: Visitor, version: ssl.TLSVersion) -> None:
    visitor.context.minimum_version = visitor.context.maximum_version = version
    assert visitor.get("/healthz/").status == 200


def test_http_2_is_supported(app: Installation, visitor: Visitor) -> None:
    visitor.context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection((app.address, 443), timeout=5)
    with visitor.context.wrap_socket(plain, server_hostname=app.address) as connection:
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/"])
def test_health_names_the_release(visitor: Visitor, release: str, path: str) -> None:
    answer = visitor.get(path)
    assert (answer.status, answer.json["status"], answer.json["release"]) == (200, "ok", release)


def test_readiness_names_every_component(visitor: Visitor) -> None:
    components = visitor.get("/readyz/").json["components"]
    assert components == dict.fromkeys(("database", "migrations", "broker", "cache"), "ok")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/healthz/", 200),
        ("ASSET", 200),
        ("/admin/login/", 200),
        ("/no/such/", 404),
        ("/static/no.css", 404),
    ],
)
def test_security_headers(visitor: Visitor, path: str, status: int) -> None:
    place = path.replace("ASSET", ASSET.findall(visitor.get("/").body)[0])
    answer = visitor.get(place)
    assert answer.status == status
    for header, value in PROTECTION.items():
        assert re.fullmatch(value, answer.headers[header] or ""), f"{header} of {place}"
        assert len(answer.headers.get_all(header)) == 1
    assert answer.headers["Server"] == "nginx"


def test_missing_page_is_not_found(visitor: Visitor) -> None:
    answer = visitor.get("/no/such/page/")
    assert answer.status == 404
    assert "Traceback" not in answer.body
    assert "DEBUG" not in answer.body


def test_form_without_its_token_is_refused(visitor: Visitor) -> None:
    answer = visitor.request("/products/tomato/", b"quantity=1", True, {"Referer": f"{visitor.url}/"})
    assert answer.status == 403


def test_large_upload_is_refused(visitor: Visitor) -> None:
    assert visitor.request("/register/", b"x" * 30_000_000, False, {"Referer": f"{visitor.url}/"}).status == 413


# --- What clients send -------------------------------------------------------------------

# On one Debian: gunicorn is the same release on both, and nginx has the same configuration.


@pytest.mark.os("debian13")
@pytest.mark.parametrize(
    "header",
    [
        "Forwarded: proto=http",
        "SCRIPT_NAME: /elsewhere",
        "X-Forwarded-Host: elsewhere.example",
        "X-Forwarded-Port: 80",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Protocol: http",
        "X-Forwarded-Ssl: off",
        "X-Script-Name: /elsewhere",
    ],
)
def test_claims_of_clients_are_ignored(visitor: Visitor, header: str) -> None:
    name, _, value = header.partition(": ")
    answer = visitor.get("/", headers={name: value})
    assert answer.status == 200
    assert "elsewhere" not in answer.body


@pytest.mark.os("debian13")
@pytest.mark.parametrize(("length", "status"), [(4200, 200), (8100, 200), (9000, 414)])
def test_long_urls(visitor: Visitor, length: int, status: int) -> None:
    assert visitor.get(f"/?a={'x' * length}").status == status


@pytest.mark.os("debian13")
@pytest.mark.parametrize(
    ("name", "disposition"),
    [("a.html", "attachment"), ("a.SVG", "attachment"), ("a.xml", "attachment"), ("a.png", None), ("a.txt", None)],
)
def test_uploaded_pages_are_downloaded(
    host: Host, app: Installation, visitor: Visitor, name: str, disposition: str | None
) -> None:
    """A page among the uploaded files could ask for a password; in an <img> an SVG is still shown."""
    folder = f"/srv/{app.name}/shared/media/test"
    host.check_output(f"install -d -m 755 {folder} && echo x >{folder}/{name} && chmod 644 {folder}/{name}")
    try:
        answer = visitor.get(f"/media/test/{name}")
    finally:
        host.check_output(f"rm -r {folder}")
    assert answer.status == 200
    assert answer.headers["Content-Disposition"] == disposition
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert visitor.get("/media/test/").headers["Content-Disposition"] is None


# --- Flower ------------------------------------------------------------------------------


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", ["/flower/", "/flower/workers", "/flower/api/workers", "/flower/tasks"])
def test_flower_requires_its_password(app: Installation, visitor: Visitor, path: str) -> None:
    assert visitor.get(path).status == 401
    assert visitor.get(path, headers=basic(app.flower_user, "wrong")).status == 401
    assert visitor.get(path, headers=basic(app.flower_user, app.secret("admin_password"))).status == 401


def test_flower_opens_with_its_password(app: Installation, visitor: Visitor) -> None:
    answer = visitor.get("/flower/", headers=basic(app.flower_user, app.secret("flower_password")))
    assert (answer.status, answer.url) == (200, f"{app.url}/flower/")
    assert "Flower" in answer.body


def test_flower_sees_every_worker(app: Installation, visitor: Visitor, release: str) -> None:
    expected = {f"{worker['name']}.{release}@{app.hostname}" for worker in app.workers}
    headers = basic(app.flower_user, app.secret("flower_password"))

    def online() -> set[str]:
        states = visitor.get("/flower/api/workers?status=1", headers=headers).json
        return {worker for worker, is_online in states.items() if is_online}

    wait_for(online, 60, f"Flower shows {expected} online", lambda seen: seen == expected)


@pytest.mark.parametrize("path", ["/status/", "/status/index.html"])
def test_the_status_page_requires_flowers_password(app: Installation, visitor: Visitor, path: str) -> None:
    assert visitor.get(path).status == 401
    assert visitor.get(path, headers=basic(app.flower_user, "wrong")).status == 401


@pytest.mark.parametrize("path", ["/flower/metrics", "/flower/healthcheck", "/flower//metrics"])
def test_flower_pages_without_a_password_are_closed(app: Installation, visitor: Visitor, path: str) -> None:
    """Flower answers these without a password, so nginx refuses them to all."""
    assert visitor.get(path).status == 404
    headers = basic(app.flower_user, app.secret("flower_password"))
    assert visitor.get(path, headers=headers).status == 404
