#!/usr/bin/env python3
"""Place an order and start a report while no worker runs, and note them in a file.

Called before a reboot; tests/scenario/boot/test_after_reboot.py reads the file.
"""

from __future__ import annotations

import argparse
import json
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

from probes import Visitor


def leave_work(url: str, file: Path) -> None:
    place = urlsplit(url)
    visitor = Visitor(url, ssl.get_server_certificate((place.hostname, place.port or 443)))
    note = {
        "at": time.time(),
        "release": visitor.get("/healthz/").json["release"],
        "order": visitor.order(),
        "report": visitor.report(),
    }
    assert not visitor.get(f"{note['order']}status/").json["finished"], "a worker still runs"
    file.write_text(json.dumps(note))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    leave_work(arguments.url, arguments.file)
