"""hostctl/in_app, without Celery: what it takes from others, and what tests with real processes cannot see."""

from __future__ import annotations

import ast
import contextlib
import re
import socket
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest

from hostctl.in_app import broker, compat, consumer, questions, results, returns

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "hostctl/in_app").glob("*.py"))
PINS = {path: path.read_text() for path in sorted((ROOT / "tests/in_app").glob("requirements-celery*.txt"))}


def pin(text: str, package: str) -> str:
    """Return the version of a package in a requirements file."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{package}==")]
    return line.split("==")[1].split()[0]


@pytest.mark.parametrize("module", [path for path in MODULES if path.name != "compat.py"], ids=lambda path: path.stem)
def test_private_names_are_in_compat_only(module: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Attribute)}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    # Documented by Django and Python; and, in a subclass, of the ASGI workers of uvicorn and gunicorn.
    own = {"_install_sigquit_handler", "_quick_shutdown", "_shutdown"} if module.stem == "asgi_worker" else set()
    assert private <= {"_meta", "_exit", "_current_frames"} | own


def test_nothing_is_imported_before_gevent_can_patch() -> None:
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                packages = {name.partition(".")[0] for name in names}
                assert not packages & {"celery", "kombu", "billiard", "django", "redis"}, module.name


# Redis commands to which kombu adds the transport option global_keyprefix, in every tested version.
PREFIXED = {
    "delete", "hdel", "hget", "hlen", "hset", "llen", "lpush", "rpush", "sadd", "set", "smembers", "srem", "zrem"
}  # fmt: skip
WITHOUT_KEY = {"multi", "transaction", "scan_iter", "sendto"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_keys_have_the_prefix_where_kombu_does_not_add_it(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if ast.unparse(node.func.value) in ("client", "pipe") and node.func.attr not in PREFIXED | WITHOUT_KEY:
            keys = [ast.unparse(argument) for argument in node.args]
            assert "full_name(" in keys[0], f"{module.name}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    ("message", "of_task", "of_settings", "start", "outcome"),
    [
        (None, None, None, 30, 300),
        (None, None, 60, 6, 55),
        (None, 100, 60, 10, 95),
        ([40, None], 100, 60, 4, 35),
        ([3600, None], 100, 60, 30, 300),
    ],
)
def test_a_wait_for_the_result_backend_ends_before_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, message: Any, of_task: Any, of_settings: Any, start: float, outcome: float
) -> None:
    settings = SimpleNamespace(task_time_limit=of_settings, task_soft_time_limit=None)
    task = SimpleNamespace(app=SimpleNamespace(conf=settings), time_limit=of_task, soft_time_limit=None)
    monkeypatch.setattr(results.time, "monotonic", lambda: 0)
    monkeypatch.setattr(results.Run, "has_default_limits", True)
    run = results.Run(task, "1", {"timelimit": message}, began=0)
    stages = results.Stage.START, results.Stage.OUTCOME
    assert [run.deadline(stage) for stage in stages] == [start, outcome]
    monkeypatch.setattr(results.Run, "has_default_limits", False)
    assert run.limits[0] == (message or [of_task])[0]
    monkeypatch.setattr(results.Run, "has_limits", False)
    assert [run.deadline(stage) for stage in stages] == [30, 300]


def test_tasks_of_greenlets_do_not_share_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """results.py is imported before gevent replaces threading.local."""
    app = SimpleNamespace(tasks={"shop.wait": SimpleNamespace(backend=None)})
    monkeypatch.setitem(sys.modules, "celery", SimpleNamespace(current_app=app))
    monkeypatch.setitem(sys.modules, "celery.exceptions", SimpleNamespace(Reject=Exception))
    monkeypatch.setitem(sys.modules, "billiard.einfo", SimpleNamespace(ExceptionInfo=None))
    loop = greenlet.getcurrent()

    def wait(name: str, task_id: str, request: dict[str, Any]) -> str:
        loop.switch()
        return results.current_run.get().task_id

    tasks = {task_id: greenlet.greenlet(results.run_task) for task_id in ("first", "second")}
    for task_id, task in tasks.items():
        task.switch(wait, "shop.wait", task_id, {})
    assert results.current_run.get() is None
    assert {task_id: task.switch() for task_id, task in tasks.items()} == {"first": "first", "second": "second"}


def test_queues_that_no_worker_consumes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the bindings that kombu keeps: also a queue that only a removed worker consumed."""
    bindings = {
        "default": [("default", "", "default")],
        "celery": [("legacy", "", "legacy"), ("empty", "", "empty")],
        "celery.pidbox": [("", "", "io@host.celery.pidbox")],
        "celeryev": [("*", "", "celeryev.1")],
    }
    channel = SimpleNamespace(
        keyprefix_queue="_kombu.binding.%s", global_keyprefix="shop.", get_table=lambda exchange: bindings[exchange]
    )
    keys = [f"shop._kombu.binding.{exchange}".encode() for exchange in bindings]
    client = SimpleNamespace(scan_iter=lambda match, count: keys if match == "shop._kombu.binding.*" else [])
    monkeypatch.setattr(questions, "find_celery", lambda name: None)
    monkeypatch.setattr(questions, "open_channel", lambda app: contextlib.nullcontext((channel, client)))
    monkeypatch.setattr(questions, "depth", lambda channel, queue: {"default": 3, "legacy": 5}.get(queue, 0))
    assert questions.unconsumed("core", "default") == {"legacy": 5}
    assert questions.unconsumed("core") == {"default": 3, "legacy": 5}


