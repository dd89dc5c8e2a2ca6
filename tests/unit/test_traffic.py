"""The harness's client and load against a small server on a real socket, which breaks in every way they must see."""

from __future__ import annotations

import json
import select
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from traffic import Sample, Traffic, verdict
from traffic.client import Client, ClosedUnansweredError
from traffic.load import Ask

RELEASE = "aaaa-1111"


class Handler(socketserver.StreamRequestHandler):
    """Answers by path; see `Server`."""

    server: Server

    def handle(self) -> None:
        for number in range(1000):
            asked = self.read()
            if not asked or not self.answer(*asked, number):
                return

    def read(self) -> tuple[str, str, bytes] | None:
        """The method, the path and the body of the next request; None when there is no more."""
        try:
            words = self.rfile.readline().decode().split()
            headers = {}
            while (line := self.rfile.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
        except ConnectionError:
            return None
        if not words:
            return None
        return words[0], words[1], self.rfile.read(int(headers.get("content-length", 0)))

    def answer(self, method: str, path: str, body: bytes, number: int) -> bool:
        """Return whether the connection stays open."""
        self.server.asked.append((method, path, number))
        if path == "/reset/" or (number and self.server.resets_reused):
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if path == "/hang-up/" or (number and self.server.hangs_up_on_reused):
            return False
        if path == "/stall/":
            self.server.over.wait(10)
            return False
        if path == "/half/":
            self.send(200, b'{"whole": tr', length=100)
            return False
        if path.startswith("/slow/"):
            self.server.over.wait(0.5)
        if path == "/tasks/":
            task = str(uuid.uuid4())
            self.server.tasks.append((task, json.loads(body)))
            self.send(202, json.dumps({"id": task}).encode())
        else:
            self.send(500 if path == "/500/" else 200, json.dumps({"status": "ok", "release": RELEASE}).encode())
        return not self.server.closes_idle

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}\r\n"
        self.wfile.write(head.encode() + self.server.headers + b"\r\n" + body)


