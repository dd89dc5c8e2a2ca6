"""The watchdog of requests, in a real gunicorn with the configuration of the role `services`."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "roles/services/templates/gunicorn.conf.py.j2"
# Seconds: the limit, and until the watchdog has replaced a process, with some for a slow machine.
LIMIT, REPLACED = 1, 15
# Until gunicorn has loaded the application.
STARTED = 120

# Django's settings, its URLs, and the application that gunicorn serves.
APPLICATION = """
import os, threading, time
SECRET_KEY = "only-for-tests"
ROOT_URLCONF = __name__
urlpatterns = []

def wait_forever():
    threading.Event().wait()

def stream():
    yield b"begin"
    wait_forever()

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith(("/stuck", "/stream")):
        with open("begun", "a") as file:
            file.write(".")
    if path.startswith("/stuck"):
        wait_forever()
    if path.startswith("/long"):
        time.sleep(5)
    if path == "/slow/":
        time.sleep(2)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return stream() if path == "/stream/" else [b"%d" % os.getpid()]
"""


class Site:
    """A gunicorn with its own socket and log; requests that do not return write a character each to `begun`."""

    def __init__(self, folder: Path, processes: int, threads: int) -> None:
        self.socket, self.log, self.begun = folder / "web.sock", folder / "log", folder / "begun"
        self.begun.touch()
        values = {
            "ansible_managed": "", "services_name": "site", "services_web.processes": processes,
            "services_web.threads": threads, "__services_graceful_timeout": 60, "__services_preload": True,
            "services_asgi_app | length > 0": False, "services_request_timeout": LIMIT,
            "services_long_requests | to_json": '{"/long/": 600}',
        }  # fmt: skip
        text = re.sub(r"{{ (.+?) }}", lambda found: str(values[found[1]]), TEMPLATE.read_text())
        (folder / "gunicorn.conf.py").write_text(text)
        (folder / "site_under_test.py").write_text(APPLICATION)
        command = ["--config", str(folder / "gunicorn.conf.py"), "--bind", f"unix:{self.socket}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *command, "site_under_test:application"], cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "site_under_test"},
            stderr=self.log.open("w"),
        )  # fmt: skip
        self.wait_for(lambda: self.log.read_text().count("Booting worker") == processes, STARTED)

    def get(self, path: str, timeout: float = 30) -> tuple[int, str]:
        """Return status and body; status 0 without an answer."""
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout)
            connection.sock.connect(str(self.socket))
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def send_in_background(self, path: str, number: int) -> None:
        """Send requests that do not return; return when all have reached the application."""
        for _ in range(number):
            threading.Thread(target=self.get, args=[path], daemon=True).start()
        self.wait_for(lambda: len(self.begun.read_text()) == number)

    def wait_for(self, condition: Callable[[], bool], seconds: float = REPLACED) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def replaced(self) -> int:
        return self.log.read_text().count("Replacing the process")


Start = Callable[..., Site]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    sites = []

    def start(processes: int, threads: int) -> Site:
        sites.append(Site(tmp_path, processes, threads))
        return sites[-1]

    yield start
    for site in sites:
        site.process.kill()
        site.process.wait()
        print(site.log.read_text())


def test_process_whose_requests_are_all_stuck_is_replaced(start: Start) -> None:
    site = start(processes=1, threads=8)
    _, first = site.get("/")
    site.send_in_background("/stuck/?password=hunter2", 8)
    # A visitor who comes now waits, and is answered by the next process.
    status, second = site.get("/", timeout=REPLACED)
    assert (status, second != first) == (200, True), second
    log = site.log.read_text()
    assert len(re.findall(r"GET /stuck/ has not returned after [2-9] s; its limit is 1 s", log)) == 8
    assert log.count("in wait_forever") == 8
    assert "hunter2" not in log
    assert f"Replacing the process {first}: 8 of its requests did not return." in log
    # For good: the new one stays.
    time.sleep(1.5)
    assert site.get("/") == (200, second)


def test_other_requests_do_not_fail(start: Start) -> None:
    """Three of four threads are stuck, so both of one process: it takes no further connection."""
    site = start(processes=2, threads=2)
    site.send_in_background("/stuck/", 3)
    over = threading.Event()

    def visit(path: str) -> list[tuple[int, str, float]]:
        answers = []
        while not over.is_set():
            began = time.monotonic()
            answers.append((*site.get(path), time.monotonic() - began))
            time.sleep(0.02)
        return answers

    # One thread is left for both.
    with ThreadPoolExecutor(2) as pool:
        visits = [pool.submit(visit, path) for path in ("/", "/slow/")]
        try:
            site.wait_for(lambda: site.replaced() == 2)
            time.sleep(2)
        finally:
            over.set()
        answers = [answer for future in visits for answer in future.result()]
    assert {status for status, *_ in answers} == {200}, answers
    assert max(seconds for *_, seconds in answers) < REPLACED


def test_long_requests_and_endless_responses(start: Start) -> None:
    site = start(processes=1, threads=4)
    site.send_in_background("/stream/", 1)
    assert site.get("/long/export")[0] == 200
    site.wait_for(lambda: site.replaced() == 1)
    log = site.log.read_text()
    assert re.findall(r"GET (\S+) has not returned", log) == ["/stream/"]
    assert "in stream" in log
