"""Requests and tasks that start when they are due."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from traffic.client import Answer, Client

# The largest values allowed: requests a second, seconds, requests in flight.
MOST_PER_SECOND = 100.0
MOST_SECONDS = 3600.0
MOST_AT_ONCE = 300
MOST_BODY = 200


@dataclass(frozen=True)
class Ask:
    """A request to come. `name` groups it in reports, `task` is what a POST starts."""

    method: str
    path: str
    kept: bool
    name: str = ""
    task: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """The result of a request. Times are seconds since the epoch, durations seconds.

    `late` is the delay of its start in this program, and no part of `latency`. Without a complete answer, `status` is 0
    and `problem` is the reason. `release` and `version` are those that the answer names, "" if it names none.
    """

    start: float
    latency: float
    late: float
    name: str
    kept: bool
    status: int
    problem: str = ""
    release: str = ""
    version: str = ""
    retried: bool = False

    @property
    def end(self) -> float:
        return self.start + self.latency

    @property
    def failed(self) -> bool:
        return not 200 <= self.status < 300

    def __str__(self) -> str:
        clock = time.strftime("%T", time.localtime(self.start)) + f"{self.start % 1:.3f}"[1:]
        what = self.problem or f"status {self.status}"
        who = f" by {self.release}" if self.release else ""
        connection = "kept" if self.kept else "new"
        return f"{clock} {self.name} ({connection} connection): {what} after {self.latency:.3f} s{who}"


@dataclass(frozen=True)
class Sent:
    """A task that the site has accepted: its id, time, name, and its effect's key or ""."""

    id: str
    at: float
    name: str
    key: str = ""


def pages(paths: Sequence[str]) -> Iterator[Ask]:
    """Each page in turn, once on a new connection and once on a kept one."""
    for path, kept in itertools.cycle(itertools.product(paths, (False, True))):
        yield Ask("GET", path, kept, f"GET {path}")


def ledger_tasks(run: str) -> Iterator[dict[str, Any]]:
    """Tasks of the overlay, for every queue; most have an effect that must happen once."""
    for number in itertools.count():
        key = f"{run}-{number}"
        if number % 8 == 7:
            yield {"task": "ledger.sleep", "args": [0.5]}
        elif number % 2:
            yield {"task": "ledger.effect_io", "args": [key, 0.3]}
        else:
            yield {"task": "ledger.effect", "args": [key, 0.1]}


def plain_tasks(run: str) -> Iterator[dict[str, Any]]:
    """Tasks of the project without the overlay."""
    for number in itertools.count():
        yield {"task": "add", "args": [number, 1]}


PLAIN_PAGES = ("/", "/healthz/", "/products/tomato/")
OVERLAY_PAGES = (*PLAIN_PAGES, "/effects/")


