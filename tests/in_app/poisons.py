"""Messages of which each is wrong in another way."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(**changes: Any) -> str:
    """Return a message of the task sample.noop, with changes: PART__KEY, or a part; DELETE removes a key."""
    task_id = str(uuid.uuid4())
    message: dict[str, Any] = {
        "body": body([[1], {}, EMBED]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": "sample.noop", "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
            "eta": None, "expires": None, "retries": 0, "timelimit": [None, None], "argsrepr": "(1,)",
            "kwargsrepr": "{}", "origin": "x@y",
        },
        "properties": {
            "correlation_id": task_id, "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "default"}, "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key and value is DELETE:
            del message[part][key]
        elif key:
            message[part][key] = value
        else:
            message[part.replace("_", "-")] = value
    return json.dumps(message)


def body(content: Any) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


DELETE = object()
OLD_PROTOCOL = {"task": "sample.noop", "id": "old", "args": [], "kwargs": {}}

# Parked at once.
UNREADABLE: dict[str, str | bytes] = {
    "not JSON": "not JSON at all",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": "",
    "nested too deep": "[" * 200_000,
    "list": "[]",
    "text": '"x"',
    "object": '{"a": 1}',
    "null": "null",
    "properties null": envelope(properties=None),
    "content type of pickle": envelope(content_type="application/x-python-serialize"),
    "unknown content type": envelope(content_type="application/x-nonsense"),
    "unknown compression": envelope(headers__compression="application/x-nonsense"),
    "wrong compression": envelope(headers__compression="application/x-gzip"),
    "body not base64": envelope(body="%%%%"),
    "body encoding unknown": envelope(properties__body_encoding="rot13"),
    "body a number": envelope(body=5),
    "body not JSON": envelope(body=base64.b64encode(b"{]").decode()),
    "body nested too deep": envelope(body=base64.b64encode(b"[" * 200_000).decode()),
    "body is 42": envelope(body=body(42)),
    "body is null": envelope(body=body(None)),
    "body has two parts": envelope(body=body([[1], {}])),
    "arguments a number": envelope(body=body([1, {}, EMBED])),
    "keywords a list": envelope(body=body([[1], [1], EMBED])),
    "third part a list": envelope(body=body([[1], {}, ["x"]])),
    "ETA no time": envelope(headers__eta="the day after"),
    "ETA a number": envelope(headers__eta=5),
    "ETA before the first day": envelope(headers__eta="0001-01-01T00:00:00+14:00"),
    "expires no time": envelope(headers__expires="yesterday, I think"),
    "expires a list": envelope(headers__expires=["x"]),
    "limits text": envelope(headers__timelimit=["a", "b"]),
    "limits a number": envelope(headers__timelimit=5),
    "limits three": envelope(headers__timelimit=[1, 2, 3]),
    "limits endless": envelope(headers__timelimit=[float("inf"), None]),
    "limits huge": envelope(headers__timelimit=[10**400, None]),
    "task a number": envelope(headers__task=42),
    "task a list": envelope(headers__task=["sample.noop"]),
    "task null": envelope(headers__task=None),
    "no headers": envelope(headers={}),
    "headers null": envelope(headers=None),
    "headers a list": envelope(headers=["task"]),
    "no ID": envelope(headers__id=DELETE),
    "ID a list": envelope(headers__id=["x"]),
    "delivery tag null": envelope(properties__delivery_tag=None),
    "delivery tag a number": envelope(properties__delivery_tag=5),
    "delivery tag a list": envelope(properties__delivery_tag=["x"]),
    "no delivery tag": envelope(properties__delivery_tag=DELETE),
    "no delivery info": envelope(properties__delivery_info=DELETE),
    "exchange a list": envelope(properties__delivery_info={"exchange": ["x"], "routing_key": "default"}),
    "stamps a number": envelope(headers__stamped_headers=5),
    "old protocol, keywords a list": envelope(headers={}, body=body({**OLD_PROTOCOL, "kwargs": [1]})),
    "old protocol, limits text": envelope(headers={}, body=body({**OLD_PROTOCOL, "timelimit": ["a", "b"]})),
    "old protocol, no ID": envelope(headers={}, body=body({"task": "sample.noop", "args": [], "kwargs": {}})),
}  # fmt: skip

# The worker runs them, and whatever fails is recorded: nothing is to be parked.
RUN: dict[str, str | bytes] = {
    "retries text": envelope(headers__retries="many"),
    "ETA in 9999": envelope(headers__eta="9999-12-31T23:59:59.999999+00:00"),
    "priority text": envelope(properties__priority="high"),
    "ID a number": envelope(headers__id=7),
    "callback text": envelope(body=body([[1], {}, {**EMBED, "callbacks": ["x"]}])),
    "wrong keywords": envelope(body=body([[], {"n": 1}, EMBED])),
    "no third part": envelope(body=body([[1], {}, None])),
    "limit negative": envelope(headers__timelimit=[-1, None]),
}
