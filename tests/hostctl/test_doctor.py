"""`doctor`: the screen, its limits, and the checks of the application's processes."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostctl import beat, cli, upgrade
from hostctl.backup.tools import ToolError
from hostctl.deploy import health
from hostctl.doctor import application, certificate, checks, data, finding, network, run, system
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Check, Context, Finding
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import ReleaseError, Settings
from tests.hostctl.fakes import OLD, Manager

pytestmark = pytest.mark.usefixtures("remedies")

WEB, WORKER = f"shop-web@{OLD}", f"shop-worker-default@{OLD}"


@pytest.fixture
def context(live: Host, tmp_path: Path) -> Context:
    groups = ["web", "worker", "scheduler", "database", "broker"]
    configuration = Configuration(
        "shop", host="vps1", groups=groups, url="https://shop.example.org", etc=tmp_path / "etc", state=tmp_path,
        web=tmp_path / "www",
    )  # fmt: skip
    return Context(live, configuration, now=time.time())


def watch(context: Context, seconds: float = 0) -> Context:
    """Return the context of the watch, a while later, with the same memory."""
    return Context(
        context.host, context.configuration, memory=context.memory, watches=True, now=context.now + seconds
    )  # fmt: skip


def states(manager: Manager, *found: ProcessState) -> None:
    manager.state |= {state.unit: state for state in found}


# --- The screen ----------------------------------------------------------------------------------------------------


def screen(context: Context, *some: Check, json_output: bool = False) -> int:
    return run.doctor(context, some, json_output=json_output, colors=False)


def test_each_line_has_its_remedy_and_the_worst_is_the_exit_status(context: Context, capsys: Any) -> None:
    well = Check("site", lambda context: Finding(OK, "fine", "not shown"))
    warning = Check("disk", lambda context: Finding(WARN, "82 % used", "du -xh /"))
    broken = Check("queues", lambda context: Finding(BAD, "stuck", "shopctl logs worker\nshopctl status"))
    absent = Check("redis", lambda context: None)
    assert screen(context, well, absent) == 0
    assert screen(context, well, warning) == 1
    capsys.readouterr()
    assert screen(context, well, warning, broken) == 2
    title, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"shop on vps1 +20\d\d-\d\d-\d\d \d\d:\d\d UTC  \d\.\d s", title)
    assert lines == [
        "ok  site         fine",
        "!   disk         82 % used",
        "                 du -xh /",
        "x   queues       stuck",
        "                 shopctl logs worker",
        "                 shopctl status",
        "2 things to do.",
    ]


@pytest.mark.parametrize(
    ("of_host", "of_clone", "shown"),
    [
        ("", [], "INVENTORY"),
        ("inventory/production.yml", [], "inventory/production.yml"),
        ("inventory/production.yml", ["/my hosts.yml"], "'/my hosts.yml'"),
        ("inventory/production.yml", ["inventory/a.yml", "/b.yml"], "inventory/a.yml -i /b.yml"),
    ],
)
def test_commands_name_the_inventory(
    context: Context, of_host: str, of_clone: list[str], shown: str, capsys: Any
) -> None:
    context.configuration = replace(context.configuration, inventory=of_host)
    context.clone_settings = {"inventories": of_clone, "settings": {}}
    finding = Finding(BAD, "none (ansible-playbook -i INVENTORY a.yml)", "ansible-playbook -i INVENTORY site.yml")
    screen(context, Check("release", lambda context: finding))
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"x   release      none (ansible-playbook -i {shown} a.yml)"
    assert lines[1].strip() == f"ansible-playbook -i {shown} site.yml"


@pytest.mark.parametrize(
    ("inventory", "groups", "folder"),
    [
        ("inventory/demo.yml", ["demo", "web"], "group_vars/demo/app.yml"),
        ("inventory/hosts.yml", ["web"], "group_vars/ENV/app.yml"),
        ("", ["web"], "group_vars/ENV/app.yml"),
    ],
)
def test_settings_are_in_the_folder_of_the_environment(
    context: Context, inventory: str, groups: list[str], folder: str, capsys: Any
) -> None:
    context.configuration = replace(context.configuration, inventory=inventory, groups=groups)
    screen(context, Check("backup", lambda context: Finding(WARN, "no target", "# set it in group_vars/ENV/app.yml")))
    assert f"# set it in {folder}" in capsys.readouterr().out


def test_json(context: Context, capsys: Any) -> None:
    check = Check("disk", lambda context: Finding(WARN, "full", "du", {"disk_used": 2.0}))
    assert screen(context, check, json_output=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "warn"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["time"])
    assert found["release"] == OLD
    assert found["checks"] == [
        {"name": "disk", "state": "warn", "text": "full", "remedy": "du", "values": {"disk_used": 2.0}}
    ]


def test_a_check_that_hangs_or_breaks_is_a_line_of_its_own(context: Context) -> None:
    def breaks(context: Context) -> Finding:
        raise KeyError("MemTotal")

    def fails(context: Context) -> Finding:
        raise ReleaseError("systemctl show: no\n  bus\n" + "x" * 1000)

    ended = threading.Event()
    found = run.examine(
        context,
        [
            Check("redis", lambda context: Finding(BAD, "late") if ended.wait(20) else None, seconds=0.05),
            Check("memory", breaks),
            Check("web", fails),
            Check("site", lambda context: Finding(OK, "fine")),
        ],
    )
    ended.set()
    assert list(found) == ["redis", "memory", "web", "site"]
    assert found["redis"].text == "no answer in 0.05 s"
    # The text of an error that was not expected may hold a secret.
    assert re.fullmatch(r"cannot be read: KeyError at test_doctor.py:\d+", found["memory"].text)
    assert found["web"].text == f"systemctl show: no bus {'x' * 217}..."
    assert [one.state for one in found.values()] == [BAD, BAD, BAD, OK]
    assert all(one.remedy for one in found.values() if one.state != OK)


def test_a_process_manager_that_hangs_says_nothing_of_memory(
    context: Context, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(finding, "PROCESSES_SECONDS", 0.05)
    monkeypatch.setattr(manager, "states_of", lambda units: ended.wait(20) and [])
    some = [check for check in checks.CHECKS if check.name in ("web", "workers", "memory")]
    found = run.examine(context, [replace(check, seconds=15) for check in some])
    ended.set()
    assert found["memory"].state != BAD
    assert [found[name].state for name in ("web", "workers")] == [BAD, BAD]
    assert found["web"].text == "the process manager has not answered in 0.05 s"


def test_the_screen_takes_less_than_ten_seconds_whatever_hangs() -> None:
    assert max(check.seconds for check in checks.CHECKS) < 10
    names = [check.name for check in checks.CHECKS]
    assert len(names) == len(set(names))


# --- The command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(live: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `shopctl doctor` as root on a host where every program is missing."""
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: live.settings)
    monkeypatch.setattr(cli, "Host", lambda settings: live)
    monkeypatch.setattr(upgrade, "upgrade", lambda settings: None)

    def missing(words: list[str], **options: Any) -> str:
        raise ToolError(f"{words[0]} is not on this host: run playbooks/provision.yml, which installs it.", None)

    for module in (network, system, data, certificate):
        monkeypatch.setattr(module, "call", missing)
    return lambda *words: cli.main(["doctor", *words])


