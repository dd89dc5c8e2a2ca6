"""Rollouts as a user starts them, and ways to look at them, to disturb them and to kill them, for the scenarios."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from installation import Installation, query
from probes import wait_for
from testinfra.host import Host
from traffic import Ledger, Sample, Traffic, verdict, versions

ROOT = Path(__file__).resolve().parents[2]
# The steps of a rollout, as `status` and /srv/APP/deployment.json name them.
STEPS = (
    *("preflight", "build", "check", "snapshot", "migrate", "start", "gate", "warm", "handover", "switch"),
    *("probe", "watch", "beat", "drain", "prune"),
)
# A playbook that takes longer than this hangs.
LONGEST = 400
SETTLE_SECONDS = 90
WATCH_SECONDS = 240
# Seconds between two ticks that a restart of beat may cause on a busy host: its stop, its start, and the tick itself.
BEAT_STOP = 30

# Run on the host: wait until a rollout that began after this did is at one of the steps, then kill its process or not.
# Its arguments: the file, seconds, `kill` or `look`, the steps.
WATCHER = """
import json, os, signal, sys, time
file, seconds, what, *steps = sys.argv[1:]
def read():
    try:
        return json.loads(open(file).read())
    except (FileNotFoundError, ValueError):
        return {}
def key(state):
    return state.get("pid"), state.get("since")
before, inode, deadline = key(read()), None, time.monotonic() + float(seconds)
print("watching", flush=True)
while time.monotonic() < deadline:
    try:
        now = os.stat(file).st_ino, os.stat(file).st_mtime_ns
    except FileNotFoundError:
        now = None
    if now and now != inode:
        inode, state = now, read()
        if state and key(state) != before and state.get("step") in steps:
            if what == "kill":
                os.kill(state["pid"], signal.SIGKILL)
            print(json.dumps({"step": state["step"], "pid": state["pid"], "at": time.time()}), flush=True)
            sys.exit(0)
    time.sleep(0.001)
sys.exit("none of these steps was seen: " + " ".join(steps))
"""


@dataclass
class Run:
    """A playbook at work, or what it came to. Times are seconds since the epoch."""

    command: list[str]
    process: subprocess.Popen
    log: Path
    began: float = field(default_factory=time.time)
    ended: float = 0.0

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = LONGEST) -> Run:
        """Wait for its end. Raises AssertionError, with what it said, after that many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"No end after {seconds} s: {shlex.join(self.command)}\n{self.output}") from None
        self.ended = time.time()
        return self

    def signal(self, number: int) -> None:
        """As a terminal does: to the playbook and all that it started."""
        os.killpg(self.process.pid, number)

    @property
    def status(self) -> int:
        assert self.process.returncode is not None, "it has not ended"
        return self.process.returncode

    @property
    def span(self) -> tuple[float, float]:
        return self.began, self.ended

    def succeeded(self) -> Run:
        assert self.status == 0, f"{shlex.join(self.command)} ended with {self.status}:\n{self.output}"
        return self

    def says(self, text: str) -> Run:
        assert text in self.output, f"{text!r} is not in:\n{self.output}"
        return self

    def failed(self) -> Run:
        assert self.status != 0, f"{shlex.join(self.command)} ended with 0 and should not:\n{self.output}"
        return self

    @property
    def changed(self) -> int:
        """How many tasks changed something, as the recap has it."""
        return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", self.output))


