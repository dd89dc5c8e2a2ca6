"""Deployments as a user starts them, and functions that observe, disturb and kill them, for the scenarios.

Most tests start the program on the host directly (`deploy`, `rollback`), which saves the start of Ansible. `playbook`,
`deploy_with_ansible` and `rollback_with_ansible` go through the playbooks, as an operator does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from installation import Installation, query
from probes import wait_for
from testinfra.host import Host
from traffic import Ledger, Sample, Traffic, verdict, versions

from hostctl.deploy.steps import DEPLOY
from plugins.action.release_archive import pack

ROOT = Path(__file__).resolve().parents[2]
# The steps of a deployment, as `status` and /srv/APP/deployment.json name them.
STEPS = tuple(step.name for step in DEPLOY)
# Seconds after which a playbook or a deployment hangs: a busy machine takes several times as long as an idle one.
TIMEOUT = 900
SETTLE_SECONDS = 90
# Requests and tasks a second: enough to see a gap of a third of a second. (A slow request is always in flight, too.)
# Every request costs CPU time that the deployments of all hosts need: more of them than of the deployments themselves.
LOAD = {"rate": 3.0, "tasks": 1.0}
# Enough to see a gap of a seventh of a second.
HIGH_LOAD = {"rate": 7.0, "tasks": 2.0}
WATCH_SECONDS = 600
# Seconds without a tick that a restart of beat may cause on a busy host: it stops, starts, and sends the tick.
BEAT_RESTART = 60

# Runs on the host, and waits until a deployment that began later is at a step. Its arguments: the state file, seconds,
# what to do, the step, and the steps after it.
# look: print the state at this step or, if the step was too short to be seen, at a later one.
# kill: stop the process by SIGSTOP, and kill it if it is still at this very step. Else let it go on and print "missed".
WATCHER = """
import ctypes, json, os, select, signal, sys, time
file, seconds, what, step, *later = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
events = libc.inotify_init1(os.O_CLOEXEC)
IN_MOVED_TO = 0x80
if events < 0 or libc.inotify_add_watch(events, os.path.dirname(file).encode(), IN_MOVED_TO) < 0:
    sys.exit("inotify: " + os.strerror(ctypes.get_errno()))
def read():
    try:
        return json.loads(open(file).read())
    except (FileNotFoundError, ValueError):
        return {}
def key(state):
    return state.get("pid"), state.get("since")
def report(**found):
    print(json.dumps(found), flush=True)
    sys.exit(0)
before, deadline = key(read()), time.monotonic() + float(seconds)
print("watching", flush=True)
while time.monotonic() < deadline:
    select.select([events], [], [], 0.2)
    if select.select([events], [], [], 0)[0]:
        os.read(events, 65536)
    state = read()
    if not state or key(state) == before or "status" in state or state.get("step") not in [step, *later]:
        continue
    if what == "look":
        report(step=state["step"], pid=state["pid"])
    os.kill(state["pid"], signal.SIGSTOP)
    now = read()
    if now.get("step") == step:
        os.kill(state["pid"], signal.SIGKILL)
        report(step=step, pid=state["pid"])
    os.kill(state["pid"], signal.SIGCONT)
    report(missed=now.get("step"), pid=state["pid"])
sys.exit(f"no deployment came to the step {step} within {seconds} s")
"""


def descendants(process: int) -> list[int]:
    """Return the ids of all processes that a process has started, and that these have started, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        # A process may end meanwhile.
        with suppress(OSError):
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
            children.setdefault(int(fields["PPid"]), []).append(int(fields["Pid"]))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found[1:]