@pytest.mark.parametrize("package", compat.TESTED)
def test_tested_range_is_that_of_the_test_environments(package: str) -> None:
    versions = sorted(compat.number(pin(text, package)) for path, text in PINS.items() if "5.3" not in path.name)
    low, high = compat.TESTED[package]
    assert (versions[0], versions[-1]) == (compat.number(low), compat.number(high))


@pytest.mark.parametrize("package", ["celery", "kombu", "redis", "billiard"])
def test_one_test_environment_has_the_versions_of_the_shop(package: str) -> None:
    shop = (ROOT / "app_src/requirements.txt").read_text()
    assert pin(PINS[ROOT / "tests/in_app/requirements-celery5.6.txt"], package) == pin(shop, package)


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("5.4.0", []),
        ("5.7.9", []),
        ("5.8.0rc1", ["celery 5.8.0rc1 is outside"]),
        ("5.3.6", ["celery 5.3.6 is outside"]),
    ],
)
def test_versions_outside_the_tested_range(monkeypatch: pytest.MonkeyPatch, version: str, found: list[str]) -> None:
    versions = {"celery": version, "kombu": "5.5.4", "billiard": "4.2.1"}
    monkeypatch.setattr(compat.metadata, "version", versions.__getitem__)
    problems = compat.outside_tested_range()
    assert [problem.partition(" the tested range")[0] for problem in problems] == found


def test_missing_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "REQUIRED", {"ast:NodeVisitor": ("visit", "_gone"), "ast:Gone": ("a",)})
    [problem] = compat.missing_names()
    assert problem.startswith("Celery lacks ast:NodeVisitor._gone, ast:Gone: workers run as plain")


class Owner:
    """A class whose methods set and read attributes."""

    def __init__(self) -> None:
        self._set = 1


def test_a_name_may_be_set_by_a_method() -> None:
    assert compat.has_name(Owner, "_set")
    assert not compat.has_name(Owner, "_other")


class Celery:
    """An application whose workers run these tasks and answer nothing else."""

    def __init__(self, active: dict[str, list[str]]) -> None:
        self.active = {node: [{"name": name} for name in names] for node, names in active.items()}
        self.control = self
        self.global_keyprefix = ""

    def send_task(self, name: str, **options: Any) -> None:
        pass

    def get(self, key: str) -> None:
        pass

    def inspect(self, destination: list[str], timeout: float) -> Any:
        return SimpleNamespace(active=lambda: {node: self.active[node] for node in destination if node in self.active})


