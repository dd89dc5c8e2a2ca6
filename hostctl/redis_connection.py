"""Ask Redis questions in its own protocol (RESP 2), with the standard library alone."""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

SCHEMES = ("redis", "rediss")
# Bytes of the longest value that is kept in memory.
LONGEST = 4 << 20


class RedisError(ValueError):
    """Redis answers with an error, or with what is not its protocol."""


def is_redis(url: str) -> bool:
    """Return whether a URL is of a Redis that can be asked: neither another broker nor Sentinel."""
    return url.partition(":")[0].lower() in SCHEMES


@dataclass(frozen=True)
class Large:
    """A value that is too long to be kept: its length in bytes, and its SHA-256."""

    length: int
    digest: str


class RedisConnection:
    """A connection to the Redis of a URL: user, password, database, and TLS for rediss://.

    `timeout` is in seconds, for each answer. Raises OSError or RedisError. No error has a part of the URL.
    """

    def __init__(self, url: str, timeout: float = 2) -> None:
        try:
            place = urlsplit(url)
            address = place.hostname or "127.0.0.1", place.port or 6379
        except ValueError:
            # Its text may have a part of a password that is not escaped.
            raise RedisError("its URL is not valid") from None
        self.connection = socket.create_connection(address, timeout)
        try:
            if place.scheme == "rediss":
                self.connection = tls_context(place).wrap_socket(self.connection, server_hostname=place.hostname)
            self.answers = self.connection.makefile("rb")
            user, password = unquote(place.username or ""), unquote(place.password or "")
            login = [["AUTH", *([user] if user else []), password]] if password else []
            database = place.path.strip("/")
            self.ask(*login, *([["SELECT", database]] if database.strip("0") else []))
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> RedisConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def ask(self, *commands: list[str]) -> list[Any]:
        """Send commands at once, and return their answers: bytes (Large beyond 4 MiB), integers, lists, and None."""
        self.connection.sendall(b"".join(encoded(words) for words in commands))
        return [self.reply() for _ in commands]

    def reply(self) -> Any:
        line = self.answers.readline()
        kind, text = line[:1], line[1:].rstrip(b"\r\n")
        if kind == b"+":
            return text
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == b"-1" else self.value(int(text))
        if kind == b"*":
            return None if text == b"-1" else [self.reply() for _ in range(int(text))]
        raise RedisError(f"Redis answers {text.decode(errors='replace')!r}" if line else "Redis closed the connection")

    def value(self, length: int) -> bytes | Large:
        if length <= LONGEST:
            return self.answers.read(length + 2)[:-2]
        digest, left = hashlib.sha256(), length
        while left:
            part = self.answers.read(min(left, 1 << 16))
            if not part:
                raise RedisError("Redis closed the connection")
            digest.update(part)
            left -= len(part)
        self.answers.read(2)
        return Large(length, digest.hexdigest())


def encoded(words: list[str]) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def tls_context(place: SplitResult) -> ssl.SSLContext:
    """Return how TLS is checked: as the options ssl_cert_reqs and ssl_ca_certs in the URL say, which redis-py reads."""
    options = parse_qs(place.query)
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs", [None])[0])
    if options.get("ssl_cert_reqs", [""])[0].lower().removeprefix("cert_") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def parse_info(text: bytes) -> dict[str, str]:
    """Return the fields of the answer to INFO."""
    lines = [line.partition(":") for line in text.decode(errors="replace").splitlines()]
    return {name: value for name, colon, value in lines if colon}
