"""A mail server and a web server that keep what they get, for tests of alerts."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """What the servers got, in order; `requests` are path and body."""

    mails: list[EmailMessage] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The messages that the webhook got."""
        return [json.loads(body) for path, body in self.requests if path == "/alerts"]

    @property
    def heartbeats(self) -> list[str]:
        return [path for path, _ in self.requests if path.startswith("/heartbeat")]


class Mail(socketserver.StreamRequestHandler):
    """Accept mail for every address, without TLS and without a login."""

    received: Received

    def answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self.answer("220 test")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self.answer("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                text = b"".join(part[1:] if part.startswith(b"..") else part for part in lines)
                self.received.mails.append(message_from_bytes(text, policy=policy.default))
                self.answer("250 kept")
            elif word == b"QUIT":
                self.answer("221 bye")
                return
            else:
                self.answer("250 ok")


class Web(BaseHTTPRequestHandler):
    """Keep each request, and answer 200."""

    received: Received

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.received.requests.append((self.path, self.rfile.read(length).decode()))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class MailServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def sinks(address: str, mail_port: int, http_port: int) -> Iterator[Received]:
    """Both servers listen as long as this lasts. Raises OSError when a port is in use."""
    received = Received()
    servers = [
        MailServer((address, mail_port), type("Handler", (Mail,), {"received": received})),
        ThreadingHTTPServer((address, http_port), type("Handler", (Web,), {"received": received})),
    ]
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield received
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
