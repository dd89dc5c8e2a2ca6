"""hostctl/watch: what one run measures, keeps and writes. (test_watch_page.py: the page.)"""

from __future__ import annotations

import http.server
import json
import os
import sqlite3
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostctl.doctor import application, commands
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Check, Context, Finding
from hostctl.host import Host
from hostctl.settings import BusyError
from hostctl.watch import alerts, heartbeat, history, machine, pause, requests, run, tasks, textfile

NOW = 1_795_962_000.0
LINE = (
    '{address} - - [30/Nov/2026:14:00:00 +0000] "GET {path} HTTP/2.0" {status} 12 "-" "{agent}" time={seconds} '
    "upstream={upstream} id=98f1"
)


def line(
    path: str = "/", status: int = 200, seconds: float = 0.1, agent: str = "curl", address: str = "192.0.2.7",
    upstream: str = "",
) -> str:  # fmt: skip
    values = {"path": path, "status": status, "seconds": seconds, "agent": agent, "address": address}
    return LINE.format(**values, upstream=upstream or seconds) + "\n"


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    places = {name: tmp_path / name for name in ("etc", "state", "web", "run")}
    places["run"].mkdir(exist_ok=True)
    found = Configuration("shop", "vps1", ["web", "scheduler"], url="https://shop.example.org", **places)
    monkeypatch.setattr(Configuration, "load", lambda settings: found)
    monkeypatch.setattr(textfile, "FOLDER", tmp_path / "node-exporter")
    monkeypatch.setattr(pause, "seconds_up", lambda: 1e6)
    return found


@pytest.fixture
def log(host: Host, tmp_path: Path) -> Path:
    host.settings = replace(
        host.settings, access_log=str(tmp_path / "access.log"), status_path="/status/", flower_path="/flower/"
    )
    (tmp_path / "access.log").write_text(line("/before"))
    return tmp_path / "access.log"


@pytest.fixture
def context(host: Host, configuration: Configuration) -> Context:
    return Context(host, configuration, watches=True, now=NOW)


def watch(host: Host, monkeypatch: pytest.MonkeyPatch, *checks: Check, now: float = NOW) -> int:
    """Run the command `watch` at a time."""
    monkeypatch.setattr("hostctl.doctor.checks.CHECKS", checks)
    monkeypatch.setattr("hostctl.doctor.finding.Context", lambda *given, **options: Context(*given, **options, now=now))
    return commands.run_watch(host, Namespace())


def finds(name: str, *findings: Finding | None, **options: Any) -> Check:
    """Return a check that finds one after another, and then the last one again."""
    waiting = list(findings)
    return Check(name, lambda context: waiting.pop(0) if len(waiting) > 1 else waiting[0], **options)


def add(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(lines))


# --- Requests


def measure_requests(context: Context, seconds: float = 60) -> dict[str, float]:
    context.now += seconds
    return requests.measure(context)


def test_requests_of_a_minute(context: Context, log: Path) -> None:
    assert measure_requests(context) == {}
    add(log, *[line(seconds=0.01 * number) for number in range(100)], line(status=502, seconds=3))
    found = measure_requests(context)
    assert (found["requests"], found["requests_5xx"]) == (101, 1)
    assert (round(found["latency_p50"], 2), round(found["latency_p95"], 2)) == (0.5, 0.95)
    assert measure_requests(context) == {"requests": 0, "requests_5xx": 0}
    assert context.memory["requests"] == [[NOW + 120, 101, 1], [NOW + 180, 0, 0]]


def test_the_maintenance_page_of_nginx_is_no_error(context: Context, log: Path) -> None:
    """The application's own 503 is one, and so is a 502 of nginx, which has asked it."""
    measure_requests(context)
    add(log, *[line(status=503, seconds=0, upstream="-")] * 9, line(status=503), line(status=502, upstream="0.1, 0.2"))
    found = measure_requests(context)
    assert (found["requests"], found["requests_5xx"]) == (11, 2)
    assert context.memory["requests"] == [[NOW + 120, 11, 2]]