@dataclass
class Run:
    """A command that runs, a playbook or a deployment, and its result. Times are seconds since the epoch."""

    command: list[str]
    process: subprocess.Popen
    log: Path
    began: float = field(default_factory=time.time)
    ended: float = 0.0

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = TIMEOUT) -> Run:
        """Wait for its end. Raises AssertionError, with its output, after that many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"No end after {seconds} s: {self.text}\n{self.output}") from None
        self.ended = time.time()
        return self

    def signal(self, number: int) -> None:
        """Signal the command and its process group, as a terminal does; SIGKILL ends all that it started.

        Ansible's workers are in sessions of their own: they would go on, and try a killed command again.
        """
        started = descendants(self.process.pid) if number == signal.SIGKILL else []
        os.killpg(self.process.pid, number)
        for process in started:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    @property
    def text(self) -> str:
        return shlex.join(self.command)

    @property
    def status(self) -> int:
        assert self.process.returncode is not None, "it has not ended"
        return self.process.returncode

    def succeeded(self) -> Run:
        assert self.status == 0, f"{self.text} ended with {self.status}:\n{self.output}"
        return self

    def failed(self) -> Run:
        assert self.status != 0, f"{self.text} ended with 0 and should not:\n{self.output}"
        return self

    def says(self, text: str) -> Run:
        assert text in self.output, f"{text!r} is not in:\n{self.output}"
        return self

    @property
    def changed(self) -> int:
        """The number of tasks that changed something, from the recap."""
        return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", self.output))


@dataclass
class Watch:
    """The watcher on the host."""

    process: subprocess.Popen
    folder: Path

    def result(self) -> dict[str, Any]:
        """Wait for what it reports. Raises AssertionError, with the newest log, if it has seen nothing."""
        try:
            output, errors = self.process.communicate(timeout=WATCH_SECONDS + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the connection to the watcher hangs") from None
        if self.process.returncode != 0:
            newest = max(self.folder.glob("run-*.log"), key=lambda log: log.stat().st_mtime)
            raise AssertionError(f"{errors}\n{newest.read_text(errors='replace')}")
        return json.loads(output.splitlines()[-1])


@dataclass
class Deployments:
    """One installation of a scenario: an operator's commands, and everything that tests observe of it."""

    host: Host
    app: Installation
    folder: Path
    # Where the playbooks and the scenario's inventory are; see clone().
    checkout: Path = field(default=ROOT, kw_only=True)

    # -- which hosts (a cluster has several)

    @property
    def limit(self) -> str:
        """The hosts that playbooks run for."""
        return self.host.backend.host

    @property
    def workers(self) -> list[Host]:
        """The hosts that run tasks."""
        return [self.host]

    @property
    def database(self) -> Host:
        return self.host

    @property
    def inventory(self) -> Path:
        return self.checkout / Path(self.host.backend.ansible_inventory).resolve().relative_to(ROOT)

    # -- an operator's commands, through Ansible

    def playbook(self, name: str, *options: str, tags: str = "", **variables: Any) -> Run:
        """Start a playbook for this installation, from the scenario's folder."""
        command = [str(Path(sys.executable).parent / "ansible-playbook"), f"--inventory={self.inventory}"]
        command += [f"--limit={self.limit}", str(self.checkout / name), *options]
        if tags:
            command += [f"--tags={tags}"]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        environment = {"ANSIBLE_CONFIG": str(self.checkout / "ansible.cfg")}
        environment |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        return self.start(command, environment=environment)

    def playbook_as_molecule(self, name: str, *options: str) -> Run:
        """Start a playbook with the inventories of molecule's own runs, after which it is to change nothing.

        The monitoring names the inventory where there is one alone (group_vars/all/wiring.yml).
        """
        return self.playbook(name, f"--inventory={os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory", *options)

    def clone(self) -> Deployments:
        """Return the same installation seen from a fresh clone: without what git ignores, with uncommitted changes."""
        checkout = Path(tempfile.mkdtemp(prefix="clone-", dir=self.folder))
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(command, text=True).split("\0"):
            # A link counts, wherever it leads.
            if name and os.path.lexists(ROOT / name):
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
        return replace(self, checkout=checkout)

    def begin_with_ansible(self, source: Path, **variables: Any) -> Run:
        """Start to deploy a version."""
        return self.playbook("playbooks/deploy.yml", app_source=str(source), **variables)

    def deploy_with_ansible(self, source: Path, **variables: Any) -> Run:
        return self.begin_with_ansible(source, **variables).wait()

    def rollback_with_ansible(self, **variables: Any) -> Run:
        return self.playbook("playbooks/rollback.yml", **variables).wait()

    # -- an operator's commands, on the host

    def begin(self, source: Path, *options: str) -> Run:
        """Start to deploy a version with the program on the host."""
        release, archive = self.pack(source)
        return self.control("deploy", release, "-", *options, data=archive)

    def deploy(self, source: Path, *options: str) -> Run:
        return self.begin(source, *options).wait()

    def rollback(self, *options: str) -> Run:
        return self.control("rollback", *options).wait()

    def control(self, *words: str, data: Path | None = None) -> Run:
        """Start the program on the host over a connection of its own; `data` is its input."""
        return self.start(self.ssh(shlex.join([f"{self.app.name}ctl", *words])), data=data)

    def pack(self, source: Path) -> tuple[str, Path]:
        """Return the ID and the archive of a version, as deploy.yml packs it."""
        return pack(str(source), "", ROOT, self.folder / "archives", self.configuration)

    def start(self, command: list[str], *, environment: dict[str, str] | None = None, data: Path | None = None) -> Run:
        log = Path(tempfile.mkstemp(prefix="run-", suffix=".log", dir=self.folder)[1])
        stdin = data.open("rb") if data else None
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | (environment or {}),
                stdin=stdin or subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if stdin:
            stdin.close()
        return Run(command, process, log)

    def version(self, name: str, *changes: str, keep: bool = True) -> Path:
        """Make a version of the project, different from all others, with every column that the database has.

        Without `keep` it lacks these columns.
        """
        columns = [f"column={column}" for column in self.columns()] if keep else []
        return versions.make(self.folder / f"{name}-{uuid.uuid4().hex[:6]}", name, *columns, *changes)

    @property
    def settings_file(self) -> str:
        return f"/etc/{self.app.name}/hostctl.json"

    @property
    def configuration(self) -> str:
        """The hash of everything else that processes are started with: the end of each release's ID."""
        return self.current.rpartition("-")[2]

    @contextmanager
    def settings(self, **values: Any) -> Iterator[None]:
        """Change settings of the program on the host, as long as this lasts."""
        file = self.settings_file
        before = self.host.check_output(f"cat {file}")
        self.write(file, json.dumps(json.loads(before) | values))
        try:
            yield
        finally:
            self.write(file, before + "\n")

    def write(self, file: str, content: str) -> None:
        self.host.check_output(f"printf %s {shlex.quote(content)} >{file}")

    # -- what can be observed

    def status(self) -> dict[str, Any]:
        # Its exit status tells whether everything runs that should.
        return json.loads(self.host.run(f"{self.app.name}ctl status --json").stdout)

    @property
    def current(self) -> str:
        """The current release."""
        return Path(self.host.check_output(f"readlink --canonicalize /srv/{self.app.name}/current")).name

    @property
    def switched(self) -> float:
        """When the current release became current. (The host has the clock of this machine.)"""
        return float(self.host.check_output(f"stat --format=%.9Y /srv/{self.app.name}/current"))

    @cached_property
    def manager(self) -> str:
        """The process manager that the inventory names."""
        return self.host.ansible.get_variables().get("app_process_manager", "systemd")

    # -- the processes of the current release; a process is web, worker-NAME or beat

    def unit(self, process: str) -> str:
        """Return the name of a process's unit or program."""
        name = f"{self.app.name}-{process}"
        return name if process == "beat" else f"{name}@{self.current}"

    def manage(self, action: str, process: str) -> str:
        """Return the command that an operator types to start, stop or restart a process."""
        unit = self.unit(process)
        if self.manager == "systemd":
            return f"systemctl {action} {unit}"
        group = unit if process == "beat" else f"{self.app.name}@{self.current}"
        return f"supervisorctl {action} {group}:{unit}"

    def kill(self, process: str) -> None:
        """Kill the main process."""
        self.host.check_output(f"kill -KILL {self.processes()[self.unit(process)]}")

    def clean_stops(self, process: str) -> int:
        """Return how often the process was told to stop, and ended with status 0."""
        unit = self.unit(process)
        if self.manager == "systemd":
            log, line = f"journalctl --quiet --output=cat --unit={unit}", f"{unit}.service: Deactivated successfully."
        else:
            log, line = "cat /var/log/supervisor/supervisord.log", f"stopped: {unit} (exit status 0)"
        return int(self.host.run(f"{log} | grep --count --fixed-strings {shlex.quote(line)}").stdout)

    def processes(self) -> dict[str, int]:
        """Return the process ID of each unit or program of the application's releases, and of beat."""
        name = self.app.name
        # Only one of them manages any.
        lines = self.host.run("supervisorctl status 2>/dev/null").stdout.splitlines()
        found = [re.match(r"(?:\S+:)?(\S+)\s+RUNNING\s+pid (\d+)", line) for line in lines]
        programs = {match[1]: int(match[2]) for match in found if match and match[1].startswith(f"{name}-")}
        patterns = f"'{name}-web@*' '{name}-worker-*@*' {name}-beat"
        output = self.host.check_output(f"systemctl show --property=Id,MainPID {patterns}")
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.split("\n\n") if block]
        units = {
            block["Id"].removesuffix(".service"): int(block["MainPID"])
            for block in blocks
            if block.get("MainPID", "0") != "0"
        }
        return units | programs

    def running_releases(self) -> set[str]:
        """Return the releases that have processes."""
        return {name.partition("@")[2] for name in self.processes()} - {""}

    def stopping(self) -> str:
        """Return the units or programs that were told to stop and have not ended yet."""
        under_systemd = "systemctl list-units --plain --no-legend --state=deactivating"
        return self.host.run(f"{under_systemd}; supervisorctl status 2>/dev/null | grep STOPPING").stdout

    @property
    def media(self) -> str:
        """The folder on the host that the application may write to."""
        return f"/srv/{self.app.name}/shared/media"

    def ledger(self) -> Ledger:
        """Return what the tasks have written, on whichever host they ran."""
        parts = [Ledger.parse(host.run(f"cat {self.media}/ledger/ledger.jsonl").stdout) for host in self.workers]
        return Ledger(sorted((entry for part in parts for entry in part.entries), key=lambda entry: entry.at))

    def columns(self) -> list[str]:
        """Return the columns that migrations of earlier versions have added, in order."""
        sql = "SELECT name FROM django_migrations WHERE app = 'ledger' AND name > '0002' ORDER BY name"
        return [name.partition("_")[2] for name in query(self.database, self.app, sql).split()]

    def schema(self) -> str:
        """Return every table and column, as text to compare."""
        return query(
            self.database,
            self.app,
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2",
        )

    def redis_processes(self) -> str:
        """Return the process IDs of both Redis servers, which changes of users and settings must not restart."""
        units = "redis-server@broker redis-server@cache"
        return self.database.check_output(f"systemctl show --property=MainPID --value {units}")

    def parked(self) -> str:
        """Return the messages of tasks that no worker knew, as Redis keeps them."""
        command = '"$(. /etc/%s/next/app.env && echo "$CELERY_BROKER_URL")" LRANGE celery-parked 0 -1'
        return self.host.check_output(f"redis-cli --no-auth-warning -u {command % self.app.name}")

    def log(self, since: float) -> str:
        """Return the host's journal since that time."""
        return self.host.check_output(f"journalctl --no-pager --output=cat --since=@{int(since)}")

    def is_idle(self, status: dict[str, Any] | None = None) -> bool:
        """Return whether no deployment runs or is unfinished, by this status or a new one, and the lock is free."""
        lock = f"/srv/{self.app.name}/lock"
        free = self.host.run(f"[ ! -e {lock} ] || flock --nonblock {lock} true").succeeded
        return free and (status or self.status()).get("deployment") is None

    def wait_until_idle(self, seconds: int = 180) -> None:
        what = "the deployment has ended and the lock is free"
        lock = f"/srv/{self.app.name}/lock"
        self.host.run(f"[ ! -e {lock} ] || flock --timeout {seconds} {lock} true")
        wait_for(lambda: self.is_idle() or self.status(), seconds, what, lambda seen: seen is True)

    # -- the tasks called ledger.wait

    def hold_tasks(self) -> None:
        """From now on they wait."""
        self.host.check_output(f"rm -f {self.media}/ledger/open")

    def release_tasks(self) -> None:
        """From now on they end."""
        self.host.check_output(f"touch {self.media}/ledger/open")

    # -- disturbing

    def ssh(self, command: str) -> list[str]:
        """Return the words that run a command on the host, over a connection of its own."""
        variables = self.host.ansible.get_variables()
        options = shlex.split(variables.get("ansible_ssh_common_args", ""))
        return ["ssh", "-i", variables["ansible_ssh_private_key_file"], *options, f"root@{self.app.address}", command]

    def watch(self, step: str, *, kill: bool = False) -> Watch:
        """Watch for a deployment that begins from now on and comes to this step; see WATCHER."""
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
    def open_transaction(self, table: str) -> Iterator[None]:
        """Hold a transaction open that has read a table."""
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
        """Send requests and tasks as long as this lasts. `samples` and `sent` keep the results."""
        options = LOAD | options
        with Traffic(self.app.url, log=self.folder / f"traffic-{uuid.uuid4().hex[:6]}.jsonl", **options) as traffic:
            traffic.wait(lambda now: len(now.samples) > 4, 60, "the site answers at all")
            try:
                yield traffic
            finally:
                ledger = self.ledger().since(traffic.samples[0].start)
                print(verdict.summary(traffic.samples, traffic.sent, ledger))

    def assert_no_task_lost(self, traffic: Traffic, *, bound: float = BEAT_RESTART, once: bool = True) -> Ledger:
        """Assert that all tasks of the traffic have ended, and that beat has ticked all the time.

        With `once`, no task was started twice either, as is promised unless a worker dies.
        """
        began, ended = traffic.samples[0].start, max(sample.end for sample in traffic.samples)
        # The traffic may go on meanwhile: what is sent from now on does not count.
        sent = list(traffic.sent)
        ledger = verdict.settle(self.ledger, sent, SETTLE_SECONDS).since(began)
        verdict.none_lost(sent, ledger)
        verdict.each_effect_once(sent, ledger)
        verdict.no_tick_twice(ledger)
        verdict.ticks_kept_time(ledger, bound, (began, ended))
        if once:
            verdict.none_ran_twice(ledger, {one.id for one in sent})
        return ledger

    def assert_zero_downtime(
        self, traffic: Traffic, releases: Sequence[str], *, nginx_reloads: bool = False, **options: Any
    ) -> None:
        """Assert that no request failed, that only these releases answered, and that no task was lost.

        With `nginx_reloads` requests may be sent again: a reload closes idle connections, and one of them may just have
        been chosen for a request.
        """
        verdict.no_request_failed(traffic.samples)
        if not nginx_reloads:
            verdict.no_connection_was_cut(traffic.samples)
        # A machine with two busy cores pauses for a second or two now and then.
        verdict.loop_was_open(traffic.samples, bound=3)
        verdict.only_these_answered(traffic.samples, releases)
        self.assert_no_task_lost(traffic, **options)


def column(name: str) -> str:
    """Return a change for `version`: a column with a new name, and its migration."""
    return f"column={name}_{uuid.uuid4().hex[:6]}"


def between(samples: Sequence[Sample], began: float, ended: float) -> list[Sample]:
    """Return the requests that began in a span of time."""
    return [sample for sample in samples if began <= sample.start < ended]