@dataclass
class Traffic:
    """Requests and tasks from the start to the end of a `with`; `samples` and `sent` grow meanwhile.

    `rate` GETs and `tasks` POSTs a second. With `overlay` the tasks are the ledger's, and two requests that take
    `slow_seconds` are always in flight. It ends after `seconds`, at most an hour. `log` is a file for every sample, as
    lines of JSON.
    """

    url: str
    rate: float = 15.0
    tasks: float = 4.0
    slow_seconds: float = 3.0
    seconds: float = 1200.0
    timeout: float = 20.0
    overlay: bool = True
    paths: Sequence[str] = ()
    log: Path | None = None
    samples: list[Sample] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert 0 < self.rate + self.tasks <= MOST_PER_SECOND, f"at most {MOST_PER_SECOND:.0f} requests a second"
        assert 0 < self.seconds <= MOST_SECONDS, f"at most {MOST_SECONDS:.0f} seconds"
        self.client = Client(self.url, timeout=self.timeout)
        self.run = uuid.uuid4().hex[:12]
        self.over = threading.Event()
        self.paths = self.paths or (OVERLAY_PAGES if self.overlay else PLAIN_PAGES)

    # -- start and end

    def __enter__(self) -> Self:
        self.pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="request")
        self.deadline = time.time() + self.seconds
        self.threads = [threading.Thread(target=self.keep_pace, args=stream) for stream in self.streams()]
        if self.overlay and self.slow_seconds:
            halves = (0.0, self.slow_seconds / 2)
            self.threads += [threading.Thread(target=self.keep_slow, args=[after]) for after in halves]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop starting requests, and wait for those in flight."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.pool.shutdown()
        self.client.close()
        if self.log:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in self.samples))

    def streams(self) -> list[tuple[float, Iterator[Ask]]]:
        wanted = [(self.rate, pages(self.paths)), (self.tasks, self.posts())]
        return [(rate, asks) for rate, asks in wanted if rate]

    def posts(self) -> Iterator[Ask]:
        bodies = (ledger_tasks if self.overlay else plain_tasks)(self.run)
        for kept, body in zip(itertools.cycle((False, True, True)), bodies, strict=False):
            yield Ask("POST", "/tasks/", kept, "POST /tasks/", body)

    def keep_pace(self, rate: float, asks: Iterator[Ask]) -> None:
        """Start each request at its time; none waits for another."""
        began = time.time()
        for number, ask in enumerate(asks):
            due = began + number / rate
            if due > self.deadline or self.over.wait(max(0.0, due - time.time())):
                return
            self.pool.submit(self.make, ask, due)

    def keep_slow(self, after: float) -> None:
        """Start a slow request whenever the one before has ended.

        Two threads do so, half a request apart, so that at any time one is in flight that has not just started.
        """
        self.over.wait(after)
        ask = Ask("GET", f"/slow/?seconds={self.slow_seconds}", False, "GET /slow/")
        while not self.over.is_set() and time.time() < self.deadline:
            if self.make(ask, time.time()).failed:
                self.over.wait(0.2)

    # -- one request

    def start_task(self, name: str, *args: Any) -> Sent:
        """Start a single task through the site. Raises AssertionError if the site does not accept it."""
        known = len(self.sent)
        sample = self.make(
            Ask("POST", "/tasks/", False, "POST /tasks/", {"task": name, "args": list(args)}), time.time()
        )
        mine = [sent for sent in self.sent[known:] if sent.name == name]
        assert mine, f"the task was not accepted: {sample}"
        return mine[-1]

    def make(self, ask: Ask, due: float) -> Sample:
        """Send the request and record its result."""
        body = json.dumps(ask.task).encode() if ask.task else None
        start = time.time()
        clock = time.monotonic()
        status, problem, answer = 0, "", None
        try:
            answer = self.client.request(ask.method, ask.path, body, kept=ask.kept)
            status = answer.status
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
        latency = time.monotonic() - clock
        release, version = named_by(answer)
        if answer and not 200 <= status < 300:
            problem = f"status {status}: {answer.body[:MOST_BODY].decode(errors='replace')}"
        retried = answer is not None and answer.retried
        sample = Sample(
            start, latency, max(0.0, start - due), ask.name, ask.kept, status, problem, release, version, retried
        )
        if ask.task and answer and not sample.failed:
            self.note_task(ask.task, answer, sample)
        self.samples.append(sample)
        return sample

    def note_task(self, task: dict[str, Any], answer: Answer, sample: Sample) -> None:
        key = task["args"][0] if task["task"].startswith("ledger.effect") else ""
        self.sent.append(Sent(json.loads(answer.body)["id"], sample.end, task["task"], key))

    # -- observing

    def wait(self, enough: Callable[[Self], bool], seconds: float, what: str) -> None:
        """Wait until `enough` is true of the traffic. Raises AssertionError after that many seconds."""
        deadline = time.monotonic() + seconds
        while not enough(self):
            assert time.monotonic() < deadline, f"After {seconds} s still not: {what}"
            time.sleep(0.1)

    def pause(self, seconds: float) -> tuple[float, float]:
        """Wait, and return the start and the end of the wait."""
        began = time.time()
        time.sleep(seconds)
        return began, time.time()


def named_by(answer: Answer | None) -> tuple[str, str]:
    """Return release and version that an answer names: in the overlay's headers, or in the JSON of /healthz/."""
    if answer is None:
        return "", ""
    if release := answer.headers.get("X-Release"):
        return release, answer.headers.get("X-Version", "")
    if answer.headers.get_content_type() == "application/json":
        try:
            body = json.loads(answer.body)
        except ValueError:
            return "", ""
        if isinstance(body, dict) and "status" in body:
            return str(body.get("release", "")), ""
    return "", ""
