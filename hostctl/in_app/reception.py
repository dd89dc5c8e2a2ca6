"""What is wrong with a message that a worker receives: such messages are parked, and do not end the worker."""

from __future__ import annotations

import math
from typing import Any


def errors() -> tuple[type[Exception], ...]:
    """Return the errors that a message's own content raises while it is received; not those of Redis or a database."""
    from celery.exceptions import InvalidTaskError
    from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
    from redis.exceptions import DataError

    content = (InvalidTaskError, ContentDisallowed, DecodeError, SerializationError, DataError)
    return (*content, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)


def describe(error: BaseException) -> str:
    """Return an error in one line of a limited length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def problem(message: Any) -> str:
    """Return what is wrong with a message (kombu.Message) whose task would end the worker later, or "".

    What raises an error at once is not looked for here. Raises what decoding the body raises.
    """
    headers = message.headers
    if "task" not in headers:
        body = message.payload
        return fields_problem(body) if isinstance(body, dict) and "task" in body else ""
    if not isinstance(headers["task"], str):
        return f"the name of its task is {headers['task']!r:.100}"
    if not isinstance(message.delivery_tag, str):
        return f"its delivery tag is {message.delivery_tag!r:.100}"
    if not all(isinstance(message.delivery_info.get(key), str) for key in ("exchange", "routing_key")):
        return f"its delivery_info is {message.delivery_info!r:.100}"
    payload = message.payload
    if not is_body(payload):
        return "its body is not [arguments, keyword arguments, options]"
    stamps, names = headers.get("stamps"), headers.get("stamped_headers")
    if not isinstance(stamps, dict | None) or not isinstance(names, list | tuple | None):
        return "its stamps are not an object, or their names not a list"
    return fields_problem(headers)


def fields_problem(fields: dict[str, Any]) -> str:
    """Return what is wrong in the headers, or in the body of the old message protocol."""
    if fields.get("id") in (None, ""):
        return "it has no ID"
    return limits_problem(fields.get("timelimit")) or eta_problem(fields.get("eta"))


def limits_problem(limits: Any) -> str:
    """Return what is wrong with a hard and a soft time limit, in seconds."""
    is_pair = isinstance(limits, list | tuple) and len(limits) == 2
    if limits and not (is_pair and all(is_number(limit) for limit in limits if limit is not None)):
        return f"its time limits are {limits!r:.100}"
    return ""


def is_body(payload: Any) -> bool:
    """Return whether a body has the three parts of Celery's message protocol 2, or is one of the hybrid protocol."""
    if isinstance(payload, dict):
        return "args" in payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:
        return False
    arguments, keywords, options = payload
    return isinstance(arguments, list | tuple) and isinstance(keywords, dict) and isinstance(options, dict | None)


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def eta_problem(eta: Any) -> str:
    """Return whether an ETA cannot be converted: Celery drops such a message. Raises ValueError or TypeError, too."""
    from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
    from kombu.asynchronous.timer import to_timestamp

    if eta is None:
        return ""
    try:
        to_timestamp(timezone.to_system(maybe_make_aware(maybe_iso8601(eta))))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"its ETA is {eta!r:.100} ({describe(error)})"
    return ""
