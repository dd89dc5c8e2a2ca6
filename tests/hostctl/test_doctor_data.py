"""`doctor`: queues, Redis, PostgreSQL and the backups."""

from __future__ import annotations

import hashlib
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl import redis_connection
from hostctl.backup import listing, notes
from hostctl.backup.state import State, lock
from hostctl.backup.tools import Backup, Repository, ToolError
from hostctl.doctor import backups, data, queues
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Context
from hostctl.host import Host
from hostctl.redis_connection import Large, RedisConnection
from hostctl.settings import Settings
from tests.hostctl.fakes import OLD

pytestmark = pytest.mark.usefixtures("remedies")

INFO = "used_memory:{used}\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\naof_enabled:{aof}\r\n"
INFO += "aof_last_write_status:{write}\r\nrdb_last_bgsave_status:ok\r\nloading:{loading}\r\nevicted_keys:{evicted}\r\n"
HEALTHY = {"used": 3 << 20, "limit": 128 << 20, "policy": "noeviction", "aof": 1, "write": "ok", "loading": 0}
HEALTHY |= {"evicted": 0}


class Redis:
    """A server with the protocol of Redis, and lists, sets and scores as they are in `keys`."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.info: dict[str, Any] = dict(HEALTHY)
        self.error = ""
        self.asked: list[list[str]] = []

    def answer(self, words: list[str]) -> bytes:
        self.asked.append(words)
        name, *rest = words
        if self.error and name != "AUTH":
            return f"-{self.error}\r\n".encode()
        if name in ("AUTH", "SELECT"):
            return b"+OK\r\n" if rest in (["monitor", "p@ss"], ["3"]) else b"-WRONGPASS no\r\n"
        if name == "INFO":
            return bulk(INFO.format(**self.info))
        value = self.keys.get(rest[0], [])
        if name in ("LLEN", "ZCARD"):
            return b":%d\r\n" % len(value)
        if name == "LINDEX":
            return bulk(value[int(rest[1])])
        if name == "SMEMBERS":
            return array(sorted(value))
        if name == "ZRANGE":
            return array([str(word) for word in value[0]] if value else [])
        return b"-ERR unknown command\r\n"


def bulk(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text.encode()), text.encode())


def array(words: list[str]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(bulk(word) for word in words)


@pytest.fixture
def redis() -> Iterator[Redis]:
    state = Redis()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(length + 2)[:-2].decode())
                self.wfile.write(state.answer(words))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"redis://monitor:p%40ss@127.0.0.1:{server.server_address[1]}/0"
        yield state
        server.shutdown()


@pytest.fixture
def context(live: Host, tmp_path: Path) -> Context:
    groups = ["web", "worker", "scheduler", "database", "broker"]
    configuration = Configuration(
        "shop", groups=groups, redis={"broker": 6379}, postgresql="17", etc=tmp_path / "etc", state=tmp_path
    )
    return Context(live, configuration, now=time.time())


def watch(context: Context, seconds: float) -> Context:
    """Return the context of the watch, a while later, with the same memory."""
    return Context(
        context.host, context.configuration, memory=context.memory, watches=True, now=context.now + seconds
    )  # fmt: skip


def with_broker(context: Context, url: str) -> None:
    folder = context.settings.configurations / OLD
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.env").write_text(f'CELERY_BROKER_URL="{url}"\n')


def with_monitor(context: Context, **urls: str) -> None:
    text = "".join(f'{name}="{url}"\n' for name, url in urls.items())
    (context.settings.etc / "monitoring.env").write_text(text)


def message(tag: str) -> str:
    return json.dumps({"body": "x" * 100, "properties": {"delivery_tag": tag}})


# --- Queues --------------------------------------------------------------------------------------------------------


def test_queues_that_move(context: Context, redis: Redis) -> None:
    with_broker(context, redis.url.replace("/0", "/3"))
    found = queues.queues(watch(context, 0))
    assert (found.state, found.text) == (OK, "default: 0 tasks waiting, none in hand")
    redis.keys = {"default": [message("c"), message("b")], "default\x06\x169": [message("low")]}
    for tag, seconds in (("b", 60), ("a", 120), ("z", 600)):
        redis.keys["default"][-1] = message(tag)
        found = queues.queues(watch(context, seconds))
        assert (found.state, found.text) == (OK, "default: 3 tasks waiting, none in hand")
    assert found.values == {"queue_waiting:default": 3, "queue_age:default": 0}
    assert context.memory["queues"] == {"default": {"id": "z", "since": context.now + 600}}


@pytest.mark.parametrize(("seconds", "state"), [(56, OK), (59, WARN), (296, WARN), (299, BAD)])
def test_a_queue_without_a_worker(context: Context, redis: Redis, seconds: float, state: str) -> None:
    with_broker(context, redis.url)
    redis.keys["default"] = [message("b"), message("a")]
    queues.queues(watch(context, 0))
    found = queues.queues(watch(context, seconds))
    assert found.state == state
    assert found.values["queue_age:default"] == seconds
    assert found.alerts is (state != OK)
    if state != OK:
        assert found.text.startswith("default: 2 tasks waiting, the next one for ")
        assert found.text.endswith(", none in hand")
        assert found.remedy == "shopctl logs worker; shopctl celery inspect active"
    # A person sees the same age, and begins none.
    memory = json.dumps(context.memory)
    assert queues.queues(Context(context.host, context.configuration, context.memory, now=context.now)).state == OK
    assert json.dumps(context.memory) == memory


def test_a_queue_whose_workers_are_busy_is_not_broken(context: Context, redis: Redis) -> None:
    with_broker(context, redis.url)
    node = f"default.{OLD}@vps1"
    redis.keys = {"default": [message("a")], "unacked_slots": [node, "heavy.x@vps1"]}
    redis.keys[f"unacked_index:{node}"] = [("tag", context.now - 200), ("other", context.now)]
    queues.queues(watch(context, 0))
    # Tasks that take minutes.
    found = queues.queues(watch(context, 290))
    assert (found.state, found.alerts) == (WARN, False)
    found = queues.queues(watch(context, 400))
    assert (found.state, found.alerts) == (WARN, True)
    assert (
        found.text == "default: 1 task waiting, the next one for 7 min (limit 5 min), 2 in hand, the oldest for 10 min"
    )
    # What the workers of other queues have in hand does not count.
    redis.keys["unacked_index:heavy.x@vps1"] = redis.keys.pop(f"unacked_index:{node}")
    assert queues.queues(watch(context, 400)).state == BAD


def test_an_emptied_queue_begins_again(context: Context, redis: Redis) -> None:
    with_broker(context, redis.url)
    redis.keys["default"] = [message("a")]
    queues.queues(watch(context, 0))
    redis.keys["default"] = []
    assert queues.queues(watch(context, 200)).state == OK
    # It was requeued.
    redis.keys["default"] = [message("a")]
    assert queues.queues(watch(context, 230)).state == OK
    redis.keys["default"] = ["not JSON"]
    assert queues.queues(watch(context, 260)).state == OK
    assert queues.queues(watch(context, 330)).state == WARN


@pytest.mark.parametrize("text", ["not JSON", "[" * 100_000, "null", "7", '{"properties": []}'])
def test_messages_that_are_not_celerys(context: Context, redis: Redis, text: str) -> None:
    with_broker(context, redis.url)
    redis.keys["default"] = [text]
    assert queues.queues(watch(context, 0)).state == OK
    assert queues.queues(watch(context, 70)).values["queue_age:default"] == 70


def test_a_large_message_is_not_loaded(context: Context, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch has little memory, and its alerts count on it."""
    monkeypatch.setattr(redis_connection, "LONGEST", 1000)
    with_broker(context, redis.url)
    redis.keys["default"] = ["x" * 200_000 + "b", "x" * 200_000 + "a"]
    found = queues.queues(watch(context, 0))
    assert (found.state, found.text) == (OK, "default: 2 tasks waiting, none in hand")
    assert queues.queues(watch(context, 70)).values["queue_age:default"] == 70
    redis.keys["default"].pop()
    assert queues.queues(watch(context, 90)).values["queue_age:default"] == 0
    with RedisConnection(redis.url) as connection:
        [answer, length] = connection.ask(["LINDEX", "default", "-1"], ["LLEN", "default"])
    assert (answer.length, length) == (200_001, 1)
    assert answer == Large(200_001, hashlib.sha256(b"x" * 200_000 + b"b").hexdigest())


