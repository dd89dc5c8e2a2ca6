"""Programs of Supervisor: calls to a stand-in that listens on a socket like supervisord."""

from __future__ import annotations

import configparser
import os
import re
import socketserver
import threading
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from hostctl.processes import supervisor
from hostctl.processes.state import ProcessState
from hostctl.settings import ReleaseError, Settings, Worker

ROOT = Path(__file__).parents[2]
OLD, NEW = "old-1", "new-2"
WEB, WORKER = f"shop-web@{NEW}", f"shop-worker-default@{NEW}"
TEMPLATE = """\
[group:shop@@RELEASE@]
programs=shop-web@@RELEASE@,shop-worker-default@@RELEASE@
[program:shop-web@@RELEASE@]
command=web
[program:shop-worker-default@@RELEASE@]
command=worker
"""


class Daemon:
    """A stand-in for supervisord: programs run from `startProcess` to `stopProcess`, or as a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, list[str]] = {}
        self.groups: dict[str, dict[str, dict[str, Any]]] = {}
        self.pids = count(100)
        self.state = 1
        self.log = ""
        # Programs that take a while to stop.
        self.slow: set[str] = set()

    def process(self, name: str) -> dict[str, Any]:
        return next(group[name] for group in self.groups.values() if name in group)

    def set(self, name: str, state: int, **more: Any) -> None:
        self.process(name).update(state=state, **more)

    def find(self, name: str) -> dict[str, Any]:
        group, _, program = name.partition(":")
        try:
            return self.groups[group][program]
        except KeyError:
            raise xmlrpc.client.Fault(10, f"BAD_NAME: {name}") from None

    # Supervisor's own names and numbers from here on: supervisord.org/api.html

    def getState(self) -> dict[str, int]:  # noqa: N802
        return {"statecode": self.state}

    def readLog(self, offset: int, length: int) -> str:  # noqa: N802
        if not self.log:
            raise xmlrpc.client.Fault(20, "NO_FILE")
        return self.log

    def getAllProcessInfo(self) -> list[dict[str, Any]]:  # noqa: N802
        found = [dict(process) for group in self.groups.values() for process in group.values()]
        for name in [process["name"] for process in found if process["state"] == 40 and process["name"] in self.slow]:
            self.slow.remove(name)
            self.set(name, 0, pid=0)
        return found

    def reloadConfig(self) -> list[Any]:  # noqa: N802
        parser = configparser.RawConfigParser()
        parser.read(self.folder.glob("*.conf"))
        groups = {name[6:]: parser[name]["programs"].split(",") for name in parser if name.startswith("group:")}
        grouped = {program for programs in groups.values() for program in programs}
        alone = {name[8:] for name in parser if name.startswith("program:")} - grouped
        self.known = groups | {name: [name] for name in alone}
        return []

    def addProcessGroup(self, name: str) -> bool:  # noqa: N802
        if name in self.groups:
            raise xmlrpc.client.Fault(90, f"ALREADY_ADDED: {name}")
        self.groups[name] = {
            program: {"name": program, "group": name, "state": 0, "pid": 0, "start": 0, "stop": 0}
            for program in self.known[name]
        }
        return True

    def removeProcessGroup(self, name: str) -> bool:  # noqa: N802
        if name not in self.groups:
            raise xmlrpc.client.Fault(10, f"BAD_NAME: {name}")
        if any(process["state"] in (10, 20, 30, 40) for process in self.groups[name].values()):
            raise xmlrpc.client.Fault(91, f"STILL_RUNNING: {name}")
        del self.groups[name]
        return True

    def startProcess(self, name: str, wait: bool) -> bool:  # noqa: N802
        process = self.find(name)
        if process["state"] in (10, 20, 30):
            raise xmlrpc.client.Fault(60, f"ALREADY_STARTED: {name}")
        process.update(state=10, pid=next(self.pids))
        return True

    def stopProcess(self, name: str, wait: bool) -> bool:  # noqa: N802
        process = self.find(name)
        if process["state"] not in (10, 20, 30):
            raise xmlrpc.client.Fault(70, f"NOT_RUNNING: {name}")
        if process["name"] in self.slow:
            process.update(state=40)
        else:
            process.update(state=0, pid=0)
        return True


class Handler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    disable_nagle_algorithm = False

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        pass


class Server(socketserver.ThreadingUnixStreamServer, xmlrpc.server.SimpleXMLRPCDispatcher):
    def __init__(self, path: Path, daemon: Daemon) -> None:
        xmlrpc.server.SimpleXMLRPCDispatcher.__init__(self, allow_none=False)
        socketserver.ThreadingUnixStreamServer.__init__(self, str(path), Handler)
        self.daemon_threads, self.logRequests = True, False
        methods = [name for name in dir(daemon) if re.match(r"[a-z]+[A-Z]", name)]
        for name in methods:
            self.register_function(getattr(daemon, name), f"supervisor.{name}")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("conf.d", "units", "log", "srv/shop/releases"):
        (tmp_path / name).mkdir(parents=True)
    for release in (OLD, NEW, "older-0"):
        folder = tmp_path / "etc/shop/releases" / release / "supervisor"
        folder.mkdir(parents=True)
        (folder / "release.conf").write_text(TEMPLATE)
        (folder / "beat.conf").write_text("[program:shop-beat]\ncommand=beat @RELEASE@\n")
        for name in ("app", "supervisor"):
            (folder / f"{name}.service.conf").write_text(f"# {name}\n")
    for name, folder in {"SOCKET": "sock", "PROGRAMS": "conf.d", "UNITS": "units", "LOGS": "log"}.items():
        monkeypatch.setattr(supervisor, name, tmp_path / folder)
    monkeypatch.setattr(supervisor, "PATIENCE", 0.2)
    monkeypatch.setattr(supervisor, "DAEMON", tmp_path)
    monkeypatch.setattr(supervisor, "systemctl", lambda *arguments: None)
    workers = [Worker("default", ["default"])]
    return Settings(name="shop", domain="", workers=workers, root=tmp_path / "srv", config=tmp_path / "etc")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What systemctl is called with."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(supervisor, "systemctl", lambda *arguments: found.append(arguments))
    return found


@pytest.fixture
def daemon(settings: Settings) -> Iterator[Daemon]:
    daemon = Daemon(supervisor.PROGRAMS)
    server = Server(supervisor.SOCKET, daemon)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield daemon
    server.shutdown()
    server.server_close()


@pytest.fixture
def manager(settings: Settings, daemon: Daemon) -> supervisor.Supervisor:
    return supervisor.Supervisor(settings)


def conf_files() -> set[str]:
    return {file.name for file in supervisor.PROGRAMS.iterdir()}


# --- Starting and stopping


def test_a_release_starts_and_stops(manager: supervisor.Supervisor) -> None:
    manager.prepare(NEW)
    assert manager.alive() == {}
    manager.start([WEB, WORKER])
    assert manager.alive() == {WEB: NEW, WORKER: NEW}
    assert manager.failed([WEB, WORKER]) == []
    manager.stop([WEB, WORKER])
    assert manager.alive() == {}


def test_a_running_program_is_not_started_twice(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.start([WEB])
    first = daemon.process(WEB)["pid"]
    manager.prepare(NEW)
    manager.start([WEB])
    assert daemon.process(WEB)["pid"] == first


def test_programs_that_supervisord_does_not_know_are_loaded(manager: supervisor.Supervisor) -> None:
    """After a reboot that follows a change of the manager."""
    manager.start([WEB], wait=False)
    manager.start_beat(NEW, wait=False)
    assert conf_files() == {f"shop@{NEW}.conf", "shop-beat.conf"}
    assert manager.beat_runs()


def test_a_stopping_program_is_started_after_its_end(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.start([WORKER])
    daemon.slow = {WORKER}
    manager.stop([WORKER], wait=False)
    assert manager.alive() == {WORKER: NEW}
    manager.start([WORKER])
    assert manager.failed([WORKER]) == []
    assert daemon.process(WORKER)["state"] == 10


def test_a_program_that_is_about_to_be_restarted_is_stopped(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.start([WEB])
    daemon.set(WEB, 100, pid=0)
    thread = threading.Timer(0.2, lambda: daemon.set(WEB, 10, pid=7))
    thread.start()
    manager.stop([WEB])
    thread.join()
    assert daemon.process(WEB)["state"] == 0


@pytest.mark.parametrize(
    "became",
    [
        pytest.param({"state": 30, "pid": 0}, id="waiting-to-be-started-again"),
        pytest.param({"state": 200, "pid": 0}, id="given-up"),
        pytest.param({"state": 20, "pid": 7}, id="started-again"),
    ],
)
def test_a_program_that_ended_has_failed(
    manager: supervisor.Supervisor, daemon: Daemon, became: dict[str, int]
) -> None:
    manager.start([WEB, WORKER])
    daemon.set(WEB, **became)
    assert manager.failed([WEB, WORKER]) == [WEB]


def test_restarts_are_counted_in_the_log_of_supervisord(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.prepare(NEW)
    manager.start([WEB])
    daemon.set(WEB, 20, start=1764381600)
    daemon.set(WORKER, 200, stop=1764381601)
    states = [(WEB, "active", 0, 1764381600), (WORKER, "failed", 0, 1764381601), ("shop-beat", "inactive", 0, 0)]
    units = [WEB, WORKER, "shop-beat"]
    assert manager.process_states(units) == [ProcessState(*state) for state in states]
    ended = f"2026-11-29 02:00:00,123 WARN exited: {WEB} (exit status 3; not expected)\n"
    stopped = f"2026-11-29 02:00:00,123 WARN stopped: {WEB} (terminated by SIGKILL)\n"
    other = f"2026-11-29 02:00:00,123 INFO exited: {WORKER} (exit status 0; expected)\n"
    again = "2026-11-29 02:00:00,123 INFO supervisord started with pid 7\n"
    for log, restarts in {ended * 2 + other: 2, ended + stopped + ended: 1, ended + again: 0}.items():
        daemon.log = log
        assert manager.process_states([WEB])[0].restarts == restarts


def test_beat_is_restarted(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.restart_beat(OLD)
    first = daemon.process("shop-beat")["pid"]
    manager.restart_beat(NEW)
    assert f"beat {NEW}" in (supervisor.PROGRAMS / "shop-beat.conf").read_text()
    assert daemon.process("shop-beat")["pid"] != first
    assert manager.alive() == {}, "beat belongs to no release"
    manager.stop_beat()
    assert not manager.beat_runs()


def test_recent_logs_are_those_of_the_release(manager: supervisor.Supervisor) -> None:
    (supervisor.LOGS / "shop").mkdir()
    manager.log(WEB).write_text("\n".join(f"line {number}" for number in range(50)))
    manager.log(f"shop-web@{OLD}").write_text("of another")
    assert manager.recent_logs([WEB, WORKER], lines=2) == "line 48\nline 49"


LOG_LINES = """\
early
[2026-11-29 10:00:00 +0000] one
more
[2026-11-29 12:00:00 +0100] two
and
2026-11-29T11:30:00Z three"""


@pytest.mark.parametrize(
    ("since", "text"),
    [
        (
            0,
            LOG_LINES,
        ),
        (1795950000, "[2026-11-29 12:00:00 +0100] two\nand\n2026-11-29T11:30:00Z three"),
        (1795950001, "2026-11-29T11:30:00Z three"),
        (1795955000, ""),
        (2_000_000_000, ""),
    ],
)
def test_earlier_log_lines_are_left_out(manager: supervisor.Supervisor, since: int, text: str) -> None:
    (supervisor.LOGS / "shop").mkdir()
    lines = f"{LOG_LINES}\n"
    manager.log(WEB).write_text(lines)
    os.utime(manager.log(WEB), (1795952000, 1795960000))
    assert manager.recent_logs([WEB], since=since) == text


# --- supervisord is not there, or says no


def test_without_supervisord_nothing_runs(settings: Settings) -> None:
    manager = supervisor.Supervisor(settings)
    assert (manager.alive(), manager.beat_runs()) == ({}, False)
    with pytest.raises(ReleaseError, match="supervisord does not answer at"):
        manager.start([WEB])


def test_a_stopping_supervisord_is_not_asked(manager: supervisor.Supervisor, daemon: Daemon) -> None:
    manager.start([WEB])
    daemon.state = -1
    assert manager.alive() == {}


def test_messages_of_supervisord_are_passed_on(manager: supervisor.Supervisor) -> None:
    manager.start([WEB])
    with pytest.raises(ReleaseError, match="STILL_RUNNING"):
        manager.forget(NEW)


# --- The drop-ins of a release


def test_supervisord_is_set_up_for_its_first_release(
    manager: supervisor.Supervisor, calls: list[tuple[str, ...]]
) -> None:
    """Also by a rollback, after the other manager has removed it."""
    manager.prepare(NEW)
    assert {path.read_text() for path in manager.drop_ins().values()} == {"# app\n", "# supervisor\n"}
    assert calls == [("daemon-reload",), ("enable", "--quiet", "--now", "supervisor.service")]


def test_a_changed_sandbox_of_supervisord_is_installed_with_the_release_that_is_live(
    manager: supervisor.Supervisor, settings: Settings, calls: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A release that fails before that changes nothing that a restart of supervisord would use."""
    manager.prepare(OLD)
    manager.mark_active(OLD)
    assert capsys.readouterr().out == ""
    (settings.configurations / NEW / "supervisor/supervisor.service.conf").write_text("MemoryDenyWriteExecute=yes\n")
    manager.prepare(NEW)
    file = manager.drop_ins()["supervisor"]
    assert file.read_text() == "# supervisor\n"
    manager.mark_active(NEW)
    assert file.read_text() == "MemoryDenyWriteExecute=yes\n"
    assert "systemctl restart supervisor" in capsys.readouterr().out