class Server(socketserver.ThreadingTCPServer):
    """A server of HTTP/1.1 that keeps connections alive, unless it is told to misbehave."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, int]] = []
        self.tasks: list[tuple[str, dict]] = []
        self.headers = b""
        self.closes_idle = self.hangs_up_on_reused = self.resets_reused = False
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def sample_of(server: Server, method: str, path: str, *, kept: bool = False, timeout: float = 5) -> Sample:
    traffic = Traffic(server.url, timeout=timeout)
    return traffic.make(Ask(method, path, kept, f"{method} {path}"), time.time())


# --- One request -------------------------------------------------------------------------


def test_a_whole_answer_is_no_failure(server: Server) -> None:
    sample = sample_of(server, "GET", "/healthz/")
    assert (sample.status, sample.failed, sample.release) == (200, False, RELEASE)
    verdict.no_request_failed([sample])


def test_the_header_names_the_release_of_any_answer(server: Server) -> None:
    server.headers = b"X-Release: bbbb-2222\r\nX-Version: v2\r\n"
    sample = sample_of(server, "GET", "/500/")
    assert (sample.release, sample.version, sample.failed) == ("bbbb-2222", "v2", True)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/reset/", "ClosedUnanswered"),
        ("/hang-up/", "closed before any answer"),
        ("/stall/", "timed out"),
        ("/half/", "IncompleteRead"),
        ("/500/", "status 500"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_way_to_fail_is_seen(server: Server, method: str, path: str, problem: str) -> None:
    sample = sample_of(server, method, path, timeout=0.5 if path == "/stall/" else 5)
    assert sample.failed
    assert problem in sample.problem
    with pytest.raises(AssertionError, match=r"1 of 1 requests failed:\n.*" + path):
        verdict.no_request_failed([sample])
    assert len(server.asked) == 1, "what fails on a new connection is not asked twice"


def test_refused_connection_is_a_failure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        traffic = Traffic(f"http://127.0.0.1:{free.getsockname()[1]}")
        sample = traffic.make(Ask("GET", "/", True, "GET /"), time.time())
    assert sample.problem.startswith("ConnectionRefusedError")


def test_no_request_at_all_proves_nothing() -> None:
    with pytest.raises(AssertionError, match="no request was made"):
        verdict.no_request_failed([])


# --- Kept connections --------------------------------------------------------------------


def test_a_kept_connection_is_used_again_and_a_new_one_is_not(server: Server) -> None:
    client = Client(server.url)
    for kept in (True, True, True, False):
        client.request("GET", "/", kept=kept)
    assert [number for _, _, number in server.asked] == [0, 1, 2, 0]


def wait_until_closed(client: Client) -> None:
    """Wait until the server has closed the idle connection."""
    assert select.select([client.idle[0].sock], [], [], 60)[0]


def test_an_idle_connection_that_the_server_closed_is_left(server: Server) -> None:
    """As a browser does, for a POST too: nothing was sent on it."""
    server.closes_idle = True
    client = Client(server.url)
    for _ in range(3):
        assert client.request("POST", "/tasks/", b"{}", kept=True).status == 202
        wait_until_closed(client)
    assert (client.closed_idle, client.retried) == (2, 0)


@pytest.mark.parametrize("request_", [("GET", "/"), ("POST", "/tasks/", b"{}")], ids=["GET", "POST"])
@pytest.mark.parametrize("way", ["hangs_up_on_reused", "resets_reused"])
def test_a_request_is_sent_once_more_when_a_kept_connection_was_closed(
    server: Server, way: str, request_: tuple
) -> None:
    setattr(server, way, True)
    client = Client(server.url)
    first, second = (client.request(*request_, kept=True) for _ in range(2))
    assert (first.retried, second.retried) == (False, True)
    assert first.status == second.status < 300
    assert client.retried == 1
    assert [number for _, _, number in server.asked] == [0, 1, 0]


def test_a_new_connection_that_is_closed_unanswered_is_a_failure(server: Server) -> None:
    with pytest.raises(ClosedUnansweredError):
        Client(server.url).request("GET", "/hang-up/", kept=True)
    assert len(server.asked) == 1


def test_an_answer_that_breaks_off_is_not_asked_for_again(server: Server) -> None:
    client = Client(server.url)
    client.request("GET", "/", kept=True)
    with pytest.raises(Exception, match="IncompleteRead"):
        client.request("GET", "/half/", kept=True)
    assert (client.retried, len(server.asked)) == (0, 2)


def test_any_certificate_will_do(tmp_path: Path, server: Server) -> None:
    subject = ["-subj", "/CN=elsewhere.example", "-days", "1", "-keyout", "key", "-out", "certificate"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    client = Client(server.url.replace("http:", "https:"))
    server.closes_idle = True
    for _ in range(2):
        assert client.request("GET", "/", kept=True).status == 200
        wait_until_closed(client)
    assert client.closed_idle == 1


# --- Load --------------------------------------------------------------------------------


def slow(traffic: Traffic) -> int:
    """Return the number of slow requests."""
    return sum(sample.name == verdict.SLOW for sample in traffic.samples)


def test_load_mixes_everything_and_keeps_the_ids(server: Server, tmp_path: Path) -> None:
    began = time.time()
    with Traffic(server.url, rate=40, tasks=20, slow_seconds=0.5, log=tmp_path / "new/log") as traffic:
        # On an idle machine, after 1.2 s.
        traffic.wait(lambda now: len(now.samples) >= 60 and slow(now) >= 4, 12, "requests are made at their rate")
        ended = time.time()
    kinds = {(sample.name.split()[0], sample.kept) for sample in traffic.samples}
    assert kinds == {("GET", False), ("GET", True), ("POST", False), ("POST", True)}
    verdict.no_request_failed(traffic.samples)
    verdict.loop_was_open(traffic.samples, bound=3)
    assert sorted(one.id for one in traffic.sent) == sorted(task for task, _ in server.tasks)
    assert {body["task"] for _, body in server.tasks} == {"ledger.effect", "ledger.effect_io", "ledger.sleep"}
    assert slow(traffic) <= 4 * (ended - began) + 2
    assert len((tmp_path / "new/log").read_text().splitlines()) == len(traffic.samples)
    assert len(traffic.samples) <= 64 * (ended - began) + 10


def test_requests_start_whatever_became_of_those_before(server: Server) -> None:
    """Every request waits for its timeout, and yet they start at their rate."""
    began = time.time()
    with Traffic(server.url, rate=50, tasks=0, slow_seconds=0, timeout=0.8, paths=["/stall/"]) as traffic:
        # One after the other they would take 24 s.
        traffic.wait(lambda _: len(server.asked) >= 30, 12, "requests start at their rate")
        ended = time.time()
    assert 30 <= len(traffic.samples) <= 50 * (ended - began) + 5
    starts = sorted(sample.start for sample in traffic.samples)
    assert starts[-1] - starts[0] < ended - began + 0.5
    with pytest.raises(AssertionError, match=r"TimeoutError: timed out(.|\n)*and \d+ more"):
        verdict.no_request_failed(traffic.samples)


def test_load_ends_after_its_seconds(server: Server) -> None:
    with Traffic(server.url, rate=20, slow_seconds=0.1, seconds=0.3) as traffic:
        traffic.pause(1.5)
    assert max(sample.start for sample in traffic.samples) - min(sample.start for sample in traffic.samples) < 1


@pytest.mark.parametrize("bad", [{"rate": 1000}, {"rate": 0, "tasks": 0}, {"seconds": 10_000}, {"seconds": 0}])
def test_load_is_bounded(bad: dict) -> None:
    with pytest.raises(AssertionError, match="at most"):
        Traffic("http://127.0.0.1:1", **bad)


def test_a_task_that_the_site_refuses_is_not_counted_as_sent(server: Server) -> None:
    traffic = Traffic(server.url)
    assert traffic.start_task("ledger.sleep", 1).name == "ledger.sleep"
    server.shutdown()
    server.server_close()
    with pytest.raises(AssertionError, match="not accepted"):
        traffic.start_task("ledger.sleep", 1)
    assert len(traffic.sent) == 1


def test_a_person_can_run_it(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from traffic import __main__

    words = ["traffic", server.url, "--seconds", "0.3", "--rate", "20", "--tasks", "10"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(__main__, "SETTLE_SECONDS", 0)
    assert __main__.main() == 1, "the server here never says that a task succeeded"
    output = capsys.readouterr().out
    assert "failed 0" in output
    assert "releases  aaaa-1111" in output