def test_parked_messages_are_told(context: Context, redis: Redis) -> None:
    with_broker(context, redis.url)
    redis.keys["celery-parked"] = ["1", "2"]
    found = queues.queues(context)
    assert (found.state, found.alerts, found.remedy) == (WARN, False, "shopctl tasks parked list")


def test_a_prefix_of_the_project(context: Context, redis: Redis, live: Host) -> None:
    with_broker(context, redis.url)
    facts = live.path(OLD) / "build.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"key_prefix": "x:"}))
    redis.keys["x:default"] = [message("a")]
    assert queues.queues(context).values["queue_waiting:default"] == 1


def test_a_broker_that_does_not_answer(context: Context, redis: Redis) -> None:
    with_broker(context, "redis://127.0.0.1:1/0")
    assert queues.queues(context).state == BAD
    with_broker(context, redis.url.replace("p%40ss", "wrong"))
    found = queues.queues(context)
    assert found.text == "the broker cannot be asked: Redis answers 'WRONGPASS no'"
    assert "wrong" not in found.text + found.remedy
    redis.error = "LOADING Redis is loading the dataset in memory"
    with_broker(context, redis.url)
    assert "LOADING" in queues.queues(context).text


def test_a_password_that_breaks_the_url_is_not_printed(context: Context) -> None:
    """Such as one with characters that are not escaped."""
    for url in ("redis://:Se#cr/et@10.0.0.5:6379/0", "redis://:Se/cret@10.0.0.5/0", "redis://:Se[cret@10.0.0.5/0"):
        with_broker(context, url)
        found = queues.queues(context)
        assert (found.state, found.text) == (BAD, "the broker cannot be asked: its URL is not valid")
        with_monitor(context, BROKER_URL=url)
        assert data.redis(context).text == "broker does not answer: its URL is not valid"


