"""An HTTP client that handles connections like a browser, and accepts every certificate."""

from __future__ import annotations

import http.client
import select
import ssl
import threading
from collections import deque
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit


class ClosedUnansweredError(ConnectionError):
    """The server closed the connection before the first byte of an answer."""


class Response(http.client.HTTPResponse):
    """Tells a connection that was closed before the first byte from one that broke later."""

    def begin(self) -> None:
        try:
            first = self.fp.peek(1)
        except ConnectionError as error:
            raise ClosedUnansweredError(str(error) or type(error).__name__) from None
        if not first:
            raise ClosedUnansweredError("closed before any answer")
        super().begin()


@dataclass(frozen=True)
class Answer:
    """`retried`: the first try's kept connection had been closed, so that this is the answer of the second."""

    status: int
    headers: Message
    body: bytes
    retried: bool = False


class Client:
    """A client of one site, for any number of threads; keeps at most `keep` idle connections.

    Like Chromium and Firefox, it drops an idle connection that the server has closed, and repeats a request, a POST
    too, on a new connection when a kept one turns out to be closed before the first byte of an answer. `closed_idle`
    and `retried` count these.
    """

    def __init__(self, url: str, *, timeout: float = 20.0, keep: int = 8) -> None:
        place = urlsplit(url)
        assert place.scheme in ("http", "https"), f"{url} is no address of a site"
        assert place.hostname, f"{url} is no address of a site"
        self.secure = place.scheme == "https"
        self.place = (place.hostname, place.port or (443 if self.secure else 80))
        self.timeout = timeout
        self.context = ssl.create_default_context()
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.idle: deque[http.client.HTTPConnection] = deque(maxlen=keep)
        self.lock = threading.Lock()
        self.closed_idle = 0
        self.retried = 0

    def request(self, method: str, path: str, body: bytes | None = None, *, kept: bool = False) -> Answer:
        """Send a request; with `kept`, on an idle connection if there is one.

        Raises OSError, http.client.HTTPException.
        """
        connection = self.take() if kept else None
        if connection is None:
            return self.ask(self.connect(), method, path, body, kept)
        try:
            return self.ask(connection, method, path, body, kept)
        except ClosedUnansweredError:
            with self.lock:
                self.retried += 1
        answer = self.ask(self.connect(), method, path, body, kept)
        return Answer(answer.status, answer.headers, answer.body, retried=True)

    def connect(self) -> http.client.HTTPConnection:
        if self.secure:
            connection = http.client.HTTPSConnection(*self.place, timeout=self.timeout, context=self.context)
        else:
            connection = http.client.HTTPConnection(*self.place, timeout=self.timeout)
        connection.response_class = Response
        connection.connect()
        return connection

    def ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, kept: bool
    ) -> Answer:
        headers = {"User-Agent": "traffic", "Connection": "keep-alive" if kept else "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            try:
                connection.request(method, path, body, headers)
            except (ConnectionError, ssl.SSLEOFError) as error:
                raise ClosedUnansweredError(str(error)) from None
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        except BaseException:
            connection.close()
            raise
        if kept and not response.will_close:
            self.put(connection)
        else:
            connection.close()
        return answer

    def take(self) -> http.client.HTTPConnection | None:
        """Return the connection that has been idle the longest and is still open."""
        while True:
            with self.lock:
                if not self.idle:
                    return None
                connection = self.idle.popleft()
            # No data is due on an idle connection, so anything readable is its end.
            if not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
            with self.lock:
                self.closed_idle += 1

    def put(self, connection: http.client.HTTPConnection) -> None:
        with self.lock:
            if len(self.idle) < (self.idle.maxlen or 0):
                self.idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self.lock:
            while self.idle:
                self.idle.pop().close()
