"""The Celery application. Its tasks write what happens to them to a file, and wait until a test lets them end."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Modules of this project that have the names of modules of hostctl/in_app.
import compat
import migrations
import worker
from billiard import pool
from billiard import process as multiprocessing
from celery import Celery
from kombu.transport import redis

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample.settings")
LOG = Path(os.environ["TASK_LOG"])
GATE = Path(os.environ["TASK_GATE"])
# Allows one task to kill its worker, and is gone with that.
KILL = GATE.with_name("kill")

assert compat.OWNER == migrations.OWNER == worker.OWNER == "project"

app = Celery("sample")
app.config_from_object("django.conf:settings", namespace="CELERY")


def write(line: str) -> None:
    with LOG.open("a") as file:
        file.write(line + "\n")


@app.task(name="sample.hold", bind=True)
def hold(self: Any) -> None:
    """Run until the gate file exists."""
    write(f"START {self.request.id}")
    deadline = time.monotonic() + 180
    while not GATE.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    write(f"END {self.request.id}")


@app.task(name="sample.brief", bind=True)
def brief(self: Any) -> None:
    write(f"START {self.request.id}")
    time.sleep(0.3)
    write(f"END {self.request.id}")


@app.task(name="sample.modules")
def modules() -> list[str]:
    """Return which of the modules that a worker does not need are loaded."""
    return [name for name in ("celery.bin", "prompt_toolkit") if name in sys.modules]


@app.task(name="sample.path")
def path() -> list[str]:
    return sys.path


@app.task(name="sample.double")
def double(number: int) -> int:
    return 2 * number


@app.task(name="sample.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="sample.noop", bind=True)
def noop(self: Any, *numbers: int) -> None:
    write(f"END {self.request.id}")


@app.task(name="sample.poison", bind=True)
def poison(self: Any, how: str) -> None:
    """End a process."""
    write(f"START {self.request.id}")
    if how == "memory":
        raise MemoryError("too much")
    if how == "exit":
        sys.exit(3)
    is_child = multiprocessing.current_process().name != "MainProcess"
    process = os.getppid() if how == "main" and is_child else os.getpid()
    while how == "main" and not KILL.exists():
        time.sleep(0.05)
    KILL.unlink(missing_ok=True)
    os.kill(process, signal.SIGSEGV if how == "segfault" else signal.SIGKILL)
    time.sleep(60)


@app.task(name="sample.limited", time_limit=2)
def limited() -> None:
    time.sleep(60)


@app.task(name="sample.tick", ignore_result=True)
def tick() -> None:
    write("TICK")


if os.environ.get("VISIBILITY"):
    # kombu looks for messages to give out again with every tenth call, each 10 s: with every call here.
    redis.QoS.restore_visible.__defaults__ = (0, 10, 1)

if os.environ.get("HOLD_COUNTER"):
    # A child that ends waits here until its results are read. It is killed while it holds the counter's lock, if any.
    def hold_counter(child: Any, completed: int) -> None:
        with child.on_ready_counter.get_lock():
            time.sleep(180)

    pool.Worker._ensure_messages_consumed = hold_counter

if os.environ.get("THREAD"):
    threading.Thread(target=threading.Event().wait, daemon=True).start()

if os.environ.get("LATER"):

    @app.task(name="sample.later", bind=True)
    def later(self: Any) -> None:
        """A task of a later release."""
        write(f"END {self.request.id}")