def test_a_queue_is_busy_if_its_worker_runs_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke_test = questions.smoke_test.TASK
    celery = Celery({"one": ["shop.long", smoke_test], "two": [smoke_test], "three": []})
    monkeypatch.setattr(questions, "BUSY_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(questions, "find_celery", lambda name: celery)
    monkeypatch.setattr(questions, "open_channel", lambda application: contextlib.nullcontext((celery, celery)))
    workers = {"one": ["a", "b"], "two": ["c"], "three": ["d"], "gone": ["e"]}
    found = questions.smoke_test_queues("core", 0.3, "abcd-1", workers, *"abcde")
    assert found == {"silent": ["c", "d", "e"], "other": {}, "busy": ["a", "b"]}


class Channel:
    """A channel whose connection is lost while `error` is set."""

    error: Exception | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def basic_ack(self, tag: str) -> None:
        if self.error:
            raise self.error
        self.calls.append(("ack", tag))

    def basic_reject(self, tag: str, requeue: bool) -> None:
        self.calls.append(("reject", tag, requeue))


def test_acknowledgements_are_kept_while_the_connection_is_lost() -> None:
    acknowledgements, old, new = consumer.Acknowledgements((ConnectionError,)), Channel(), Channel()
    acknowledgements.release(old)
    acknowledgements.basic_ack("a")
    old.error = ConnectionError()
    acknowledgements.basic_ack("b")
    acknowledgements.basic_reject("c", requeue=True)
    acknowledgements.release(new)
    acknowledgements.basic_ack("d")
    assert (old.calls, new.calls) == ([("ack", "a")], [("ack", "b"), ("reject", "c", True), ("ack", "d")])


def test_acknowledgements_survive_a_second_loss_of_the_connection() -> None:
    acknowledgements, lost, new = consumer.Acknowledgements((ConnectionError,)), Channel(), Channel()
    acknowledgements.basic_ack("a")
    lost.error = ConnectionError()
    with pytest.raises(ConnectionError):
        acknowledgements.release(lost)
    acknowledgements.release(new)
    assert new.calls == [("ack", "a")]


def test_a_broker_that_does_not_answer_is_lost_after_two_checks() -> None:
    disconnected: list[bool] = []
    here, there = socket.socketpair()
    brpop = SimpleNamespace(next_health_check=1.0, disconnect=lambda: disconnected.append(True), _sock=here)
    channel = SimpleNamespace(_in_poll=brpop)
    watch = broker.BrokerWatch(channel)
    watch.check()
    watch.check()
    brpop.next_health_check = 2.0
    watch.check()
    channel._in_poll = None  # No BRPOP is under way: every child is busy.
    watch.check()
    channel._in_poll = brpop
    watch.check()
    watch.check()
    there.send(b"an answer, which may be a message")
    watch.check()
    here.recv(100)
    with pytest.raises(TimeoutError, match="has not answered for 15 s"):
        watch.check()
    assert disconnected == [True]


def test_every_test_environment_is_run() -> None:
    [versions] = re.findall(r"^celery_versions=\((.*)\)$", (ROOT / "tools/app-tests.sh").read_text(), re.MULTILINE)
    assert {f"requirements-celery{version}.txt" for version in versions.split()} == {path.name for path in PINS}


# --- Beat: the clock -----------------------------------------------------------------------------------------------


class Scheduler:
    """As much of a scheduler as compat reads: two entries with an hour between them, in the heap's order of before."""

    def __init__(self) -> None:
        self.schedule = {}
        self.entries = [
            SimpleNamespace(name=name, is_due=lambda wait=wait: (False, wait))
            for name, wait in (("a", 7200), ("b", 3600))
        ]
        self._heap = [(90000, 5, self.entries[0]), (93600, 5, self.entries[1])]
        self._dirty: set[str] = set()
        self._last_full_sync = datetime(2100, 1, 1)

    def _when(self, entry: Any, seconds: float) -> float:
        return 1000 + seconds


def test_entries_are_in_order_of_time_after_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "celery.beat", SimpleNamespace(event_t=lambda *event: event))
    scheduler = Scheduler()
    compat.reschedule(scheduler)
    assert [(event[0], event[2].name) for event in scheduler._heap] == [(4600, "b"), (8200, "a")]
    assert scheduler._last_full_sync < datetime.now(), "the database is read again at once"


def test_corrected_run_is_written_to_the_database() -> None:
    scheduler = Scheduler()
    entry = SimpleNamespace(name="a", last_run_at=None, model=SimpleNamespace())
    compat.set_last_run(scheduler, entry, datetime(2026, 1, 1))
    assert entry.last_run_at == entry.model.last_run_at == datetime(2026, 1, 1)
    assert scheduler._dirty == {"a"}


# --- Returns -------------------------------------------------------------------------------------------------------


def test_returns_are_counted_in_the_message_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    message: dict[str, Any] = {"properties": {}}
    monkeypatch.setattr(returns.time, "time", lambda: 1_000_000.0)
    assert [returns.count(message["properties"]), returns.add(message), returns.add(message)] == [0, 1, 2]
    assert returns.is_last_chance(message["properties"])
    monkeypatch.setattr(returns.time, "time", lambda: 1_000_000.0 + returns.REMEMBER_SECONDS + 1)
    assert returns.count(message["properties"]) == 0
    assert returns.add(message) == 1
    returns.reset(message)
    assert message == {"properties": {}}


@pytest.mark.parametrize("properties", [None, [], {"hostctl_returns": "x"}, {"hostctl_returns": {}}])
def test_strange_properties_have_no_returns(properties: Any) -> None:
    assert returns.count(properties) == 0


def test_tasks_with_a_last_chance_run_one_by_one() -> None:
    requests = [SimpleNamespace(message=SimpleNamespace(delivery_tag=tag)) for tag in "abc"]
    started: list[str] = []
    noted: list[str] = []
    tasks = returns.OneByOne(lambda request: started.append(request.message.delivery_tag), noted.append)
    for request in requests:
        tasks.add(request)
    assert started == noted == ["a"]
    tasks.ended("other")
    assert started == ["a"]
    tasks.ended("a")
    assert started == noted == ["a", "b"]
    # The connection is lost; b still runs.
    tasks.forget(but={"b"})
    tasks.add(requests[2])
    assert started == ["a", "b"]
    tasks.ended("b")
    assert started == ["a", "b", "c"]
    # It is lost again, and the task was not begun.
    tasks.forget(but=())
    tasks.add(requests[0])
    assert started == ["a", "b", "c", "a"]
