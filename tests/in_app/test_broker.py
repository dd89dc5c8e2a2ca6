"""broker.py: a worker whose broker vanishes, with packets dropped."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from conftest import ADDRESS, Broker, Site, wait_until

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# One instruction of BPF: return 0, which discards the packet.
DISCARD = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)


class Relay:
    """A TCP relay to Redis that can vanish.

    Its connections never come back. New ones work again after `come_back`, as when the broker's host was replaced.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.listener = socket.create_server((ADDRESS, 0))
        self.port = self.listener.getsockname()[1]
        self.is_there = threading.Event()
        self.is_there.set()
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def url(self) -> str:
        return self.broker.url.replace(f":{self.broker.port}/", f":{self.port}/")

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.accepted.append(client)
                threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client: socket.socket) -> None:
        self.is_there.wait()
        server = socket.create_connection((ADDRESS, self.broker.port))
        threading.Thread(target=self.forward, args=(server, client, client), daemon=True).start()
        self.forward(client, server, client)

    def forward(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if client not in self.accepted:
                    return
                target.sendall(data)
        if client in self.accepted:
            for side in (source, target):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def vanish(self, *, drop: bool) -> None:
        """Forward nothing more. With `drop` the kernel discards every packet, else it still acknowledges them."""
        self.is_there.clear()
        self.gone, self.accepted = self.accepted, []
        if drop:
            for each in [self.listener, *(client for client in self.gone if client.fileno() >= 0)]:
                # Needs the capability NET_ADMIN.
                program = struct.pack("HP", 1, ctypes.addressof(DISCARD))
                each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def come_back(self, *, drop: bool) -> None:
        self.is_there.set()
        if drop:
            self.listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def reset(self) -> None:
        """Close every connection, unless its other side has done so; new ones work."""
        for client in self.accepted:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    made = Relay(broker)
    yield made
    made.listener.close()


@pytest.mark.parametrize(
    ("drop", "seconds", "limit"),
    [
        pytest.param(True, 3, 25, marks=pytest.mark.core),
        pytest.param(True, 25, 25, marks=pytest.mark.core),
        # Not with kombu 5.7, which may lose the message that its own check of the BRPOP takes.
        (False, 20, 30),
    ],
)
def test_worker_consumes_soon_after_its_broker_vanished(
    site: Site, relay: Relay, drop: bool, seconds: float, limit: float
) -> None:
    """Also when something on the way, such as a proxy, still acknowledges packets: that takes longer."""
    # Against dropped packets the project's long timeout, as in the shop, makes no difference.
    began = time.monotonic()
    worker = site.worker(CELERY_BROKER_URL=relay.url, SOCKET_TIMEOUT="30" if drop else "")
    # On a busy machine everything takes longer; on an idle one a worker is ready in two seconds.
    slowness = max(1, (time.monotonic() - began) / 4)
    first = site.send()
    wait_until(lambda: site.lines("START") == [first])
    relay.vanish(drop=drop)
    time.sleep(seconds)
    relay.come_back(drop=drop)
    back = time.monotonic()
    second = site.send()
    wait_until(lambda: site.lines("START") == [first, second])
    print(f"Consuming {time.monotonic() - back:.1f} s after the broker's return.")
    assert time.monotonic() - back < limit * slowness
    site.gate.touch()
    wait_until(lambda: sorted(site.lines("END")) == sorted([first, second]))
    wait_until(lambda: site.broker.admin.keys("unacked:*") == [])
    assert (worker.poll(), site.lines("START")) == (None, [first, second])


@pytest.mark.core
def test_running_task_is_not_requeued_when_the_connection_is_reset(site: Site, relay: Relay) -> None:
    """The broker is there all the time, so that kombu could requeue the message of a task that still runs."""
    worker = site.worker(CELERY_BROKER_URL=relay.url)
    first = site.send()
    wait_until(lambda: site.lines("START") == [first])
    relay.reset()
    wait_until(lambda: "Connected to" in site.output(worker).partition("Connection to broker lost")[2])
    second = site.send()
    wait_until(lambda: second in site.lines("START"))
    site.gate.touch()
    wait_until(lambda: sorted(site.lines("END")) == sorted([first, second]))
    wait_until(lambda: site.broker.admin.keys("unacked:*") == [])
    assert site.lines("START") == [first, second]


@pytest.mark.core
@pytest.mark.parametrize("sends", ["heartbeat", "answer"])
def test_worker_reconnects_although_it_sends_something_first(site: Site, broker: Broker, sends: str) -> None:
    """A busy worker may publish before it reads that Redis has closed the connection."""
    worker = site.worker()
    os.kill(worker.pid, signal.SIGSTOP)
    if sends == "answer":
        site.client.control.ping(timeout=0.1)
    else:
        time.sleep(3)  # A heartbeat is due every 2 s.
    broker.stop()
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: "Connection to broker lost" in site.output(worker), 60)
    broker.start()
    sent = site.send()
    site.gate.touch()
    wait_until(lambda: site.lines("END") == [sent])
    assert worker.poll() is None


def test_options_of_the_project_win(site: Site, broker: Broker) -> None:
    code = """
from sample.celery import app
from hostctl.in_app.broker import set_options
options = app.conf.broker_transport_options
options.update(socket_keepalive=False, socket_timeout=30)
set_options(app, unacked_key="mine")
assert options["socket_timeout"] == 30 and options["socket_keepalive"] is False, options
assert app.conf.broker_transport_options["health_check_interval"] == 5
assert app.conf.broker_transport_options["unacked_key"] == "mine"
"""
    site.django("-c", f"import sys; sys.path.append({str(site.library)!r})\n{code}")


def test_the_check_of_a_release_connects_to_the_broker(site: Site, broker: Broker) -> None:
    """It loads everything first, so that the error is the broker's. The port is one on which nothing listens."""
    question, variables = ["check", "sample.celery:app", "sample"], {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    assert "versions" in site.ask(question, **variables)
    with pytest.raises(AssertionError, match=r"OperationalError: .*Connection refused"):
        site.ask(question, **variables, CELERY_BROKER_URL="redis://127.0.0.1:1/0")
