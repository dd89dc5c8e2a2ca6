"""Give the application its visitor's address: gunicorn knows none for a connection to a Unix socket.

Only nginx can reach the socket. It sets X-Real-IP in every request: to the address that has connected, or to the one
that a proxy of app_trusted_proxies names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def wsgi(application: Callable[..., Any]) -> Callable[..., Any]:
    """Return a WSGI application that sets REMOTE_ADDR."""

    def with_address(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if address := environ.get("HTTP_X_REAL_IP"):
            environ["REMOTE_ADDR"] = address
        return application(environ, start_response)

    return with_address


def asgi(application: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ASGI application that sets `client` of HTTP and WebSocket scopes; the port is not known: 0."""

    async def with_address(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        address = next((value for name, value in scope.get("headers", ()) if name == b"x-real-ip"), b"")
        if address:
            scope = {**scope, "client": (address.decode("latin-1"), 0)}
        await application(scope, receive, send)

    return with_address
