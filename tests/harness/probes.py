"""Functions that observe a host from outside: waiting, scanning ports, and visiting its site like a browser."""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from http.cookiejar import CookieJar
from typing import Any, TypeVar

T = TypeVar("T")
PORTS_AT_ONCE = 16_000
CSRF_FIELD = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


def wait_for(
    look: Callable[[], T], seconds: float, what: str, enough: Callable[[T], bool] = bool, *, pause: float = 0.25
) -> T:
    """Call `look` until `enough` accepts its result, and return it. Raises AssertionError with the last result.

    A look that costs the host much wants a longer `pause`, in seconds.
    """
    deadline = time.monotonic() + seconds
    while not enough(seen := look()):
        assert time.monotonic() < deadline, f"After {seconds} s still not: {what}. Last seen: {seen!r}"
        time.sleep(pause)
    return seen


# --- Ports -------------------------------------------------------------------------------


def open_ports(address: str, ports: Iterable[int], patience: float = 1.0) -> set[int]:
    """Return the TCP ports that accept a connection within `patience` seconds."""
    wanted = list(ports)
    found: set[int] = set()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for start in range(0, len(wanted), PORTS_AT_ONCE):
        found |= accepting(address, wanted[start : start + PORTS_AT_ONCE], patience)
    return found


def accepting(address: str, ports: Iterable[int], patience: float) -> set[int]:
    """Connect to all of these ports at the same time; return those that accept."""
    poll, knocking = select.poll(), {}
    for port in ports:
        knock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        knock.setblocking(False)
        knock.connect_ex((address, port))
        knocking[knock.fileno()] = (knock, port)
        poll.register(knock, select.POLLOUT)
    found = set()
    deadline = time.monotonic() + patience
    while knocking and time.monotonic() < deadline:
        for number, _ in poll.poll(50):
            knock, port = knocking.pop(number)
            poll.unregister(number)
            if knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.add(port)
            knock.close()
    for knock, _ in knocking.values():
        knock.close()
    return found


# --- The site ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The site's answer, after any redirects."""

    status: int
    url: str
    headers: Message
    body: str

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except json.JSONDecodeError:
            raise AssertionError(f"{self.url} answered {self.status} and no JSON:\n{self.body[:500]}") from None


class AsIs(urllib.request.HTTPErrorProcessor):
    """Returns every status as an answer, without an exception; follows redirects only if told to."""

    def __init__(self, follow: bool) -> None:
        self.follow = follow

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        if self.follow and response.status in (301, 302, 303):
            return super().http_response(request, response)
        return response

    https_response = http_response


class Visitor:
    """A client that behaves like a browser: cookies, CSRF tokens, and a check of the certificate.

    `certificate` (PEM) is the only one that it trusts, for the name in `url`; it waits `timeout` seconds for an answer.
    """

    def __init__(self, url: str, certificate: str, timeout: float = 15) -> None:
        self.url = url
        self.timeout = timeout
        self.context = ssl.create_default_context(cadata=certificate)
        self.cookies = CookieJar()

    def get(self, path: str, *, follow: bool = True, headers: dict[str, str] | None = None) -> Answer:
        return self.request(path, None, follow, headers or {})

    def post(self, path: str, fields: dict[str, Any]) -> Answer:
        """Submit the form of a page like a browser, and return the answer after redirects."""
        token = CSRF_FIELD.search(self.get(path).body)
        assert token, f"{path} has no form with a CSRF token"
        form = urllib.parse.urlencode(fields | {"csrfmiddlewaretoken": token[1]})
        return self.request(path, form.encode(), True, {"Referer": f"{self.url}{path}", "Origin": self.url})

    def post_json(self, path: str, body: Any) -> Answer:
        return self.request(path, json.dumps(body).encode(), False, {"Content-Type": "application/json"})

    def request(self, path: str, data: bytes | None, follow: bool, headers: dict[str, str]) -> Answer:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=self.context),
            urllib.request.HTTPCookieProcessor(self.cookies),
            AsIs(follow),
        )
        url = urllib.parse.urljoin(self.url, path)
        with opener.open(urllib.request.Request(url, data, headers), timeout=self.timeout) as response:
            body = response.read().decode(errors="replace")
            return Answer(response.status, response.url, response.headers, body)

    # -- the shop

    def order(self, product: str = "tomato", **fields: Any) -> str:
        """Order a packet and return the path of the order's page."""
        form = {"quantity": 1, "name": "Ada", "email": "ada@example.org", "address": "1 Garden Lane\nKew"}
        answer = self.post(f"/products/{product}/", form | fields)
        assert answer.status == 200, f"the order was answered {answer.status}:\n{answer.body[:2000]}"
        assert "/orders/" in answer.url, f"the order was not accepted:\n{answer.body[:4000]}"
        return urllib.parse.urlsplit(answer.url).path

    def report(self) -> str:
        """Start a report and return the path of its task."""
        return urllib.parse.urlsplit(self.post("/report/", {}).url).path.replace("/report/", "/tasks/")

    def finished_order(self, path: str, seconds: float) -> dict[str, Any]:
        """Wait until all steps of the order are done; return its status."""
        return self.wait_for_json(f"{path}status/", seconds, "finished", True)

    def finished_task(self, path: str, seconds: float) -> dict[str, Any]:
        """Wait until the task has succeeded; return it."""
        return self.wait_for_json(path, seconds, "state", "SUCCESS")

    def wait_for_json(self, path: str, seconds: float, key: str, value: Any) -> dict[str, Any]:
        what = f"{key} of {path} is {value}"
        return wait_for(lambda: self.get(path).json, seconds, what, lambda seen: seen[key] == value)