def test_another_broker_or_none(context: Context, redis: Redis, settings: Settings) -> None:
    with_broker(context, "amqps://user:secret@rabbit/")
    found = queues.queues(context)
    assert (found.state, found.text) == (OK, "the broker is not Redis: how many tasks wait is not known")
    with_broker(context, "")
    assert queues.queues(context).text == "the address of the broker is not known yet"
    object.__setattr__(settings, "celery_app", "")
    assert queues.queues(context) is None


def test_one_host_tells_of_the_queues(context: Context, redis: Redis, settings: Settings) -> None:
    with_broker(context, redis.url)
    object.__setattr__(settings, "beat", False)
    assert queues.queues(context) is None
    object.__setattr__(settings, "has_beat", False)
    assert queues.queues(context).state == OK
    object.__setattr__(settings, "leader", False)
    assert queues.queues(context) is None


# --- Redis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "state", "text"),
    [
        ({}, OK, "broker 3 of 128 MiB, AOF ok"),
        ({"used": 103 << 20}, WARN, "broker 103 of 128 MiB (limit 80 %): at the limit it refuses tasks"),
        ({"used": 122 << 20}, BAD, "broker 122 of 128 MiB (limit 95 %): at the limit it refuses tasks"),
        ({"write": "err"}, BAD, "broker cannot write its data to disk"),
        ({"loading": 1}, WARN, "broker is loading its data since its start"),
        ({"limit": 0, "aof": 0}, OK, "broker 3 MiB"),
        ({"used": 128 << 20, "policy": "allkeys-lru", "evicted": 7}, OK, "broker 128 of 128 MiB, AOF ok, 7 evicted"),
    ],
)
def test_redis(context: Context, redis: Redis, info: dict[str, Any], state: str, text: str) -> None:
    with_monitor(context, BROKER_URL=redis.url)
    redis.info |= info
    found = data.redis(context)
    assert (found.state, found.text) == (state, text)
    assert bool(found.remedy) is (state != OK)
    assert found.values["redis_memory:broker"] == redis.info["used"]


