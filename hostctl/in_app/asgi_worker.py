"""gunicorn's worker for ASGI: open WebSockets go on after SIGTERM, until they end or the time to stop is over.

It is that of uvicorn where the project has the package uvicorn-worker, else gunicorn's own (from version 25 on). Both
get gunicorn's graceful_timeout, of which the last seconds (MARGIN) are for closing what is left.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from . import visitors

# Seconds to close what is still open.
MARGIN = 8
# The code of WebSockets that are closed: "service restart", after which clients connect again.
SERVICE_RESTART = 1012

try:
    from uvicorn.server import Server
    from uvicorn_worker import UvicornWorker
except ImportError:
    UvicornWorker = None


class WebSockets:
    """An ASGI application around another one; knows which of its WebSockets are open."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.senders: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await self.application(scope, receive, send)
            return
        self.senders.add(send)
        try:
            await self.application(scope, receive, send)
        finally:
            self.senders.discard(send)

    async def close(self) -> None:
        """Close what is open; give up after a few seconds."""
        message = {"type": "websocket.close", "code": SERVICE_RESTART}
        if closing := [asyncio.ensure_future(send(message)) for send in self.senders]:
            await asyncio.wait(closing, timeout=MARGIN - 3)


if UvicornWorker:

    class PatientServer(Server):
        """A server that accepts no more, and waits for its connections, before it closes them."""

        patience = 0.0

        async def shutdown(self, sockets: Any = None) -> None:
            for server in self.servers:
                server.close()
            deadline = time.monotonic() + self.patience
            while self.server_state.connections and time.monotonic() < deadline and not self.force_exit:
                await self.config.callback_notify()
                await asyncio.sleep(0.1)
            # It closes WebSockets with SERVICE_RESTART.
            await super().shutdown(sockets)

    class SocketWorker(UvicornWorker):
        async def _serve(self) -> None:
            self.config.app = visitors.asgi(self.wsgi)
            self.config.timeout_graceful_shutdown = MARGIN - 2
            server = PatientServer(config=self.config)
            server.patience = max(self.cfg.graceful_timeout - MARGIN, 0)
            self._install_sigquit_handler()
            await server.serve(sockets=self.sockets)
            if not server.started:
                raise SystemExit(3)  # gunicorn's WORKER_BOOT_ERROR: it gives up

else:
    from gunicorn.workers.gasgi import ASGIWorker

    class SocketWorker(ASGIWorker):
        def load_wsgi(self) -> None:
            super().load_wsgi()
            self.asgi = self.websockets = WebSockets(visitors.asgi(self.asgi))

        async def _shutdown(self) -> None:
            for server in self.servers:
                server.close()
            deadline = time.monotonic() + self.cfg.graceful_timeout - MARGIN
            while self.nr_conns and time.monotonic() < deadline and not self._quick_shutdown:
                await asyncio.sleep(0.1)
            await self.websockets.close()
            # In this process's copy of the settings: nothing more to wait for.
            self.cfg.set("graceful_timeout", 1)
            await super()._shutdown()
