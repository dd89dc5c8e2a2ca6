"""The program that rolls releases out, as far as it needs no host: lock, health check, links and folders."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "roles/release/files/release.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["release"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(program: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "shop/releases").mkdir(parents=True)
    return program.Settings(name="shop", domain="shop.example.org", root=tmp_path, config=tmp_path / "etc", keep=2)


@pytest.fixture
def host(program: ModuleType, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The releases of a host on which no process runs."""
    monkeypatch.setattr(program.Systemd, "alive", lambda self: {})
    monkeypatch.setattr(program.Systemd, "stop", lambda self, units, wait=True: None)
    return program.Host(settings)


def build(settings: Any, release: str, age: int = 0) -> None:
    folder = settings.releases / release
    folder.mkdir()
    (folder / "release.json").write_text(json.dumps({"id": release, "versions": {}}))
    os.utime(folder / "release.json", (time.time() - age, time.time() - age))


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers as `status` and `body` of its server say, after `delay` seconds."""

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        self.send_response(self.server.status if self.headers["Host"] == "shop.example.org" else 400)
        self.end_headers()
        self.wfile.write(self.server.body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    servers = []

    def serve(status: int = 200, body: bytes = b'{"release": "abcd-1"}', delay: float = 0) -> Path:
        path = tmp_path / "web.sock"
        server = socketserver.ThreadingUnixStreamServer(str(path), Answer)
        server.daemon_threads = True
        server.status, server.body, server.delay = status, body, delay
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return path

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_environment_files_are_read_as_they_were_written(program: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "env").write_text('# comment\nPLAIN="a b"\nODD="\\"\\\\ \\$HOME \\` \' # %"\nEMPTY=""\n')
    assert program.read_environment(tmp_path / "env") == {"PLAIN": "a b", "ODD": "\"\\ $HOME ` ' # %", "EMPTY": ""}


def test_a_release_that_names_itself_is_healthy(program: ModuleType, settings: Any, web: Callable[..., Path]) -> None:
    assert program.health_problem(settings, web(), "abcd-1") == ""


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 500}, "status 500"),
        ({"body": b'{"release": "other-2"}'}, "does not name release abcd-1"),
        ({"delay": 3}, "no answer"),
    ],
)
def test_what_is_wrong_with_a_release_is_said(
    program: ModuleType, settings: Any, web: Callable[..., Path], answer: dict[str, Any], problem: str
) -> None:
    assert problem in program.health_problem(settings, web(**answer), "abcd-1", timeout=0.3)


def test_a_release_without_a_socket_does_not_answer(program: ModuleType, settings: Any, tmp_path: Path) -> None:
    assert "no answer" in program.health_problem(settings, tmp_path / "nothing", "abcd-1")


def test_a_second_rollout_is_refused_and_told_who_is_at_work(program: ModuleType, settings: Any) -> None:
    holder = program.lock(settings, "migrate abcd-1")
    with pytest.raises(program.BusyError, match=r"migrate abcd-1, by \S+, since .* process \d+"):
        program.lock(settings, "prepare efgh-2")
    os.close(holder)
    os.close(program.lock(settings, "prepare efgh-2"))


def test_the_lock_dies_with_its_process(program: ModuleType, settings: Any) -> None:
    root = str(settings.root)
    code = f"""
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("release", {str(SCRIPT)!r})
release = importlib.util.module_from_spec(spec); sys.modules["release"] = release; spec.loader.exec_module(release)
handle = release.lock(release.Settings(name="shop", domain="", root=pathlib.Path({root!r})), "start abcd-1")
print("locked", flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(program.BusyError):
            program.lock(settings, "prepare efgh-2")
        process.kill()
    os.close(program.lock(settings, "prepare efgh-2"))


def test_the_switch_is_one_rename(settings: Any, host: Any) -> None:
    assert host.serving() == ""
    for release in ("abcd-1", "efgh-2"):
        build(settings, release)
        host.switch(release)
        assert host.serving() == release
    assert settings.current.resolve() == settings.releases / "efgh-2"
    assert not (settings.home / "current.new").exists()


def test_old_releases_go_and_the_one_in_use_stays(settings: Any, host: Any) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "older-2", "oldest-1")):
        build(settings, release, age=age * 60)
    (settings.releases / "half-built").mkdir()
    host.switch("oldest-1")
    host.prune()
    assert {path.name for path in settings.releases.iterdir()} == {"newest-4", "newer-3", "oldest-1"}


def test_a_release_with_a_process_alive_stays(program: ModuleType, settings: Any, host: Any, monkeypatch: Any) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "draining-2")):
        build(settings, release, age=age * 60)
    host.switch("newest-4")
    monkeypatch.setattr(program.Systemd, "alive", lambda self: {"shop-worker-default@draining-2.service": "draining-2"})
    host.prune()
    assert (settings.releases / "draining-2").exists()


def test_the_current_release_is_never_removed(program: ModuleType, settings: Any, host: Any) -> None:
    build(settings, "abcd-1")
    host.switch("abcd-1")
    with pytest.raises(program.ReleaseError, match="is current and stays"):
        host.abort("abcd-1")
    assert (settings.releases / "abcd-1").exists()


@pytest.mark.parametrize("name", ["../etc", "a", "x" * 65, "with space", ""])
def test_what_cannot_name_a_release_is_refused(program: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.parse(["start", name])
    assert stopped.value.code == 2