def test_errors_of_a_boot_or_of_maintenance_do_not_count_after_its_end(
    context: Context, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no one is told after it is over; also those of the minute in which it ended."""

    def set_uptime(seconds: float) -> None:
        monkeypatch.setattr(pause, "seconds_up", lambda: seconds)

    measure_requests(context)
    link = context.configuration.web / "shop/maintenance"
    link.parent.mkdir(parents=True)
    for begin, end in (
        (lambda: set_uptime(90), lambda: set_uptime(1e6)),
        (lambda: link.symlink_to("maintenance-pages/60"), link.unlink),
    ):
        begin()
        add(log, *[line(status=502)] * 12)
        found = measure_requests(context)
        assert found["requests_5xx"] == 12
        assert [entry[1:] for entry in context.memory["requests"]][-1] == [12, 0]
        pause.quiet_checks(context)
        add(log, *[line(status=502)] * 12)
        end()
        measure_requests(context)
        assert sum(entry[2] for entry in context.memory["requests"]) == 0
        pause.quiet_checks(context)
        add(log, *[line(status=502)] * 12)
        measure_requests(context)
        assert context.memory["requests"][-1][2] == 12
        context.memory["requests"].clear()


def test_a_pause_that_does_not_end_explains_errors_for_a_while(
    context: Context, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an upgrade of PostgreSQL that has failed: what is bad for longer than its limit is told."""
    monkeypatch.setattr(
        pause, "causes", lambda context: [pause.Cause("upgrade of PostgreSQL", "PostgreSQL is being upgraded")]
    )
    measure_requests(context)
    pause.quiet_checks(context)
    context.now += pause.LIMIT - 120
    context.memory["access_log"]["time"] = context.now
    for errors in (0, 12):
        add(log, *[line(status=502)] * 12)
        measure_requests(context)
        assert context.memory["requests"][-1][2] == errors
        pause.quiet_checks(context)


def test_errors_of_a_deployment_count(context: Context, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "causes", lambda context: [pause.Cause(f"{pause.DEPLOYMENT} 1", "a deployment runs")])
    for _ in range(3):
        add(log, line(status=502))
        measure_requests(context)
        pause.quiet_checks(context)
    assert [entry[2] for entry in context.memory["requests"]] == [1, 1]


def test_a_longer_pause_is_counted_per_minute(context: Context, log: Path) -> None:
    measure_requests(context)
    add(log, *[line()] * 6)
    assert measure_requests(context, 120)["requests"] == 3
    # After the watch was stopped for a while, what was logged meanwhile says nothing of a minute.
    add(log, *[line()] * 6)
    assert measure_requests(context, 3600) == {}
    assert measure_requests(context)["requests"] == 0


@pytest.mark.parametrize(
    "own",
    [
        line("/status/"),
        line("https://shop.example.org/status/"),
        line("/flower/api/workers"),
        line(agent="seedbed-watch", address="127.0.0.1"),
        line("/healthz/", address="127.0.0.1"),
    ],
)
def test_own_requests_do_not_count(context: Context, log: Path, own: str) -> None:
    measure_requests(context)
    others = [line("/healthz/"), line("/a%22/status/"), line("/", 408).replace("GET / HTTP/2.0", "-")]
    # Any client can send the name of the watch.
    others += [line(agent="seedbed-watch"), line(agent="seedbed", address="127.0.0.1")]
    add(log, own, *others)
    assert measure_requests(context)["requests"] == 5


def test_what_clients_send_cannot_forge_a_line(context: Context, log: Path) -> None:
    """nginx writes quotes of a request as \\x22."""
    measure_requests(context)
    add(log, line("/x\\x22 500 1 \\x22-\\x22 \\x22seedbed\\x22 time=9"), "garbage\n", "\x00\xff\n")
    assert measure_requests(context) == {"requests": 1, "requests_5xx": 0, "latency_p50": 0.1, "latency_p95": 0.1}


def test_websockets_and_closed_requests_have_no_latency(context: Context, log: Path) -> None:
    measure_requests(context)
    add(log, line(status=101, seconds=3600), line(status=499, seconds=60), line(seconds=0.2))
    found = measure_requests(context)
    assert (found["requests"], found["latency_p95"]) == (3, 0.2)


def test_a_rotated_log_is_read_to_its_end(context: Context, log: Path) -> None:
    measure_requests(context)
    add(log, line("/1"), line("/2"))
    log.rename(f"{log}.1")
    log.write_text(line("/3"))
    assert measure_requests(context)["requests"] == 3
    # Rotated twice: PATH.1 is a file that was never read, or is gone.
    for earlier in (line("/4") * 9, ""):
        new = log.with_name("new.log")
        new.write_text(line("/5") + line("/6"))
        Path(f"{log}.1").write_text(earlier) if earlier else Path(f"{log}.1").unlink()
        new.replace(log)
        assert measure_requests(context)["requests"] == 2


def test_an_incomplete_line_waits_for_its_end(context: Context, log: Path) -> None:
    measure_requests(context)
    add(log, line()[:60])
    assert measure_requests(context)["requests"] == 0
    add(log, line()[60:])
    assert measure_requests(context)["requests"] == 1
    # Emptied in place.
    log.write_text("")
    assert measure_requests(context)["requests"] == 0


def test_a_huge_log_is_sampled(
    context: Context, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requests, "BYTES", 10_000)
    measure_requests(context)
    add(log, *[line()] * 1000)
    assert measure_requests(context)["requests"] == pytest.approx(1000, rel=0.01)
    assert "skipped" in capsys.readouterr().out
    assert measure_requests(context)["requests"] == 0


def test_without_a_site_or_a_log_there_are_no_requests(context: Context, log: Path) -> None:
    log.unlink()
    assert measure_requests(context) == {}
    context.host.settings = replace(context.settings, web=False)
    assert measure_requests(context) == {}


# --- Tasks


class Flower(http.server.BaseHTTPRequestHandler):
    text = ""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/flower/metrics" else 404)
        self.end_headers()
        self.wfile.write(Flower.text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def flower() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Flower)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def counters(*entries: tuple[str, str, float]) -> str:
    text = "# TYPE flower_events_total counter\n"
    for worker, kind, number in entries:
        text += f'flower_events_total{{task="shop.add",type="task-{kind}",worker="{worker}"}} {number}\n'
    return text + 'flower_worker_online{worker="a"} 1.0\n'


def measure_tasks(context: Context, *entries: tuple[str, str, float]) -> dict[str, float]:
    Flower.text = counters(*entries)
    context.now += 60
    return tasks.measure(context)


def test_tasks_of_a_minute(context: Context, flower: str) -> None:
    context.configuration = replace(context.configuration, flower=flower)
    assert measure_tasks(context, ("a", "succeeded", 1e6), ("a", "failed", 3), ("a", "received", 9)) == {}
    found = measure_tasks(context, ("a", "succeeded", 1e6 + 5), ("a", "failed", 4), ("a", "received", 90))
    assert found == {"tasks_finished": 5, "tasks_failed": 1}
    # The workers of another release are new ones, and Flower forgets those that are gone.
    context.memory = json.loads(json.dumps(context.memory))
    assert measure_tasks(context, ("b", "succeeded", 7), ("b", "failed", 0))["tasks_finished"] == 7
    # Flower was restarted.
    assert measure_tasks(context, ("b", "succeeded", 2))["tasks_finished"] == 2


def test_without_flower_there_are_no_tasks(context: Context, flower: str) -> None:
    assert measure_tasks(context) == {}
    context.configuration = replace(context.configuration, flower="127.0.0.1:1")
    assert measure_tasks(context) == {}
    # A host that neither shows the page nor runs Flower does not ask for it.
    context.configuration = replace(context.configuration, flower=flower, groups=["database"])
    measure_tasks(context, ("a", "succeeded", 1))
    assert measure_tasks(context, ("a", "succeeded", 2)) == {}


# --- The machine


def test_this_machine(context: Context) -> None:
    first, second = machine.measure(context), machine.measure(context)
    assert "cpu" not in first
    assert 0 <= second.get("cpu", 0) <= 1
    assert 0 < second["memory_used"] < second["memory_total"]
    assert sum(value for name, value in second.items() if name.startswith("memory:")) > 2**20


@pytest.mark.parametrize(
    ("cgroup", "service"),
    [
        ("0::/system.slice/system-shop\\x2dweb.slice/shop-web@3fa4c0-1.service\n", "shop-web"),
        ("12:pids:/x\n1:name=systemd:/system.slice/shop-worker-default@a-1.service\n0::/\n", "shop-worker-default"),
        ("0::/docker/4f/system.slice/postgresql@17-main.service\n", "postgresql"),
        ("0::/system.slice/redis-server@broker.service\n", "redis-broker"),
        ("0::/system.slice/shop-flower.service\n", "flower"),
        ("0::/system.slice/nginx.service\n", "nginx"),
        ("0::/system.slice/shop-watch.service\n", "others"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "others"),
        ("0::/system.slice/supervisor.service\n", "shop-worker-io"),
    ],
)
def test_memory_counts_for_a_service(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, service: str
) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    for number in (10, 11):
        folder = tmp_path / f"proc/{number}"
        folder.mkdir(parents=True)
        (folder / "status").write_text("Name:\tpython\nVmRSS:\t 900 kB\nRssAnon:\t     100 kB\nRssFile:\t 800 kB\n")
        (folder / "cgroup").write_text(cgroup)
        (folder / "environ").write_bytes(b"A=1\0SUPERVISOR_PROCESS_NAME=shop-worker-io@a-1\0")
    # A thread of the kernel, and a process that has ended meanwhile.
    for number, status in ((2, "Name:\tkthreadd\n"), (12, None)):
        (tmp_path / f"proc/{number}").mkdir()
        if status:
            (tmp_path / f"proc/{number}/status").write_text(status)
    assert machine.memory_by_service("shop") == {service: 200 * 1024}


# --- The history


def test_history_of_minutes_and_hours(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    hour = 1_795_960_800
    with history.opened(path) as kept:
        for minute in range(70):
            kept.record(hour + 60 * minute + 7, {"cpu": minute / 100, "requests": 5})
    assert path.stat().st_mode & 0o777 == 0o600
    now = hour + 70 * 60
    with history.opened(path) as kept:
        minutes = kept.by_minutes(hour, now, 300)
        hours = kept.by_hours(hour - 3600, now)
    assert minutes["cpu"][0] == (pytest.approx(0.02), 0.04)
    assert len(minutes["requests"]) == 14
    assert hours["cpu"] == {1: (pytest.approx(0.295), 0.59), 2: (pytest.approx(0.645), 0.69)}


def test_history_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.sqlite"
    day = 86400
    for moment in (NOW, NOW + 8 * day, NOW + 370 * day):
        with history.opened(path) as kept:
            kept.record(moment, {"cpu": 0.5})
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM minute").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM hour").fetchone() == (1,)
    monkeypatch.setattr(history, "MOST_SERIES", 3)
    with history.opened(path) as kept:
        kept.record(NOW + 370 * day, {f"queue_age:{number}": 1 for number in range(9)})
        assert len(kept.by_minutes(int(NOW), int(NOW + 371 * day), 60)) == 3


def test_series_without_values_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of removed workers: otherwise there would be no room for new ones in the end."""
    monkeypatch.setattr(history, "MOST_SERIES", 3)
    path = tmp_path / "history.sqlite"
    hour = 1_795_960_800
    with history.opened(path) as kept:
        kept.record(hour, {f"queue_age:{number}": 1 for number in range(3)})
        kept.record(hour + 367 * 86400, {"queue_age:0": 1})
        kept.record(hour + 367 * 86400 + 60, {"cpu": 0.5})
        assert set(kept.by_minutes(hour, hour + 400 * 86400, 60)) == {"queue_age:0", "cpu"}
    with sqlite3.connect(path) as database:
        assert [name for (name,) in database.execute("SELECT name FROM series ORDER BY name")] == ["cpu", "queue_age:0"]


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_history_is_kept_and_a_new_one_begins(
    context: Context, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = context.configuration.state_folder / "history.sqlite"
    with history.opened(path) as kept:
        for minute in range(50):
            kept.record(NOW + 60 * minute, {f"queue_age:{number}": minute for number in range(40)})
    text = bytearray(path.read_bytes())
    place = slice(0, 100) if damage == "header" else slice(4096, len(text))
    text[place] = b"\x55" * len(text[place])
    path.write_bytes(text)
    for minute in (50, 51):
        context.now = NOW + 60 * minute
        run.attempt("the history", lambda: run.keep(context, {}, {"cpu": 0.5}))
    assert path.with_name("history.sqlite.damaged").read_bytes() == bytes(text)
    assert "is damaged" in capsys.readouterr().out
    with history.opened(path) as kept:
        assert set(kept.by_minutes(int(NOW), int(NOW) + 86400, 60)) == {"cpu"}
    assert context.configuration.page.exists()


# --- A run


def test_a_run_measures_checks_and_keeps(
    host: Host, configuration: Configuration, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textfile.FOLDER.mkdir()
    told = []
    monkeypatch.setattr(alerts, "process", lambda context, found: told.append(found))
    site = finds("site", Finding(OK, "up", values={"site_up": 1, 'queue_age:my "queue\\': 3}))
    assert watch(host, monkeypatch, site) == 0
    add(log, line(status=500))
    disk = finds("disk", Finding(BAD, "full", "rm"))
    assert watch(host, monkeypatch, site, disk, finds("mail", None), now=NOW + 60) == 2
    assert [list(found) for found in told] == [["site"], ["site", "disk"]]
    state = json.loads((configuration.state_folder / "state.json").read_text())
    assert (state["state"], [one["name"] for one in state["checks"]]) == (BAD, ["site", "disk"])
    memory = commands.read_memory(configuration)
    assert memory["requests"] == [[NOW + 60, 1, 1]]
    with history.opened(configuration.state_folder / "history.sqlite") as kept:
        series = kept.by_minutes(int(NOW), int(NOW) + 120, 60)
    assert series["site_up"] == {0: (1, 1), 1: (1, 1)}
    assert series["requests_5xx"] == {1: (1, 1)}
    text = (textfile.FOLDER / "seedbed.prom").read_text()
    assert 'seedbed_check_state{app="shop",check="disk"} 2\n' in text
    assert 'seedbed_queue_age_seconds{app="shop",queue="my \\"queue\\\\"} 3\n' in text
    assert "seedbed_requests_5xx_per_minute" in text
    assert (textfile.FOLDER / "seedbed.prom").stat().st_mode & 0o777 == 0o644
    assert "rm" in configuration.page.read_text()
    modes = {path.name: path.stat().st_mode & 0o777 for path in configuration.state_folder.iterdir()}
    assert set(modes.values()) == {0o600}


def test_a_line_is_printed_only_when_a_state_changes(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = finds("web", Finding(OK, "runs"), Finding(BAD, "gone"), Finding(BAD, "still gone"), Finding(OK, "runs"))
    statuses = [watch(host, monkeypatch, check, now=NOW + 60 * minute) for minute in range(5)]
    assert statuses == [0, 2, 2, 0, 0]
    assert capsys.readouterr().out.splitlines() == ["web: bad: gone", "web: ok: runs"]


def test_an_hourly_check_runs_once_an_hour_until_it_is_not_well(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    found = {"state": OK}

    def look(context: Context) -> Finding:
        seen.append((context.now - NOW) / 60)
        return Finding(found["state"], "old libraries", "restart them", {"old": 2}, alert=True)

    check = Check("restart", look, hourly=True)
    for minute in (0, 1, 59, 60, 61, 69, 70, 71, 129, 130):
        found["state"] = WARN if minute == 60 else OK
        status = watch(host, monkeypatch, check, finds("site", Finding(OK, "")), now=NOW + 60 * minute)
        # Between its runs, what it last found counts.
        assert status == (1 if 60 <= minute < 70 else 0)
    assert seen == [0, 60, 70, 130]
    kept = commands.read_memory(configuration)["hourly"]["restart"]
    assert (kept["text"], kept["values"]) == ("old libraries", {"old": 2})
    # A check that is no longer there leaves nothing.
    watch(host, monkeypatch, now=NOW + 86400)
    assert commands.read_memory(configuration)["hourly"] == {}


def test_an_hourly_check_with_nothing_to_look_at(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minute in range(2):
        assert watch(host, monkeypatch, finds("restart", None, hourly=True), now=NOW + 60 * minute) == 0
    assert json.loads((configuration.state_folder / "state.json").read_text())["checks"] == []


def test_a_second_run_at_once_is_refused(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0)
    with run.lock(configuration), pytest.raises(BusyError, match="not ended"):
        watch(host, monkeypatch)
    assert watch(host, monkeypatch) == 0


def test_a_full_disk_keeps_no_alert_back(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the memory, which alerts count on, is in /run meanwhile."""

    def process(context: Context, found: dict[str, Finding]) -> None:
        context.memory["alerts"] = context.memory.get("alerts", 0) + 1

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alerts, "process", process)
    assert watch(host, monkeypatch, finds("disk", Finding(OK, "")), now=NOW) == 0
    replaced = os.replace

    def replace_in_run(source: Any, target: Any, **options: Any) -> None:
        full() if configuration.state in Path(target).parents else replaced(source, target, **options)

    monkeypatch.setattr(os, "replace", replace_in_run)
    monkeypatch.setattr(history, "connect", full)
    for minute in (1, 2):
        assert watch(host, monkeypatch, finds("disk", Finding(BAD, "full")), now=NOW + 60 * minute) == 2
    assert commands.read_memory(configuration)["alerts"] == 3
    assert "No space left" in capsys.readouterr().out
    assert "full" in configuration.page.read_text()
    assert not list(configuration.state_folder.glob(".*"))


