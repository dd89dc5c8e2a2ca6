"""A WebSocket through the site, as a browser opens one: text messages only."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class WebSocket:
    """An open WebSocket. `certificate` is the site's, as PEM; `timeout` is in seconds."""

    def __init__(self, url: str, certificate: str, path: str = "/socket", timeout: float = 30) -> None:
        address = urlsplit(url)
        context = ssl.create_default_context(cadata=certificate)
        plain = socket.create_connection((address.hostname, address.port or 443), timeout)
        self.stream = context.wrap_socket(plain, server_hostname=address.hostname)
        lines = (f"GET {path} HTTP/1.1", f"Host: {address.netloc}", "Upgrade: websocket", "Connection: Upgrade",
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", "")  # fmt: skip
        self.stream.sendall("\r\n".join(lines).encode())
        self.file = self.stream.makefile("rb")
        head = [self.file.readline()]
        while head[-1].strip():
            head.append(self.file.readline())
        assert b" 101 " in head[0], b"".join(head)

    def ask(self, text: str) -> str:
        """Send a message and return the next one."""
        self.send(TEXT, text.encode())
        return self.receive()

    def send(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        self.stream.sendall(bytes([0x80 | kind, 0x80 | len(data)]) + mask + masked)

    def receive(self) -> str:
        """Return the next message; "closed CODE" when the server closes."""
        while True:
            kind, size = self.file.read(2)
            data = self.file.read(size if size < 126 else struct.unpack("!H", self.file.read(2))[0])
            if kind & 15 == TEXT:
                return data.decode()
            if kind & 15 == CLOSE:
                return f"closed {struct.unpack('!H', data[:2])[0]}"
            if kind & 15 == PING:
                self.send(PONG, data)

    def close(self) -> None:
        # As long as the file is open, so is the socket.
        self.file.close()
        self.stream.close()
