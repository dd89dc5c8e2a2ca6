"""Tasks for the scenarios. OFFERED are those that can be started over HTTP, and their arguments."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import shared_task
from django.db import transaction

from ledger import book
from ledger.models import Effect

LONGEST = 120
# Less than a worker gets to finish what it holds.
WAIT_AT_MOST = 300


@shared_task(name="ledger.tick", ignore_result=True)
def tick() -> None:
    """What beat sends every second."""


@shared_task(name="ledger.sleep", ignore_result=True)
def sleep(seconds: float) -> None:
    """Take that long."""
    time.sleep(seconds)


@shared_task(name="ledger.wait", ignore_result=True)
def wait() -> None:
    """Wait until the file `open` is beside the ledger."""
    deadline = time.monotonic() + WAIT_AT_MOST
    while not (book.FILE.parent / "open").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


@shared_task(name="ledger.kill", ignore_result=True)
def kill() -> None:
    """Kill the main process of the worker, a prefork one."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(LONGEST)


@shared_task(name="ledger.effect")
def effect(key: str, seconds: float = 0.1) -> None:
    """Have an effect once, however often this is called: a row that is written in the same commit decides."""
    with transaction.atomic():
        _, is_new = Effect.objects.get_or_create(key=key)
        time.sleep(seconds)
        if is_new:
            book.write("EFFECT", key=key)


@shared_task(name="ledger.effect_io")
def effect_io(key: str, seconds: float = 0.1) -> None:
    """The same, by another worker."""
    effect(key, seconds)


def is_a_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= LONGEST


def are_seconds(args: Any) -> bool:
    return isinstance(args, list) and len(args) == 1 and is_a_time(args[0])


def are_an_effect(args: Any) -> bool:
    return isinstance(args, list) and len(args) == 2 and isinstance(args[0], str) and is_a_time(args[1])


OFFERED = {
    "ledger.sleep": (sleep, are_seconds),
    "ledger.wait": (wait, lambda args: args == []),
    "ledger.kill": (kill, lambda args: args == []),
    "ledger.effect": (effect, are_an_effect),
    "ledger.effect_io": (effect_io, are_an_effect),
}
