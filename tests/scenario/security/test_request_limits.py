"""Visitors who request too much, send too much or are too slow; and the headers of every answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from installation import Installation, run_python
from probes import Answer, Visitor
from testinfra.host import Host

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
# The largest request body.
LARGEST = 10 * 2**20
SLOW_CLIENTS = 200

# Runs on the host, so with another address than the slow clients. Prints status and seconds of a hundred visits.
VISITOR = """
import http.client, ssl, time
context = ssl._create_unverified_context()
for _ in range(100):
    began = time.monotonic()
    connection = http.client.HTTPSConnection('127.0.0.1', context=context, timeout=30)
    connection.request('GET', '/', headers={'Host': 'ADDRESS'})
    response = connection.getresponse()
    response.read()
    connection.close()
    print(response.status, time.monotonic() - began)
"""


def any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(app: Installation, timeout: float = 30) -> ssl.SSLSocket:
    plain = socket.create_connection((app.address, 443), timeout)
    return any_certificate().wrap_socket(plain, server_hostname=app.address)


def ask(app: Installation, head: str, body: bytes = b"") -> http.client.HTTPResponse:
    """Return the answer to a raw request."""
    connection = connect(app)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    # The server need not read on when it refuses the head.
    with contextlib.suppress(ConnectionError):
        connection.sendall(body)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


# --- Headers -------------------------------------------------------------------------------------------------------


def static_file(visitor: Visitor) -> str:
    return visitor.get("/").body.partition('rel="stylesheet" href="')[2].partition('"')[0]


def check_headers(answer: Answer | http.client.HTTPResponse) -> None:
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    assert answer.headers["Server"] == "nginx", "the version must not be shown"
    assert len(answer.headers.get_all("X-Frame-Options")) == 1


def test_headers_on_every_kind_of_answer(visitor: Visitor, app: Installation) -> None:
    for path, status in {"/": 200, static_file(visitor): 200, "/nothing/": 404, "/static/nothing": 404}.items():
        answer = visitor.get(path)
        assert answer.status == status, path
        check_headers(answer)
    response = ask(app, f"POST / HTTP/1.1\nHost: {app.address}\nContent-Length: {LARGEST + 1}\nConnection: close")
    assert response.status == 413
    check_headers(response)


def test_headers_while_the_application_is_down(host: Host, app: Installation, visitor: Visitor) -> None:
    link = f"/srv/{app.name}/current/run/web.sock"
    host.check_output(f"mv {link} {link}.away")
    try:
        answer = visitor.get("/")
    finally:
        host.check_output(f"mv {link}.away {link}")
    assert answer.status == 502
    check_headers(answer)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_other_host_names_get_no_answer(app: Installation, scheme: str) -> None:
    plain = socket.create_connection((app.address, 80 if scheme == "http" else 443), 10)
    connection = any_certificate().wrap_socket(plain) if scheme == "https" else plain
    connection.sendall(b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert connection.recv(1000) == b""


def test_application_gets_the_requested_host_name(app: Installation) -> None:
    """An absolute URL in the request line counts, not the Host header: nginx passes no other name on."""
    head = f"GET https://{app.address}/ HTTP/1.1\nHost: www.example.org\nConnection: close"
    assert ask(app, head).status == 200


# --- Too much ------------------------------------------------------------------------------------------------------

# From here on one Debian is enough: the limits are nginx's, with the same configuration on both.


def requests_seen(host: Host, app: Installation, path: str) -> int:
    """Return how many answers to a path came from the application."""
    log = f"/var/log/nginx/{app.name}.access.log"
    return int(host.check_output(f"grep -c '{path} HTTP.* upstream=[0-9]' {log} || true"))


@pytest.mark.os("debian13")
def test_too_large_requests_do_not_reach_the_application(host: Host, app: Installation, visitor: Visitor) -> None:
    path = f"/{uuid.uuid4().hex}/"
    head = f"POST {path} HTTP/1.1\nHost: {app.address}\nConnection: close\n"
    assert ask(app, f"{head}Content-Length: {LARGEST + 1}").status == 413
    # Without a length, and too large in the end.
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert ask(app, f"{head}Transfer-Encoding: chunked", chunk * (LARGEST // 65536 + 1) + b"0\r\n\r\n").status == 413
    assert requests_seen(host, app, path) == 0
    # A smaller request does.
    assert ask(app, f"{head}Content-Length: 4", b"a=bc").status in (403, 404)
    assert requests_seen(host, app, path) == 1


def over_the_rate(host: Host, app: Installation, path: str) -> int:
    """Return how many requests for a path the rate limit refused: the limit of connections answers 429, too."""
    log = f"/var/log/nginx/{app.name}.error.log"
    return int(host.check_output(f"grep -c 'limiting requests, .*GET {path} HTTP' {log} || true"))


@pytest.mark.os("debian13")
def test_rate_limit_per_address(host: Host, app: Installation, visitor: Visitor, variables: dict[str, Any]) -> None:
    """A burst far beyond a browser's: some of it is refused, and soon after requests succeed again."""
    unknown, ready = (f"{path}?{uuid.uuid4().hex}" for path in ("/nothing/", "/readyz/"))

    def knock(count: int, path: str) -> list[int]:
        connection = http.client.HTTPSConnection(app.address, context=any_certificate(), timeout=90)
        answers = []
        for _ in range(count):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            answers.append(response.status)
        connection.close()
        return answers

    def burst(path: str) -> list[int]:
        with ThreadPoolExecutor(12) as pool:
            return [status for answers in pool.map(knock, [60] * 12, [path] * 12) for status in answers]

    answers = burst(unknown)
    assert set(answers) == {404, 429}, Counter(answers)
    assert answers.count(404) >= variables["app_rate_limit"]["burst"], "a burst is allowed"
    assert over_the_rate(host, app, unknown)
    assert 429 in burst(ready), "it queries the database and Redis, so it counts"
    assert over_the_rate(host, app, ready)
    assert set(burst("/healthz/")) == {200}, "health checks are not limited"
    deadline = time.monotonic() + 20
    while visitor.get("/").status == 429:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.os("debian13")