def test_redis_that_is_down(context: Context, redis: Redis) -> None:
    context = Context(context.host, replace(context.configuration, redis={"broker": 6379, "cache": 6380}))
    with_monitor(context, BROKER_URL=redis.url, CACHE_URL="redis://u:secret@127.0.0.1:1/0")
    found = data.redis(context)
    assert found.state == BAD
    assert found.text.startswith("cache does not answer: ")
    assert found.remedy == "systemctl start redis-server@cache; journalctl -u redis-server@cache -n 30"
    assert "secret" not in str(found)
    assert data.redis(Context(context.host, replace(context.configuration, redis={}))) is None


# --- PostgreSQL ----------------------------------------------------------------------------------------------------

ACTIVITY = {
    "version": "17.2", "limit": 50, "connections": 9, "oldest": 2.4, "idle": 0, "idle_process": None, "waiting": 0,
    "xid": 2_000_000, "archiving": True, "failed": None, "ready": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("activity", "state", "alerts", "text"),
    [
        ({}, OK, False, "17.2, 9 of 50 connections, oldest transaction 2 s, XID 0.1 %, archives"),
        ({"connections": 41}, WARN, False, "41 of 50 connections are in use (limit 80 %)"),
        ({"connections": 48}, BAD, True, "48 of 50 connections are in use (limit 95 %)"),
        (
            {"idle": 700, "idle_process": 77},
            WARN,
            True,
            "process 77 has held a transaction open for 12 min (limit 10 min)",
        ),
        ({"xid": 600_000_000}, WARN, False, "the oldest transaction ID is 600,000,000 old (limit 500,000,000)"),
        (
            {"ready": 130, "failed": "0000A"},
            WARN,
            False,
            "0000A of the write-ahead log waits to be archived for 2 min (limit 2 min)",
        ),
        ({"ready": 400}, BAD, True, "a segment of the write-ahead log waits to be archived for 7 min (limit 5 min)"),
        ({"ready": 400, "archiving": False}, OK, False, "17.2, 9 of 50 connections"),
    ],
)
def test_postgresql(
    context: Context, monkeypatch: pytest.MonkeyPatch, activity: dict[str, Any], state: str, alerts: bool, text: str
) -> None:
    monkeypatch.setattr(data, "call", lambda words, **options: json.dumps(ACTIVITY | activity))
    found = data.postgresql(context)
    assert (found.state, found.alerts) == (state, alerts)
    assert found.text.startswith(text)
    assert bool(found.remedy) is (state != OK)
    assert found.values["database_connections_limit"] == 50
    if state == WARN and alerts:
        assert "pg_terminate_backend(77)" in found.remedy


