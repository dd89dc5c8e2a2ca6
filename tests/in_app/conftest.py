"""A Redis with the users of the role `redis`, the folders of a site, and the real programs as processes."""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).resolve().parent / "project"
HOST = socket.gethostname()
# Within these, a process ends that is told to, or that finds at its start that it must not run: to load the application
# takes a minute on a busy machine.
END_SECONDS = 240
# An address of this process's own, 127.X.Y.Z: no other one can take a port of a server that is stopped for a while.
ADDRESS = f"127.{1 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


def wait_until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """Return the condition's first true value; raises AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"Not within {seconds} s; last {value!r}"
        time.sleep(0.05)
    return value


def free_port() -> int:
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return free.getsockname()[1]


# --- Redis ---------------------------------------------------------------------------------------------------------


def acl() -> str:
    """Return the users of the role `redis`: its own template, rendered."""
    roles = ROOT / "roles/redis"
    text = (roles / "templates/users-broker.acl.j2").read_text()
    password = hashlib.sha256(b"secret").hexdigest()
    (line,) = [line for line in text.splitlines() if line.startswith("user {{ redis_user }}")]
    values = iter(["app", password])
    return f"user default on nopass ~* &* +@all\n{re.sub('{{.*?}}', lambda _: next(values), line)}\n"


@dataclass
class Broker:
    """A Redis server that keeps its data when it is stopped."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"redis://app:secret@{ADDRESS}:{self.port}/0"

    @property
    def admin(self) -> Redis:
        return Redis(ADDRESS, self.port)

    def start(self) -> None:
        options = {"port": self.port, "dir": self.folder, "aclfile": self.folder / "users.acl", "appendonly": "yes"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self.folder / "redis.log").open("a") as log:
            self.process = subprocess.Popen(["redis-server", "--bind", ADDRESS, "--save", "", *words], stdout=log)
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        with socket.socket() as client:
            return client.connect_ex((ADDRESS, self.port)) == 0

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(END_SECONDS)
            self.process = None


@pytest.fixture
def stopped_broker(tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "users.acl").write_text(acl())
    server = Broker(folder, free_port())
    yield server
    refused = [f"{entry['reason']} {entry['object']}" for entry in server.admin.acl_log()] if server.process else []
    server.stop()
    assert not refused, f"The users of the role may not do this: {refused}"


@pytest.fixture
def broker(stopped_broker: Broker) -> Broker:
    stopped_broker.start()
    return stopped_broker


# --- Processes -----------------------------------------------------------------------------------------------------


