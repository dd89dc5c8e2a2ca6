"""Call supervisord through its XML-RPC on a Unix socket."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..settings import ReleaseError

# supervisord's own state, as getState answers it.
RUNNING_STATE = 1


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


class Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: Any) -> Connection:
        return Connection(self.path)


def proxy(path: Path) -> xmlrpc.client.ServerProxy:
    return xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=Transport(path))


def call(path: Path, method: str, arguments: tuple[Any, ...], but: Collection[int]) -> Any:
    """Call a method of Supervisor, ignoring the faults in `but`. Raises ReleaseError with supervisord's message."""
    try:
        return getattr(proxy(path).supervisor, method)(*arguments)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode in but:
            return None
        raise ReleaseError(f"Supervisor's {method}{arguments}: {fault.faultString}") from None
    except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
        raise ReleaseError(f"supervisord does not answer at {path}: {error}") from None


def answers(path: Path) -> bool:
    """Return whether supervisord runs and is not shutting down."""
    try:
        return proxy(path).supervisor.getState()["statecode"] == RUNNING_STATE
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return False