def test_programs_without_definition_are_missing(manager: supervisor.Supervisor, settings: Settings) -> None:
    assert manager.missing(NEW) == []
    folder = settings.configurations / NEW / "supervisor"
    (folder / "release.conf").write_text(TEMPLATE.replace("worker-default", "worker-other"))
    assert manager.missing(NEW) == [WORKER]
    (folder / "release.conf").unlink()
    assert manager.missing(NEW) == [WEB, WORKER]


# --- Nothing is left behind


def test_a_removed_release_loses_its_programs_and_logs(manager: supervisor.Supervisor) -> None:
    for release in (OLD, NEW):
        manager.prepare(release)
        for name in ("log", "log.1"):
            (supervisor.LOGS / f"shop/shop-web@{release}.{name}").write_text("")
    manager.forget(OLD)
    assert conf_files() == {f"shop@{NEW}.conf"}
    assert {file.name for file in (supervisor.LOGS / "shop").iterdir()} == {f"{WEB}.log", f"{WEB}.log.1"}


def test_current_and_running_releases_keep_their_programs(manager: supervisor.Supervisor, settings: Settings) -> None:
    for release in (OLD, NEW, "older-0"):
        manager.prepare(release)
    manager.restart_beat(NEW)
    manager.start([f"shop-web@{OLD}"])
    settings.current.symlink_to(f"releases/{NEW}")
    manager.remove_stale()
    assert conf_files() == {f"shop@{OLD}.conf", f"shop@{NEW}.conf", "shop-beat.conf"}


