"""A package index that asks for a name and a password, with one package."""

from __future__ import annotations

import base64
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(package: str, module: str) -> bytes:
    """Return a wheel, version 1.0, with one module: its name is `package`, its code `module`."""
    files = {
        f"{package}.py": module,
        f"{package}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
        f"{package}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{package}-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return stream.getvalue()


@contextmanager
def package_index(address: str, package: str, module: str, login: str) -> Iterator[int]:
    """Serve `package` at this address to who logs in with `login` (name:password); give the port."""
    expected = f"Basic {base64.b64encode(login.encode()).decode()}"
    name = f"{package}-1.0-py3-none-any.whl"
    pages = {
        f"/simple/{package.replace('_', '-')}/": (f'<a href="/{name}">{name}</a>'.encode(), "text/html"),
        f"/{name}": (wheel(package, module), "application/octet-stream"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            """Send status and headers; return the body."""
            body, kind = pages.get(self.path, (b"", "text/plain"))
            status = 200 if body else 404
            if self.headers.get("Authorization") != expected:
                status, body = 401, b""
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="packages"')
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def log_message(self, *words: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()
