"""Send requests and tasks to a running site, and print the verdict.

python -m traffic https://127.0.0.1:8443 --seconds 30

Exits with 1 when a request failed or a task was lost. Meant for the demo and the test hosts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from traffic import verdict
from traffic.client import Client
from traffic.ledger import Ledger
from traffic.load import Sent, Traffic

SETTLE_SECONDS = 60


def read_ledger(url: str) -> Ledger:
    """Read the ledger from the site, which serves the overlay's folder with its media."""
    answer = Client(url).request("GET", "/media/ledger/ledger.jsonl")
    return Ledger.parse(answer.body.decode() if answer.status == 200 else "")


def unfinished(url: str, sent: list[Sent]) -> list[Sent]:
    """Return the tasks whose page does not say SUCCESS; used without a ledger."""
    client = Client(url)
    states = {one.id: client.request("GET", f"/tasks/{one.id}/", kept=True) for one in sent}
    return [one for one in sent if json.loads(states[one.id].body).get("state") != "SUCCESS"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=15, help="GETs a second (%(default)s)")
    parser.add_argument("--tasks", type=float, default=4, help="POSTs a second, each a task (%(default)s)")
    parser.add_argument("--overlay", action="store_true", help="the site has the overlay: slow requests and a ledger")
    parser.add_argument("--log", type=Path, help="a file for every request, as lines of JSON")
    chosen = parser.parse_args()

    began = time.time()
    load = Traffic(
        chosen.url,
        rate=chosen.rate,
        tasks=chosen.tasks,
        seconds=chosen.seconds,
        overlay=chosen.overlay,
        log=chosen.log,
    )
    with load:
        try:
            time.sleep(chosen.seconds)
        except KeyboardInterrupt:
            print("Stopping ...")

    if chosen.overlay:
        ledger = verdict.settle(lambda: read_ledger(chosen.url), load.sent, SETTLE_SECONDS).since(began)
        print(verdict.summary(load.samples, load.sent, ledger))
        lost = [one for one in load.sent if one.id not in ledger.ended]
    else:
        deadline = time.monotonic() + SETTLE_SECONDS
        lost = unfinished(chosen.url, load.sent)
        while lost and time.monotonic() < deadline:
            time.sleep(1)
            lost = unfinished(chosen.url, lost)
        print(verdict.summary(load.samples, load.sent) + f", lost {len(lost)}")
    print(f"idle connections that the site closed  {load.client.closed_idle}")
    return int(bool(lost) or any(sample.failed for sample in load.samples))


if __name__ == "__main__":
    sys.exit(main())