def test_nothing_is_left_when_the_other_manager_has_taken_over(
    manager: supervisor.Supervisor, settings: Settings, tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    manager.prepare(NEW)
    manager.start([WEB])
    assert {path.name for path in supervisor.UNITS.iterdir()} == {"shop.service.d", "supervisor.service.d"}
    calls.clear()
    manager.uninstall()
    assert calls == [], "not while something runs"
    manager.stop([WEB])
    manager.uninstall()
    kept = {file for file in tmp_path.rglob("*") if file.is_file() and settings.configurations not in file.parents}
    assert kept == set()
    assert list(supervisor.UNITS.iterdir()) == []
    assert not (supervisor.LOGS / "shop").exists()
    assert calls == [("daemon-reload",), ("disable", "--quiet", "--now", "supervisor.service")]
    manager.uninstall()
    assert len(calls) == 2, "once is enough"


def test_a_supervisord_that_others_use_keeps_running(
    manager: supervisor.Supervisor, calls: list[tuple[str, ...]]
) -> None:
    (supervisor.PROGRAMS / "theirs.conf").write_text("[program:theirs]\ncommand=true\n")
    (supervisor.LOGS / "shop").mkdir()
    manager.uninstall()
    assert calls == [("daemon-reload",)]
    assert conf_files() == {"theirs.conf"}