@dataclass
class Watch:
    """The watcher on the host."""

    process: subprocess.Popen
    folder: Path

    def seen(self) -> dict[str, Any]:
        """What it saw, once it has. Raises AssertionError, with what the last playbook said, when it saw nothing."""
        try:
            output, errors = self.process.communicate(timeout=WATCH_SECONDS + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the connection to the watcher stands still") from None
        if self.process.returncode != 0:
            newest = max(self.folder.glob("playbook-*.log"), key=lambda log: log.stat().st_mtime)
            raise AssertionError(f"{errors}\n{newest.read_text(errors='replace')}")
        return json.loads(output.splitlines()[-1])


@dataclass
class Rollouts:
    """One installation of a scenario, by the doors of its user, and what can be seen of it."""

    host: Host
    app: Installation
    folder: Path

    # -- where to look, for who has several hosts

    @property
    def limit(self) -> str:
        """The hosts that playbooks are for."""
        return self.host.backend.host

    @property
    def workers(self) -> list[Host]:
        """The hosts that do the tasks."""
        return [self.host]

    @property
    def database(self) -> Host:
        return self.host

    # -- a user's doors

    def playbook(self, name: str, *options: str, tags: str = "", **variables: Any) -> Run:
        """Start a playbook for this installation alone, from the scenario's folder, as molecule does."""
        inventory = Path(self.host.backend.ansible_inventory).resolve()
        command = [str(Path(sys.executable).parent / "ansible-playbook"), f"--inventory={inventory}"]
        command += [f"--limit={self.limit}", str(ROOT / name), *options]
        if tags:
            command += [f"--tags={tags}"]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        log = Path(tempfile.mkstemp(prefix="playbook-", suffix=".log", dir=self.folder)[1])
        environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        environment |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        return Run(command, process, log)

    def begin(self, source: Path) -> Run:
        """Start to roll a version out, and do not wait for it."""
        return self.playbook("playbooks/deploy.yml", app_source=str(source))

    def deploy(self, source: Path, **variables: Any) -> Run:
        return self.playbook("playbooks/deploy.yml", app_source=str(source), **variables).wait()

    def rollback(self, **variables: Any) -> Run:
        return self.playbook("playbooks/rollback.yml", **variables).wait()

    def version(self, name: str, *changes: str, keep: bool = True) -> Path:
        """A new version of the project, unlike all before it, with every column that the database has already.

        Without `keep` it lacks them.
        """
        columns = [f"column={column}" for column in self.columns()] if keep else []
        return versions.make(self.folder / f"{name}-{uuid.uuid4().hex[:6]}", name, *columns, *changes)

    # -- what there is to see

    def status(self) -> dict[str, Any]:
        return json.loads(self.host.check_output(f"{self.app.name}ctl status --json"))

    @property
    def current(self) -> str:
        """The release that serves: the one switch."""
        return Path(self.host.check_output(f"readlink --canonicalize /srv/{self.app.name}/current")).name

    def processes(self) -> dict[str, int]:
        """Every process of the application's releases and beat, by its name without suffix, and its process ID."""
        name = self.app.name
        if self.host.ansible.get_variables()["app_process_manager"] == "supervisor":
            lines = self.host.run("supervisorctl status").stdout.splitlines()
            found = [re.match(r"(?:\S+:)?(\S+)\s+RUNNING\s+pid (\d+)", line) for line in lines]
            return {match[1]: int(match[2]) for match in found if match and match[1].startswith(f"{name}-")}
        patterns = f"'{name}-web@*' '{name}-worker-*@*' {name}-beat"
        output = self.host.check_output(f"systemctl show --property=Id,MainPID {patterns}")
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.split("\n\n") if block]
        return {
            block["Id"].removesuffix(".service"): int(block["MainPID"]) for block in blocks if block["MainPID"] != "0"
        }

    def stopping(self) -> str:
        """The processes that were told to end and have not, under either manager."""
        under_systemd = "systemctl list-units --plain --no-legend --state=deactivating"
        return self.host.run(f"{under_systemd}; supervisorctl status 2>/dev/null | grep STOPPING").stdout

    @property
    def media(self) -> str:
        """The folder on the host that the application may write to."""
        return f"/srv/{self.app.name}/shared/media"

    def ledger(self) -> Ledger:
        """What the tasks wrote, on whichever host they ran."""
        parts = [Ledger.parse(host.run(f"cat {self.media}/ledger/ledger.jsonl").stdout) for host in self.workers]
        return Ledger(sorted((entry for part in parts for entry in part.entries), key=lambda entry: entry.at))

    def columns(self) -> list[str]:
        """The columns that migrations of earlier versions have added, in order."""
        sql = "SELECT name FROM django_migrations WHERE app = 'ledger' AND name > '0002' ORDER BY name"
        return [name.partition("_")[2] for name in query(self.database, self.app, sql).split()]

    def schema(self) -> str:
        """Every table and column, as text to compare."""
        return query(
            self.database,
            self.app,
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2",
        )

    def redis_processes(self) -> str:
        """The process IDs of both, which no change of users or settings of the application may change."""
        units = "redis-server@broker redis-server@cache"
        return self.database.check_output(f"systemctl show --property=MainPID --value {units}")

    def set_aside(self) -> str:
        """The messages of tasks that no worker knew, as Redis has them."""
        command = '"$(. /etc/%s/app.env && echo "$CELERY_BROKER_URL")" LRANGE celery-set-aside 0 -1'
        return self.host.check_output(f"redis-cli --no-auth-warning -u {command % self.app.name}")

    def log(self, since: float) -> str:
        """Everything that the host's journal has since then."""
        return self.host.check_output(f"journalctl --no-pager --output=cat --since=@{int(since)}")

    def is_idle(self) -> bool:
        """Neither at work nor left unfinished, and the lock free."""
        lock = f"/srv/{self.app.name}/lock"
        free = self.host.run(f"[ ! -e {lock} ] || flock --nonblock {lock} true").succeeded
        return free and self.status().get("rollout") is None

    def hold_tasks(self) -> None:
        """From now on tasks called ledger.wait wait."""
        self.host.check_output(f"rm -f {self.media}/ledger/open")

    def let_tasks_end(self) -> None:
        """From now on they end."""
        self.host.check_output(f"touch {self.media}/ledger/open")

    def wait_until_idle(self, seconds: float = 180) -> None:
        what = "the rollout has ended and the lock is free"
        wait_for(lambda: self.is_idle() or self.status(), seconds, what, lambda seen: seen is True)

    # -- disturbing

    def ssh(self, command: str) -> list[str]:
        """What runs a command on the host, on a connection of its own."""
        variables = self.host.ansible.get_variables()
        options = shlex.split(variables.get("ansible_ssh_common_args", ""))
        return ["ssh", "-i", variables["ansible_ssh_private_key_file"], *options, f"root@{self.app.address}", command]

    def watch(self, step: str, *, kill: bool = False) -> Watch:
        """Wait on the host for a rollout to be at the step (or past it, where a step takes no time).

        It watches from now on, before there is a rollout, for WATCH_SECONDS.
        """
        steps = STEPS[STEPS.index(step) :]
        words = [f"/srv/{self.app.name}/deployment.json", str(WATCH_SECONDS), "kill" if kill else "look", *steps]
        command = self.ssh(f"python3 -c {shlex.quote(WATCHER)} {shlex.join(words)}")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n", process.communicate()
        return Watch(process, self.folder)

    @contextmanager
    def held_transaction(self, table: str) -> Iterator[None]:
        """Somebody's transaction that has read a table and does not end."""
        sql = f"BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE; SELECT pg_sleep(600)"
        psql = f"cd / && exec runuser -u postgres -- psql --no-psqlrc -d {self.app.name} -c {shlex.quote(sql)}"
        sleeping = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%LOCK TABLE%'"
        with subprocess.Popen(self.ssh(psql), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                holds = f"SELECT count(*) {sleeping}"
                wait_for(lambda: query(self.database, self.app, holds) == "1", 30, f"a transaction holds {table}")
                yield
            finally:
                query(self.database, self.app, f"SELECT pg_terminate_backend(pid) {sleeping}")
                process.terminate()

    # -- load, and its verdict

    @contextmanager
    def under_load(self, **options: Any) -> Iterator[Traffic]:
        """Load and flow as long as this lasts. What it saw is in `samples` and `sent`, whatever comes of the test."""
        # Enough to see a gap of a tenth of a second; what more would cost is left to the rollout and other scenarios.
        options = {"rate": 10.0, "tasks": 3.0} | options
        with Traffic(self.app.url, log=self.folder / f"traffic-{uuid.uuid4().hex[:6]}.jsonl", **options) as traffic:
            traffic.wait(lambda now: len(now.samples) > 20, 20, "the site answers at all")
            try:
                yield traffic
            finally:
                ledger = self.ledger().since(traffic.samples[0].start)
                print(verdict.summary(traffic.samples, traffic.sent, ledger))

    def work_is_done(self, traffic: Traffic, *, bound: float = BEAT_STOP, once: bool = True) -> Ledger:
        """All that the flow began has come to its end, and beat has ticked all the time.

        With `once` no task was begun twice either, as is promised unless a worker dies.
        """
        began, ended = traffic.samples[0].start, max(sample.end for sample in traffic.samples)
        # The flow may go on meanwhile: what is sent from now on is not waited for.
        sent = list(traffic.sent)
        ledger = verdict.settle(self.ledger, sent, SETTLE_SECONDS).since(began)
        verdict.none_lost(sent, ledger)
        verdict.each_effect_once(sent, ledger)
        verdict.no_tick_twice(ledger)
        verdict.ticks_kept_time(ledger, bound, (began, ended))
        if once:
            verdict.none_ran_twice(ledger, {one.id for one in sent})
        return ledger

    def nothing_suffered(self, traffic: Traffic, releases: Sequence[str], **options: Any) -> None:
        """No request failed, only these releases answered, and the work is done."""
        verdict.no_request_failed(traffic.samples)
        verdict.no_connection_was_cut(traffic.samples)
        # Two cores that others use as well stand still for a second or two now and then.
        verdict.loop_was_open(traffic.samples, bound=3)
        verdict.only_these_answered(traffic.samples, releases)
        self.work_is_done(traffic, **options)


def between(samples: Sequence[Sample], began: float, ended: float) -> list[Sample]:
    """The requests that began in a span of time."""
    return [sample for sample in samples if began <= sample.start < ended]