def test_a_host_without_a_configuration_is_one_sentence(command: Callable[..., int], capsys: Any) -> None:
    assert command() == 1
    assert capsys.readouterr().err.endswith("etc/shop/monitoring.json is missing: run site.yml, which writes it.\n")


def test_a_host_of_the_database_alone(
    live: Host, settings: Settings, command: Callable[..., int], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a release, and without PostgreSQL's programs."""
    monkeypatch.setattr(live, "current_release", lambda: "")
    values = {"name": "shop", "host": "db1", "groups": ["database"], "postgresql": "17"}
    (settings.etc / "monitoring.json").write_text(json.dumps(values))
    assert command("--json") == 2
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert found["postgresql"]["text"].startswith("does not answer: psql is not on this host")
    assert found["postgresql"]["remedy"].startswith("systemctl start postgresql@17-main")
    assert not {"site", "web", "workers", "beat", "queues", "redis", "certificate", "backup"} & set(found)
    assert {"disk", "memory", "settings"} <= set(found)


# --- Processes -----------------------------------------------------------------------------------------------------


def test_processes_that_run(context: Context) -> None:
    assert application.web(context) == Finding(OK, "web: runs, 0 restarts")
    assert application.workers(context) == Finding(OK, "default: runs, 0 restarts")


def test_a_process_that_has_ended_is_named_with_its_logs(context: Context, manager: Manager) -> None:
    states(manager, ProcessState(WEB, "failed", 5, 1795892400), ProcessState(WORKER, "inactive", None))
    web, workers = application.web(context), application.workers(context)
    assert (web.state, web.text) == (BAD, "web failed since 2026-11-28 19:00 UTC")
    assert web.remedy == "shopctl verify; shopctl logs web"
    assert (workers.state, workers.text) == (BAD, "worker-default inactive")
    # Stopped on purpose: by `systemctl stop shop`.
    assert workers.remedy == "systemctl start shop; shopctl verify"


def test_restarts_again_and_again_are_bad_although_it_runs(context: Context, manager: Manager) -> None:
    long_ago = int(context.now) - 300

    def restarted(number: int, seconds: float) -> Finding:
        states(manager, ProcessState(WORKER, "active", number, long_ago))
        return application.workers(watch(context, seconds))

    assert restarted(10, 0).state == OK
    assert restarted(13, 60).state == OK
    assert restarted(14, 120).text == "worker-default was restarted 4 times in 10 min (limit 3)"
    # A person sees the same.
    assert application.workers(context).state == BAD
    assert restarted(14, 800).state == OK
    # The units of another release are new, and the old ones are not remembered.
    context.memory["restarts"]["shop-web@gone"] = [[context.now, 3]]
    assert restarted(0, 900).state == OK
    assert list(context.memory["restarts"]) == [WORKER]
    # They are counted from 0 again.
    assert restarted(4, 960).state == BAD


def test_a_person_changes_nothing_in_the_memory(context: Context, manager: Manager) -> None:
    states(manager, ProcessState(WORKER, "active", 7, 1))
    application.workers(context)
    system.memory(context)
    system.disk(context)
    assert context.memory == {}


@pytest.fixture
def stopped(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], int]]:
    """Stop a real process by a signal, and have it in this group of processes, with this program of Supervisor."""
    folder, started = tmp_path / "proc", []
    monkeypatch.setattr(application, "PROCESSES", folder)
    command = ["/bin/sh", "-c", "read line", f"{context.settings.home}/current/manage.py"]

    def stop(group: str, program: str = "") -> int:
        variables = {"SUPERVISOR_PROCESS_NAME": program} if program else {}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables)
        started.append(process)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        own = folder / str(process.pid)
        own.mkdir(parents=True)
        for name in ("stat", "cmdline", "environ"):
            (own / name).symlink_to(f"/proc/{process.pid}/{name}")
        (own / "cgroup").write_text(f"0::{group}\n")
        return process.pid

    yield stop
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("supervisor", [False, True])
def test_a_process_that_a_signal_has_stopped(context: Context, stopped: Callable[..., int], supervisor: bool) -> None:
    """It lives and is active for the process manager, and does nothing."""

    def stop(unit: str) -> int:
        group = "/system.slice/supervisor.service" if supervisor else f"/system.slice/shop.slice/{unit}.service"
        return stopped(group, unit if supervisor else "")

    worker, beat_process = stop(WORKER), stop("shop-beat")
    found = application.workers(context)
    assert (found.state, found.text) == (BAD, f"stopped by a signal, and does nothing: process {worker}")
    assert found.remedy == f"kill -CONT {worker}"
    assert application.web(context).state == OK
    assert application.look_at_beat(context).remedy == f"kill -CONT {beat_process}"


