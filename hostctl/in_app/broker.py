"""The connection to the broker: open one, and notice within seconds that it is lost.

When the broker's host vanishes and packets are dropped, no error arrives. Two detectors, since neither sees every case:
the kernel (keepalive probes, a time limit for unacknowledged data), and a check that answers to BRPOP keep arriving,
which also detects a dead broker behind a live proxy.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from . import compat

# Seconds between two looks at the connection, and between two pings of kombu's on its other connections.
CHECK_SECONDS = 5
# Looks without an answer in between, after which the connection is lost. One is not enough: after a pause of the whole
# process its timers come before the answers that have arrived meanwhile.
CHECKS_WITHOUT_ANSWER = 2
# Seconds for which the kernel waits for an acknowledgement of what was sent, and of keepalive probes.
UNACKNOWLEDGED_SECONDS = 10
# The longest pause between two attempts to connect. (Celery's own grows to 30 s.)
RECONNECT_SECONDS = 3

OPTIONS: dict[str, Any] = {
    "health_check_interval": CHECK_SECONDS,
    "socket_connect_timeout": 5,
    "socket_timeout": 5,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        socket.TCP_KEEPIDLE: 5,
        socket.TCP_KEEPINTVL: 2,
        socket.TCP_KEEPCNT: 3,
        socket.TCP_USER_TIMEOUT: 1000 * UNACKNOWLEDGED_SECONDS,
    },
}


@contextmanager
def open_channel(app: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a kombu channel to the broker, and its Redis client."""
    with app.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
        yield connection.default_channel, client


def set_options(app: Any, **more: Any) -> None:
    """Add the options of this module, and `more`, to the application's broker_transport_options.

    What the project has set itself stays. In place: an assigned value would lose against Django's CELERY_ setting.
    """
    options = app.conf.broker_transport_options
    for name, value in OPTIONS.items():
        options.setdefault(name, value)
    options.update(more)


def limit_retries(connection: Any) -> None:
    """Have a worker's kombu connection try to connect at least every RECONNECT_SECONDS, and retry nothing else.

    kombu would retry to publish a heartbeat, or the answer to a remote control command, silently until the broker is
    back: meanwhile the event loop stands still, and the worker neither reads its children's results nor stops.
    """
    connection.ensure_connection = partial(
        connection.ensure_connection, interval_start=1, interval_step=1, interval_max=RECONNECT_SECONDS
    )
    connection.ensure = partial(connection.ensure, max_retries=0)


class BrokerWatch:
    """Raises an error in the worker's event loop when its BRPOP is not answered any more."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.answer: float | None = None
        self.missed = 0

    def check(self) -> None:
        """Compare with the last look; raises TimeoutError, from which the worker reconnects."""
        answer = compat.last_answer(self.channel)
        self.missed = self.missed + 1 if answer is not None and answer == self.answer else 0
        self.answer = answer
        if self.missed >= CHECKS_WITHOUT_ANSWER and not compat.has_unread_answer(self.channel):
            compat.abandon_brpop(self.channel)
            raise TimeoutError(f"The broker has not answered for {CHECK_SECONDS * self.missed} s")