def children(process: subprocess.Popen) -> list[str]:
    """Return the process IDs of the children."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@dataclass
class Site:
    """The folders of a site as on a server, and the processes of its releases.

    Tasks write what happens to them to `log`, and run until `gate` exists.
    """

    folder: Path
    broker: Broker
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def library(self) -> Path:
        return self.folder / "library"

    def program(self, name: str) -> Path:
        return self.library / f"hostctl/in_app/{name}.py"

    def change(self, module: str, old: str, new: str) -> None:
        """Replace text of a module of in_app, such as the value of a constant."""
        text = self.program(module).read_text()
        assert old in text
        self.program(module).write_text(text.replace(old, new))

    @property
    def log(self) -> Path:
        return self.folder / "tasks.log"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    @property
    def kill_file(self) -> Path:
        return self.folder / "kill"

    def run(self, release: str) -> Path:
        return self.folder / "releases" / release / "run"

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CELERY_BROKER_URL": self.broker.url,
            "DATABASE_URL": f"sqlite:///{self.folder / 'database'}",
            "RESULTS": str(self.results),
            "TASK_LOG": str(self.log),
            "TASK_GATE": str(self.gate),
            "PYTHONUNBUFFERED": "1",
            **variables,
        }

    def start(self, *words: str, release: str = "r1", variables: dict[str, str] | None = None) -> subprocess.Popen:
        """Start celery_runner.py with these arguments, as systemd does: in a process group of its own."""
        self.run(release).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(self.program("celery_runner")), *words, "--app", "sample"]
        process = subprocess.Popen(
            [*command, "--release", release], cwd=PROJECT, env=self.environment(variables or {}),
            stdout=(self.folder / f"log-{len(self.processes)}").open("w"), stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def output(self, process: subprocess.Popen) -> str:
        return (self.folder / f"log-{self.processes.index(process)}").read_text()

    def worker(
        self, name: str = "one", *, queues: str = "default", concurrency: int = 2, pool: str = "prefork",
        release: str = "r1", wait: bool = True, **variables: str,
    ) -> subprocess.Popen:  # fmt: skip
        """Start a worker and wait until it is ready."""
        words = ["--name", name, "--queues", queues, "--concurrency", str(concurrency), "--pool", pool]
        run = ["--run", str(self.run(release))]
        process = self.start("worker", *words, *run, release=release, variables=variables)
        if wait:
            wait_until(lambda: " ready." in self.output(process) or process.poll() is not None)
            assert process.poll() is None, self.output(process)
        return process

    def beat(self, **variables: str) -> subprocess.Popen:
        return self.start("beat", "--schedule", str(self.folder / "schedule"), variables=variables)

    def django(self, *words: str, **variables: str) -> str:
        """Run Python in the project: -m django COMMAND, or -c CODE. Return what it prints."""
        environment = self.environment({"DJANGO_SETTINGS_MODULE": "sample.settings"} | variables)
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=PROJECT, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def stop(self, process: subprocess.Popen) -> int:
        process.terminate()
        return process.wait(END_SECONDS)

    def kill(self, process: subprocess.Popen) -> None:
        """Kill a process and its children, as systemd does when the main process was killed."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ask(self, *questions: list[Any], **variables: str) -> Any:
        """Return the inspector's answer to a question, or a list of answers."""
        command = [str(self.folder / "releases/r1/.venv/bin/python"), str(self.program("inspector"))]
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env=self.environment(variables),
            input=lines,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert all("answer" in answer for answer in answers), answers
        return answers[0]["answer"] if len(answers) == 1 else [answer["answer"] for answer in answers]

    # -- tasks

    @property
    def client(self) -> Celery:
        app = Celery(broker=self.broker.url, backend=f"file://{self.results}")
        app.conf.task_default_queue = "default"
        return app

    def send(self, name: str = "sample.hold", **options: Any) -> str:
        """Send a task and return its ID."""
        return self.client.send_task(name, **options).id

    def lines(self, word: str) -> list[str]:
        """Return the IDs of tasks that started (START) or ended (END), in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(word)]

    def depth(self, queue: str = "default") -> int:
        return self.broker.admin.llen(queue)

    def slots(self) -> set[str]:
        return {slot.decode() for slot in self.broker.admin.smembers("unacked_slots")}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the package hostctl and compile in_app, which the processes of every test would compile again."""
    folder = tmp_path_factory.mktemp("compiled") / "hostctl"
    shutil.copytree(ROOT / "hostctl", folder)
    assert compileall.compile_dir(folder / "in_app", quiet=1)
    return folder


@pytest.fixture
def site(tmp_path: Path, compiled: Path, stopped_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    # The test's own Celery client would prefer this variable to the broker it is given.
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    here = Site(tmp_path / "site", stopped_broker)
    # With the times of its files, so that Python uses the compiled modules; not of those that a test changes.
    shutil.copytree(compiled, here.library / "hostctl")
    here.results.mkdir(parents=True)
    # The release's own interpreter: the programs derive the folder of releases from its path.
    environment = here.folder / "releases/r1/.venv"
    environment.mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
    for name in ("bin", "lib"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    yield here
    for process in here.processes:
        if process.poll() is None:
            here.kill(process)
        print(f"--- {' '.join(process.args[2:])}\n{here.output(process)}")