def test_failed_requests_of_a_reboot_and_of_maintenance_are_not_told(
    host: Host, configuration: Configuration, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During them and after; those without a reason are."""
    told: list[str] = []
    monkeypatch.setattr(alerts.send, "channels", lambda context: [None])
    monkeypatch.setattr(
        alerts.send, "deliver", lambda context, active, message: told.append(message.title) if message else None
    )
    link = configuration.web / "shop/maintenance"
    link.parent.mkdir(parents=True)
    site = Check("site", lambda context: Finding(OK if application.recent_requests(context)[1] <= 5 else BAD, ""))
    clock = [NOW]

    def minutes(number: int, *, fail: bool, uptime: float = 1e6) -> None:
        for minute in range(number):
            monkeypatch.setattr(pause, "seconds_up", lambda up=uptime + 60 * minute: up)
            clock[0] += 60
            add(log, *[line(status=502 if fail else 200)] * 12)
            watch(host, monkeypatch, site, now=clock[0])

    minutes(3, fail=False)
    # The last of these minutes began in the pause and ended after it.
    minutes(3, fail=True, uptime=70)
    minutes(8, fail=False)
    link.symlink_to("maintenance-pages/60")
    minutes(14, fail=True)
    link.unlink()
    minutes(1, fail=True)
    minutes(8, fail=False)
    assert told == []
    minutes(3, fail=True)
    assert told == ["[shop on vps1] bad: site"]


def test_what_was_sent_is_saved_before_the_heartbeat(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed while the network hangs does not send it in each minute."""
    saved: list[dict[str, Any]] = []

    def process(context: Context, found: dict[str, Finding]) -> None:
        context.memory["alerts_sent"] = {"mail": 1}

    def beat(context: Context) -> None:
        saved.append(commands.read_memory(configuration))
        context.memory["alerts_sent"] = {"mail": 1, "heartbeat": 2}

    monkeypatch.setattr(alerts, "process", process)
    monkeypatch.setattr(heartbeat, "beat", beat)
    assert watch(host, monkeypatch) == 0
    assert [memory["alerts_sent"] for memory in saved] == [{"mail": 1}]
    assert commands.read_memory(configuration)["alerts_sent"] == {"mail": 1, "heartbeat": 2}


def test_a_part_that_breaks_does_not_end_the_run(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*arguments: Any) -> None:
        raise KeyError("unexpected")

    told: list[Any] = []
    monkeypatch.setattr(machine, "measure", breaks)
    monkeypatch.setattr(alerts, "process", lambda context, found: told.append(found))
    assert watch(host, monkeypatch, finds("site", Finding(OK, "up"))) == 0
    assert told
    assert "/proc: KeyError: 'unexpected'" in capsys.readouterr().out


def test_a_host_without_nginx_has_no_page(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(configuration, url="", groups=["database"])
    monkeypatch.setattr(Configuration, "load", lambda settings: other)
    assert watch(host, monkeypatch, finds("postgresql", Finding(OK, "runs"))) == 0
    assert not other.page.exists()
    assert (other.state_folder / "history.sqlite").exists()