def test_postgresql_that_is_down(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(words: list[str], **options: Any) -> str:
        raise ToolError("psql failed: psql: error: connection to server failed\n\tIs the server running?", 2)

    monkeypatch.setattr(data, "call", refuse)
    found = data.postgresql(context)
    assert (found.state, found.text) == (BAD, "does not answer: psql: error: connection to server failed")
    assert found.remedy == "systemctl start postgresql@17-main; journalctl -u postgresql@17-main -n 30"
    assert data.postgresql(Context(context.host, replace(context.configuration, postgresql=""))) is None


# --- Backups -------------------------------------------------------------------------------------------------------

HOUR, DAY = 3600, 86400


@pytest.fixture
def saved(context: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A host whose backups are all right, off the host too."""
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 30 * DAY)
    # No second passes until the checks say how long ago something was.
    monkeypatch.setattr(listing, "time", SimpleNamespace(time=lambda: context.now))
    made = [(kind, context.now - age) for kind, age in (("full", 3 * DAY), ("diff", 6 * HOUR))]
    found = [Backup(kind, kind, int(at) - 9, int(at), 1, "0", 10, [], False) for kind, at in made]
    monkeypatch.setattr(Repository, "backups", lambda self: found)
    configure(context)
    remember(context, "ship", ok_at=context.now - 20, local=20, shipped=25, problem="")
    remember(context, "files", ok_at=context.now - 300)
    remember(context, "backups", ok_at=context.now - 6 * HOUR)
    remember(context, "drill", ok_at=context.now - 2 * DAY, source="this host", seconds=41.2)
    return context


def configure(context: Context, **more: Any) -> None:
    values = {"name": "shop", "version": "17", "target": "s3:shop", "folders": ["/srv/shop/shared/media"]}
    values |= {"state": str(context.configuration.state)} | more
    (context.settings.etc / "backup.json").write_text(json.dumps(values))


def remember(context: Context, kind: str, **values: Any) -> None:
    for place in ("local", "shipped"):
        if place in values:
            values[place] = {"seconds": context.now - values[place]}
    configuration = backups.configuration_of(context)
    # JSON has no paths.
    State(replace(configuration, state=Path(configuration.state)), kind).write(**values)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of tests has its folder from JSON, as text."""
    load = backups.Configuration.load

    def with_paths(settings: Settings) -> Any:
        found = load(settings)
        return replace(found, state=Path(found.state))

    monkeypatch.setattr(backups.Configuration, "load", with_paths)


def test_backups_that_are_all_right(saved: Context) -> None:
    backup, offsite, drill = (check(saved) for check in (backups.backup, backups.offsite, backups.drill))
    assert (backup.state, backup.text) == (OK, "restorable to 20 s ago, full 3 d ago, diff 6 h ago")
    assert (offsite.state, offsite.text) == (OK, "write-ahead log 25 s ago, uploads 5 min ago, at s3:shop")
    assert (drill.state, drill.text) == (OK, "restored 2 d ago from this host, in 41 s")
    assert backup.values["backup_age"] == pytest.approx(6 * HOUR, abs=2)
    assert offsite.values["offsite_age"] == pytest.approx(25, abs=2)
    assert drill.values["drill_age"] == pytest.approx(2 * DAY, abs=2)


@pytest.mark.parametrize(
    ("kind", "values", "check", "state", "text"),
    [
        ("ship", {"local": 150}, backups.backup, WARN, "write-ahead log late (limit 2 min): restorable to 2 min ago"),
        ("ship", {"local": 400}, backups.backup, BAD, "write-ahead log late (limit 5 min): restorable to 6 min ago"),
        ("backups", {"ok_at": 27 * HOUR}, backups.backup, WARN, "base backup late"),
        ("backups", {"ok_at": 51 * HOUR, "problem": "disk full."}, backups.backup, BAD, "base backup late"),
        (
            "ship",
            {"shipped": 130},
            backups.offsite,
            WARN,
            "write-ahead log late (limit 2 min): write-ahead log 2 min ago",
        ),
        ("ship", {"shipped": 400, "problem": "no route"}, backups.offsite, BAD, "write-ahead log late"),
        ("files", {"ok_at": 2 * HOUR}, backups.offsite, WARN, "uploads late"),
        ("drill", {"ok_at": 10 * DAY}, backups.drill, WARN, "drill late (limit 9 d): restored 10 d ago"),
        ("drill", {"ok_at": 17 * DAY}, backups.drill, BAD, "drill late (limit 16 d): restored 17 d ago"),
        ("drill", {"problem": "rows are lost", "failed_at": 60.0}, backups.drill, BAD, "failed "),
    ],
)
def test_backups_that_are_late(
    saved: Context, kind: str, values: dict[str, Any], check: Any, state: str, text: str
) -> None:
    values = {name: saved.now - value if name == "ok_at" else value for name, value in values.items()}
    remember(saved, kind, **values)
    found = check(saved)
    assert found.state == state
    assert found.text.startswith(text)
    assert values.get("problem", "").rstrip(".") in found.text
    assert found.remedy.split(";")[0] in ("journalctl -u shop-backup-* -n 30", "shopctl backup drill")
    others = {backups.backup, backups.offsite, backups.drill} - {check}
    assert [other(saved).state for other in others] == [OK, OK]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"unread": True, "part": 1, "parts": 3}, "not all of part 2 of 3 of the copies at s3:shop was read in time"),
        ({"unread": False, "part": 4, "parts": 6}, "one of 6 parts of the copies at s3:shop is read each week"),
    ],
)
def test_copies_that_a_drill_does_not_read_in_three_weeks(saved: Context, values: dict[str, Any], text: str) -> None:
    remember(saved, "drill", **values)
    found = backups.drill(saved)
    assert (found.state, text in found.text) == (WARN, True), found
    assert found.remedy.startswith("shopctl backup drill --offsite")
    remember(saved, "drill", unread=False, part=2, parts=3)
    assert backups.drill(saved).state == OK


