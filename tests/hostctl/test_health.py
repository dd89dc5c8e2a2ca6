"""Requests to a release's own socket."""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostctl.deploy import health
from hostctl.settings import Settings


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with `status` and `body` of its server, after `delay` seconds."""

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        try:
            self.send_response(self.server.status if self.headers["Host"] == "shop.example.org" else 400)
            self.end_headers()
            self.wfile.write(self.server.body)
        except BrokenPipeError:
            pass  # The client's timeout was shorter than `delay`.

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    servers = []

    def serve(status: int = 200, body: bytes = b'{"release": "abcd-1"}', delay: float = 0) -> Path:
        path = tmp_path / "web.sock"
        server = socketserver.ThreadingUnixStreamServer(str(path), Page)
        server.daemon_threads = True
        server.status, server.body, server.delay = status, body, delay
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return path

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_page_that_names_the_release_is_healthy(settings: Settings, web: Callable[..., Path]) -> None:
    assert health.problem(settings, web(), "abcd-1") == ""


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 500}, "status 500"),
        ({"body": b'{"release": "other-2"}'}, "does not name release abcd-1"),
        ({"delay": 30}, "no answer"),
    ],
)
def test_a_problem_is_described(
    settings: Settings, web: Callable[..., Path], answer: dict[str, Any], problem: str
) -> None:
    assert problem in health.problem(settings, web(**answer), "abcd-1", timeout=0.3 if "delay" in answer else 5)


def test_a_release_without_a_socket_does_not_answer(settings: Settings, tmp_path: Path) -> None:
    assert "no answer" in health.problem(settings, tmp_path / "nothing", "abcd-1")


def test_a_slow_page_that_is_broken_is_requested_until_that_is_known(
    settings: Settings, web: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = health.get
    # On a busy machine an answer may take longer than all requests may together.
    monkeypatch.setattr(health, "get", lambda *words, timeout: get(*words, timeout=60))
    seen = health.warm_up(settings, web(status=500, delay=0.1), ["/", "/b"], at_most=0.15)
    assert [health.is_broken(statuses) for statuses in seen.values()] == [True, True]


def test_pages_behind_a_slow_one_are_requested_once(settings: Settings, web: Callable[..., Path]) -> None:
    seen = health.warm_up(settings, web(delay=30), ["/", "/b"], at_most=0.1)
    assert seen == {"/": [0], "/b": [0]}
