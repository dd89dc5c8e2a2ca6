"""Run on a host with Flower: how much memory it has after releases whose workers appear and go.

With Flower's Python: python - RELEASES FOLDER, which has flower_runner.py. Two of them listen to a Redis of their own:
one discards workers that are offline, one does not. Prints the PSS of each in KiB after every fifth release.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PORT = 6399
URL = f"redis://127.0.0.1:{PORT}/0"
PORTS = {"discards": 5561, "keeps": 5562}
# Here, Flower looks each second for workers that were offline for a second, and a release has so many seconds.
RELEASE_SECONDS = 4
RUN_FLOWER = """
import sys
sys.path.insert(0, "FOLDER")
import flower_runner
flower_runner.DISCARD_INTERVAL = 1
flower_runner.main()
"""
WORKERS = ("default", "heavy", "io")
# Memory is read after each fifth release.
EVERY = 5
# For each worker of a release: kinds of tasks, and how often each of them runs.
TASKS, RUNS = 10, 2


def announce(release: int) -> None:
    """Send what the workers of a release send from their start to their stop."""
    from celery import Celery
    from celery.utils import uuid

    app = Celery(broker=URL)
    with app.connection_for_write() as connection:
        for worker in WORKERS:
            name = f"{worker}.release-{release}@host"
            with app.events.Dispatcher(connection, hostname=name) as send:
                status = {"freq": 2, "active": 0, "processed": 0, "sw_ident": "py-celery", "sw_ver": "5", "sw_sys": ""}
                send.send("worker-online", **status)
                for number in range(TASKS * RUNS):
                    task = {"uuid": uuid(), "name": f"shop.tasks.task{number % TASKS}"}
                    send.send("task-received", **task, args="()", kwargs="{}", retries=0, eta=None)
                    send.send("task-started", uuid=task["uuid"])
                    send.send("task-succeeded", uuid=task["uuid"], result="None", runtime=0.1)
                send.send("worker-heartbeat", **status)
                send.send("worker-offline", **status)


def pss(process: int) -> int:
    """Return the memory of a process in KiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def known(port: int) -> int:
    """Return how many workers Flower's metrics have."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return len({line.split('worker="')[1].split('"')[0] for line in text.splitlines() if 'worker="' in line})


def start_flower(folder: str, port: int, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", RUN_FLOWER.replace("FOLDER", folder), "--address=127.0.0.1", f"--port={port}"]
    environment = os.environ | {"CELERY_BROKER_URL": URL, "MALLOC_ARENA_MAX": "2"}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen([*words, "--max_tasks=100", *options], env=environment, stdout=nowhere, stderr=nowhere)


def main(releases: int, folder: str) -> None:
    redis = ["redis-server", "--port", str(PORT), "--save", "", "--bind", "127.0.0.1", "--dir", tempfile.mkdtemp()]
    started = [subprocess.Popen(redis, stdout=subprocess.DEVNULL)]
    try:
        flowers = {
            "discards": start_flower(folder, PORTS["discards"], "--purge_offline_workers=1"),
            "keeps": start_flower(folder, PORTS["keeps"]),
        }
        started += flowers.values()
        time.sleep(10)
        found: dict[str, dict[int, int]] = {name: {} for name in flowers}
        for release in range(1, releases + 1):
            announce(release)
            time.sleep(RELEASE_SECONDS)
            if release % EVERY == 0:
                for name, process in flowers.items():
                    found[name][release] = pss(process.pid)
        print(json.dumps({"KiB": found, "workers": {name: known(port) for name, port in PORTS.items()}}))
    finally:
        for process in reversed(started):
            process.terminate()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
