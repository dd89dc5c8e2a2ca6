"""How the tests look at a host from outside: waiting, scanning ports, and visiting its site as a browser does."""

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
PORTS_AT_ONCE = 8000
CSRF_FIELD = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


def wait_for(look: Callable[[], T], seconds: float, what: str, enough: Callable[[T], bool] = bool) -> T:
    """Look until it is enough, and return what was seen; AssertionError with the last of it after that many seconds."""
    deadline = time.monotonic() + seconds
    while not enough(seen := look()):
        assert time.monotonic() < deadline, f"After {seconds} s still not: {what}. Last seen: {seen!r}"
        time.sleep(0.25)
    return seen


# --- Ports -------------------------------------------------------------------------------


def open_ports(address: str, ports: Iterable[int], patience: float = 1.0) -> set[int]:
    """The TCP ports that accept a connection within `patience` seconds."""
    wanted = list(ports)
    found: set[int] = set()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for start in range(0, len(wanted), PORTS_AT_ONCE):
        found |= accepting(address, wanted[start : start + PORTS_AT_ONCE], patience)
    return found


def accepting(address: str, ports: Iterable[int], patience: float) -> set[int]:
    """Knock at all of these ports at the same time."""
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
    """What the site answered in the end, after any redirects."""

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
    """An answer that says 404 is an answer, not an exception; redirects are followed only where that is asked for."""

    def __init__(self, follow: bool) -> None:
        self.follow = follow

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        if self.follow and response.status in (301, 302, 303):
            return super().http_response(request, response)
        return response

    https_response = http_response


class Visitor:
    """Somebody with a browser's manners: cookies, CSRF tokens, and a look at the certificate.

    `certificate` (PEM) is what the site must show to be trusted, for the name in `url`.
    """

    def __init__(self, url: str, certificate: str) -> None:
        self.url = url
        self.context = ssl.create_default_context(cadata=certificate)
        self.cookies = CookieJar()

    def get(self, path: str, *, follow: bool = True, headers: dict[str, str] | None = None) -> Answer:
        return self.request(path, None, follow, headers or {})

    def post(self, path: str, fields: dict[str, Any]) -> Answer:
        """Fill in the form of a page and send it, as its own page would; the answer is where that leads."""
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
        with opener.open(urllib.request.Request(url, data, headers), timeout=15) as response:
            body = response.read().decode(errors="replace")
            return Answer(response.status, response.url, response.headers, body)

    # -- the shop

    def order(self, product: str = "tomato", **fields: Any) -> str:
        """Order a packet and return the address of the order's page."""
        form = {"quantity": 1, "name": "Ada", "email": "ada@example.org", "address": "1 Garden Lane\nKew"}
        answer = self.post(f"/products/{product}/", form | fields)
        assert answer.status == 200, f"the order was answered {answer.status}:\n{answer.body[:2000]}"
        assert "/orders/" in answer.url, f"the order was not accepted:\n{answer.body[:4000]}"
        return urllib.parse.urlsplit(answer.url).path

    def report(self) -> str:
        """Start a report and return the address of its task."""
        return urllib.parse.urlsplit(self.post("/report/", {}).url).path.replace("/report/", "/tasks/")

    def finished_order(self, path: str, seconds: float) -> dict[str, Any]:
        """The order's status once all of its steps are done, within that many seconds."""
        return self.wait_for_json(f"{path}status/", seconds, "finished", True)

    def finished_task(self, path: str, seconds: float) -> dict[str, Any]:
        """The task once it has succeeded, within that many seconds."""
        return self.wait_for_json(path, seconds, "state", "SUCCESS")

    def wait_for_json(self, path: str, seconds: float, key: str, value: Any) -> dict[str, Any]:
        what = f"{key} of {path} is {value}"
        return wait_for(lambda: self.get(path).json, seconds, what, lambda seen: seen[key] == value)