def test_refusal_is_a_page(app: Installation, visitor: Visitor, variables: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    # More at once than the burst that is allowed, so that the site refuses some however slowly it answers.
    count = variables["app_rate_limit"]["burst"] + 20
    with ThreadPoolExecutor(count) as pool:
        while time.monotonic() < deadline:
            for answer in pool.map(lambda _: visitor.get("/nothing/"), range(count)):
                if answer.status == 429:
                    assert "too many requests" in answer.body
                    check_headers(answer)
                    return
    pytest.fail("429 was not seen")


# --- Too slow ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_clients(host: Host, app: Installation) -> Iterator[None]:
    """From this machine: heads that never end, and uploads of single bytes; dropped clients reconnect."""
    over = threading.Event()

    def dawdle(number: int) -> None:
        begin = f"GET / HTTP/1.1\r\nHost: {app.address}\r\n"
        upload = f"POST /report/ HTTP/1.1\r\nHost: {app.address}\r\nContent-Length: 5000000\r\n\r\n"
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection = connect(app, 5)
                connection.sendall((upload if number % 2 else begin).encode())
                while not over.wait(1 + number % 3):
                    connection.sendall(b"x" if number % 2 else b"X-A: b\r\n")
            over.wait(3)

    threads = [threading.Thread(target=dawdle, args=[number], daemon=True) for number in range(SLOW_CLIENTS)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.os("debian13")
def test_slow_clients_do_not_slow_the_others(host: Host, app: Installation, slow_clients: None) -> None:
    """A visitor with another address, while 200 connections are slow and another client uploads too much."""
    count = "ss --no-header --tcp state established '( sport = :443 )' | wc -l"
    deadline = time.monotonic() + 60
    while int(host.check_output(count)) < SLOW_CLIENTS * 0.8:
        assert time.monotonic() < deadline, "the slow clients are not connected"
        time.sleep(0.2)
    head = f"POST / HTTP/1.1\nHost: {app.address}\nContent-Length: {LARGEST + 1}\nConnection: close"
    with ThreadPoolExecutor(2) as pool:
        measured = pool.submit(run_python, host, VISITOR.replace("ADDRESS", app.address))
        for _ in range(20):
            with contextlib.suppress(OSError):
                ask(app, head)
        lines = [line.split() for line in measured.result().splitlines()]
    assert {status for status, _ in lines} == {"200"}
    seconds = sorted(float(value) for _, value in lines)
    print(f"median {statistics.median(seconds):.3f} s, 99th percentile {seconds[98]:.3f} s")
    assert seconds[98] < 1.0


@pytest.mark.os("debian13")
def test_slow_request_head_is_dropped(app: Installation) -> None:
    """A head that does not end within client_header_timeout."""
    connection = connect(app, 30)
    began = time.monotonic()
    connection.sendall(b"GET / HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionError):
        connection.recv(1000)
    assert 5 < time.monotonic() - began < 20