@pytest.mark.parametrize(
    "group", ["/user.slice/user-1000.slice/session-4.scope", "/system.slice/supervisor.service", "/"]
)
def test_a_stopped_process_of_an_administrator(context: Context, stopped: Callable[..., int], group: str) -> None:
    """Such as an editor with a file of the application, after Ctrl-Z."""
    stopped(group)
    assert application.workers(context).state == OK


def test_commands_on_a_timer(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = {"name": "cron-report", "timer": "active", "state": "inactive", "result": "success", "last": 1795892400}
    timers = [timer]
    monkeypatch.setattr(context.host.cron, "states", lambda release: timers)
    assert application.workers(context).text == "default: runs, 0 restarts; 1 timer"
    timers[0] = timer | {"result": "exit-code"}
    found = application.workers(context)
    assert (found.state, found.alerts) == (WARN, True)
    assert found.text == "cron-report failed at 2026-11-28 19:00 UTC: exit-code"
    assert found.remedy == "shopctl logs cron-report"
    timers[0] = timer | {"timer": "inactive"}
    assert application.workers(context).state == BAD


def test_without_a_release(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context.host, "current_release", lambda: "")
    assert application.site(context).text == "no release is live"
    assert application.site(context).alerts is False
    assert application.web(context) is None
    assert application.look_at_beat(context) is None
    worker = replace(context.configuration, groups=["worker"])
    assert application.workers(Context(context.host, worker)).text == "no release is live"


# --- Beat ----------------------------------------------------------------------------------------------------------


def beat_says(context: Context, tick: float, next_tick: float, **overdue: float) -> None:
    file = beat.state_file(context.settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    times = {"tick": context.now + tick, "next_tick": context.now + next_tick}
    file.write_text(json.dumps(times | {"sent": 1, "overdue": overdue}))


@pytest.mark.parametrize(
    ("tick", "next_tick", "state"), [(-5, 5, OK), (-200, 100, OK), (-95, -91, WARN), (-200, -181, BAD)]
)
def test_beat_is_late_when_its_next_tick_was_due(context: Context, tick: float, next_tick: float, state: str) -> None:
    beat_says(context, tick, next_tick)
    found = application.look_at_beat(context)
    assert found.state == state
    assert state == OK or found.text.endswith("(limit 180 s late)" if state == BAD else "(limit 90 s late)")
    assert found.values == {"beat_age": -tick}


def test_beat_that_sends_nothing(context: Context) -> None:
    beat_says(context, -5, 5, cleanup=1795892400.0)
    found = application.look_at_beat(context)
    assert (found.state, found.alerts) == (WARN, True)
    assert "'cleanup' (due 2026-11-28 19:00 UTC)" in found.text


@pytest.mark.parametrize("text", ["", "[]", '{"tick": "x"}', '{"tick": 1, "next_tick": 1, "overdue": []}'])
def test_what_the_application_made_of_the_state_of_beat(context: Context, text: str) -> None:
    file = beat.state_file(context.settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert application.look_at_beat(context).state == OK


# --- The site, by TLS ----------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    status = 200
    seen: list[tuple[str, str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"], self.headers["User-Agent"]))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def make_certificate(folder: Path, name: str, days: int) -> Path:
    file = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-days", str(days), "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(Path(f"{file}.crt").read_text() + file.read_text())
    return file


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Page]]:
    """A server with TLS in place of nginx, whose certificate is valid for 90 days."""
    page = type("NginxPage", (Page,), {"seen": [], "status": 200})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), page)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(make_certificate(tmp_path, "shop.example.org", 90))
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(application, "HTTPS", server.server_address)
    yield page
    server.shutdown()
    server.server_close()


def test_the_site_is_requested_as_a_visitor_does(context: Context, nginx: type[Page]) -> None:
    found = application.site(context)
    assert found.state == OK, found
    assert f"release {OLD}; 5xx 0 of 0 in 5 min" in found.text
    assert nginx.seen == [("/healthz/", "shop.example.org", application.AGENT)]
    assert found.values["site_up"] == 1
    nginx.status = 502
    found = application.site(context)
    assert (found.state, found.text) == (BAD, "status 502 through nginx")
    assert found.remedy.startswith("systemctl status nginx; nginx -t; shopctl logs web")
    assert found.values == {"site_up": 0.0}


def test_the_site_has_the_domain_of_the_release(context: Context, nginx: type[Page]) -> None:
    """Until it is deployed, a new domain is that of nginx and of this configuration only."""
    context.configuration = replace(context.configuration, url="https://new.example.org:8443/")
    found = application.site(context)
    assert nginx.seen[0][1] == "shop.example.org:8443"
    assert found.text.startswith("https://shop.example.org:8443 in ")


def test_the_site_by_its_own_socket(context: Context, nginx: type[Page], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "problem", lambda *arguments: "status 500 instead of 200")
    found = application.site(context)
    assert (found.state, found.text) == (BAD, "health check /healthz/: status 500 instead of 200")
    assert nginx.seen == []


@pytest.mark.parametrize("leftover", [False, True], ids=["none", "of a process that was killed"])
def test_no_web_process_listens(context: Context, monkeypatch: pytest.MonkeyPatch, leftover: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as unused:
        path = Path(folder) / "web.sock"
        if leftover:
            unused.bind(str(path))
        answer = health.get(context.settings, path, "/healthz/", 1)
        monkeypatch.setattr(health, "problem", lambda *arguments: health.describe(context.settings, answer))
        found = application.site(context)
    assert (found.state, found.values) == (BAD, {"site_up": 0.0})
    assert found.text == "no web process listens, so visitors get nginx's error page (502)"
    assert found.remedy.startswith("systemctl start shop; shopctl verify; ")


def test_without_nginx(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "HTTPS", ("127.0.0.1", 1))
    assert application.site(context).text == "nginx does not answer on port 443"


@pytest.mark.parametrize(
    ("requests", "errors", "state"), [(1000, 10, OK), (1000, 11, BAD), (20, 5, OK), (20, 6, BAD), (0, 0, OK)]
)
def test_errors_of_the_last_five_minutes(
    context: Context, nginx: type[Page], requests: int, errors: int, state: str
) -> None:
    context.memory["requests"] = [[context.now - 400, 9, 9], [context.now - 60, requests, errors]]
    found = application.site(context)
    assert found.state == state
    assert f"{errors} of {requests:,} " in found.text


@pytest.mark.parametrize("status", [200, 503])
def test_maintenance_mode_is_said(context: Context, nginx: type[Page], tmp_path: Path, status: int) -> None:
    """Whatever has failed in the minutes before; and a page that is not exempt from it answers 503."""
    nginx.status = status
    context.memory["requests"] = [[context.now - 60, 300, 300]]
    (tmp_path / "www/shop").mkdir(parents=True)
    (tmp_path / "www/shop/maintenance").symlink_to("maintenance-pages/60")
    found = application.site(context)
    assert (found.state, found.alerts) == (WARN, False)
    assert "maintenance_state=off" in found.remedy
    nginx.status = 502
    assert application.site(context).state == BAD


# --- The certificate -----------------------------------------------------------------------------------------------


def with_certificate(context: Context, file: Path) -> Context:
    configuration = replace(context.configuration, certificate=str(file))
    return Context(context.host, configuration, now=context.now)


def test_the_certificate_as_it_is_served(context: Context, nginx: type[Page], tmp_path: Path) -> None:
    served = with_certificate(context, tmp_path / "shop.example.org.pem")
    found = certificate.certificate(served)
    assert (found.state, found.text) == (OK, "self-signed, 90 days, served = file")
    assert found.values["certificate_days"] == pytest.approx(90, abs=0.1)
    renewed = make_certificate(tmp_path, "renewed", 365)
    found = certificate.certificate(with_certificate(context, renewed))
    assert (found.state, found.alerts) == (WARN, True)
    assert found.text == f"self-signed, 90 days; nginx does not serve the one in {renewed}"
    assert found.remedy.startswith("nginx -t && systemctl reload nginx")


@pytest.mark.parametrize(
    ("days", "state", "text"),
    [
        (21, OK, "21 days"),
        (19, WARN, "self-signed, expires in 19.0 days (limit 20)"),
        (5, BAD, "expires in 5.0 days (limit 7)"),
        (-1, BAD, "self-signed, expired"),
    ],
)
def test_a_certificate_that_expires(
    context: Context, nginx: type[Page], tmp_path: Path, days: int, state: str, text: str
) -> None:
    late = with_certificate(context, tmp_path / "shop.example.org.pem")
    late.now += (90 - days) * 86400
    found = certificate.certificate(late)
    assert found.state == state
    assert text in found.text


def test_without_tls(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "HTTPS", ("127.0.0.1", 1))
    found = certificate.certificate(with_certificate(context, tmp_path / "none"))
    assert found.state == BAD
    assert found.remedy == "systemctl status nginx; nginx -t"
