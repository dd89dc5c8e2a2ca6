"""Tell systemd that this process is not frozen: with WatchdogSec= it kills and restarts one that does not."""

from __future__ import annotations

import _thread
import os
import socket
from contextlib import suppress

# Before gevent replaces it.
from time import sleep


def start_watchdog() -> None:
    """Notify systemd four times within WatchdogSec=, from a thread; without that setting do nothing.

    A thread of the module `threading` would be a greenlet with gevent, and wait for its tasks.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    microseconds = int(os.environ.pop("WATCHDOG_USEC", "0"))
    if address and microseconds:
        _thread.start_new_thread(notify, (address, microseconds / 4e6))


def notify(address: str, seconds: float) -> None:
    """Send the message of sd_notify(3), for ever; an address with @ is an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
        while True:
            with suppress(OSError):
                client.sendto(b"WATCHDOG=1", address.replace("@", "\0", 1) if address[0] == "@" else address)
            sleep(seconds)
