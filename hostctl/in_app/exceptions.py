"""The exception behind an answer of 500, which Django's default logging does not print."""

from __future__ import annotations

import traceback
from typing import Any


def exception(path: str, domain: str) -> dict[str, Any]:
    """Request a page inside this process; return the `traceback` of the exception that it raises, or ""."""
    from wsgiref.util import setup_testing_defaults

    from django.core.handlers.wsgi import WSGIHandler
    from django.core.signals import got_request_exception

    path, _, query = path.partition("?")
    environ = {"PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": domain, "REMOTE_ADDR": "127.0.0.1"}
    environ |= {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_REAL_IP": "127.0.0.1"}
    setup_testing_defaults(environ)
    found: list[str] = []

    def keep(**signal: Any) -> None:
        found.append(traceback.format_exc())

    got_request_exception.connect(keep, weak=False)
    try:
        list(WSGIHandler()(environ, lambda *arguments: None))
    except Exception:
        found.append(traceback.format_exc())
    finally:
        got_request_exception.disconnect(keep)
    return {"traceback": found[0] if found else ""}
