"""The ledger: a line of JSON for the start and the end of every task, outside of the database."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish, task_postrun, task_prerun
from django.conf import settings

# Below the media folder, where every process may write and the tests can read it over HTTPS too.
FILE = Path(settings.MEDIA_ROOT) / "ledger/ledger.jsonl"


def write(event: str, **fields: Any) -> None:
    """Append one line, in one write, so that processes never mix theirs."""
    line = {"event": event, "at": time.time(), "release": settings.RELEASE_ID} | fields
    FILE.parent.mkdir(mode=0o750, exist_ok=True)
    place = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        os.write(place, json.dumps(line).encode() + b"\n")
    finally:
        os.close(place)


def stamp(headers: dict[str, Any], **kwargs: Any) -> None:
    """Beat may not write here, so its messages carry when they were sent and by which release."""
    headers |= {"sent_at": time.time(), "sent_by": settings.RELEASE_ID}


def note_start(task_id: str, task: Any, **kwargs: Any) -> None:
    write("START", **about(task_id, task))


def note_end(task_id: str, task: Any, state: str | None = None, **kwargs: Any) -> None:
    write("END", state=state, **about(task_id, task))


def about(task_id: str, task: Any) -> dict[str, Any]:
    request = task.request
    return {
        "id": task_id,
        "name": task.name,
        "worker": request.hostname,
        "sent_at": getattr(request, "sent_at", None),
        "sent_by": getattr(request, "sent_by", None),
    }


def keep() -> None:
    """From now on every task is written down."""
    before_task_publish.connect(stamp, weak=False)
    task_prerun.connect(note_start, weak=False)
    task_postrun.connect(note_end, weak=False)
