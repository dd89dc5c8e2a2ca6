#!/usr/bin/env python3
"""Place an order and start three reports, and note them in a file.

Called right before a reboot: a report takes six seconds, and one is built at a time, so that at the shutdown one is
being built and another waits. tests/scenario/boot/test_after_reboot.py reads the file.
"""

from __future__ import annotations

import argparse
import json
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

from probes import Visitor

REPORTS = 3


def leave_work(url: str, file: Path) -> None:
    place = urlsplit(url)
    visitor = Visitor(url, ssl.get_server_certificate((place.hostname, place.port or 443)))
    note = {
        "at": time.time(),
        "release": visitor.get("/healthz/").json["release"],
        "order": visitor.order(),
        "reports": [visitor.report() for _ in range(REPORTS)],
    }
    assert visitor.get(note["reports"][-1]).json["state"] != "SUCCESS", "no work is left"
    file.write_text(json.dumps(note))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    leave_work(arguments.url, arguments.file)