@pytest.mark.parametrize(
    ("kind", "check", "text"),
    [
        ("ship", backups.offsite, "write-ahead log run was killed: write-ahead log 25 s ago"),
        ("files", backups.offsite, "uploads run was killed: "),
        ("backups", backups.backup, "base backup run was killed: restorable to 20 s ago"),
        ("drill", backups.drill, "drill run was killed: restored 2 d ago from this host"),
    ],
)
def test_a_run_that_was_killed(saved: Context, kind: str, check: Any, text: str) -> None:
    remember(saved, kind, running_since=saved.now - 60)
    found = check(saved)
    assert (found.state, found.text[: len(text)]) == (WARN, text)
    others = {backups.backup, backups.offsite, backups.drill} - {check}
    assert [other(saved).state for other in others] == [OK, OK]
    with lock(backups.configuration_of(saved), kind if kind in ("ship", "drill") else "work"):
        assert check(saved).state == OK, "it is running"


def test_backups_that_had_no_time_yet(saved: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("ship", "files", "backups", "drill"):
        State(backups.configuration_of(saved), kind).replace({})
    monkeypatch.setattr(Repository, "backups", lambda self: [])
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 60)
    found = [check(saved) for check in (backups.backup, backups.offsite, backups.drill)]
    assert [one.state for one in found] == [OK, OK, OK]
    assert found[0].text == "nothing can be restored yet"
    assert found[2].text == "not rehearsed yet: the first one is due within a week"
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 30 * DAY)
    assert [check(saved).state for check in (backups.backup, backups.offsite, backups.drill)] == [BAD, BAD, BAD]


def test_backups_after_a_boot_of_a_server_that_was_off(saved: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was due meanwhile is made soon: no alert is sent, and the screen says how old the copies are."""
    for kind in ("files", "backups"):
        remember(saved, kind, ok_at=saved.now - 60 * HOUR)
    remember(saved, "ship", local=60 * HOUR, shipped=60 * HOUR)
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 90)
    found = [check(saved) for check in (backups.backup, backups.offsite)]
    assert [(one.state, one.alerts) for one in found] == [(WARN, False), (WARN, False)]
    assert found[1].text.startswith(
        "write-ahead log late (limit 2 min) and uploads late (limit 60 min): write-ahead log 2 d ago, uploads 2 d ago"
    )
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 2 * HOUR)
    assert [check(saved).state for check in (backups.backup, backups.offsite)] == [BAD, BAD]


def test_backups_on_this_server_only(saved: Context) -> None:
    configure(saved, target="")
    found = backups.offsite(saved)
    assert (found.state, found.alerts) == (WARN, False)
    assert found.text == "The backups are on this server only, and are lost with it"
    assert found.remedy.startswith("# set app_backup_target in group_vars/ENV/app.yml")
    remember(saved, "ship", problem="the archive is broken")
    assert "the archive is broken" in backups.backup(saved).text


def test_a_target_of_another_server(saved: Context) -> None:
    remember(
        saved, "ship", shipped=60 * HOUR, problem="It is of another.\nTo restore: type this\nOr that", foreign=True
    )
    found = backups.offsite(saved)
    assert found.state == BAD
    assert found.text.endswith("at s3:shop. It is of another")
    assert found.remedy.splitlines() == ["# To restore: type this", "# Or that"]
    remember(saved, "ship", foreign=False)
    assert backups.offsite(saved).remedy.startswith("journalctl")


def test_the_recovery_kit(saved: Context) -> None:
    configure(saved, kit="inventory/.secrets/production/recovery-kit.txt")
    found = backups.offsite(saved)
    assert (found.state, found.alerts) == (WARN, False)
    assert "Without inventory/.secrets/production/recovery-kit.txt the backups cannot be opened" in found.text
    assert "backup_kit_kept: true" in found.remedy


def test_a_repository_that_cannot_be_read(saved: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Repository) -> list[Backup]:
        raise ToolError("pgbackrest failed: wrong key", 1)

    monkeypatch.setattr(Repository, "backups", broken)
    assert (backups.backup(saved).state, backups.backup(saved).text) == (BAD, "pgbackrest failed: wrong key")


def test_a_host_without_backups(context: Context) -> None:
    assert [check(context) for check in (backups.backup, backups.offsite, backups.drill)] == [None, None, None]
