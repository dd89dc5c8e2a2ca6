"""The visitor's address, as WSGI and ASGI applications see it."""

from __future__ import annotations

import asyncio
from typing import Any

from hostctl.in_app import visitors


def test_remote_addr_is_the_address_that_nginx_names() -> None:
    seen: list[dict[str, Any]] = []
    application = visitors.wsgi(lambda environ, start_response: seen.append(environ) or [b""])
    application({"REMOTE_ADDR": "", "HTTP_X_REAL_IP": "2001:db8::7"}, print)
    application({"REMOTE_ADDR": ""}, print)
    assert [environ["REMOTE_ADDR"] for environ in seen] == ["2001:db8::7", ""]


def test_the_client_of_a_scope_is_the_address_that_nginx_names() -> None:
    seen: list[dict[str, Any]] = []

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)

    for scope in (
        {"type": "websocket", "headers": [(b"host", b"a"), (b"x-real-ip", b"192.0.2.7")], "client": None},
        {"type": "lifespan"},
    ):
        asyncio.run(visitors.asgi(application)(scope, None, None))
    assert seen[0]["client"] == ("192.0.2.7", 0)
    assert seen[1] == {"type": "lifespan"}
