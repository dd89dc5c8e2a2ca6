"""Backups of one installation: an operator's commands, what is at the target, and how both are disturbed."""

from __future__ import annotations

import http.client
import json
import shlex
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from deployments import Deployments, Run
from installation import Installation, query
from probes import wait_for
from testinfra.host import Host

from hostctl.cli import BUSY

TIMERS = ("ship", "files", "database", "drill")
# Starts a command, kills the program (not what it has started) as soon as one of its children has a command line that
# matches, and prints that line. The arguments: the pattern, seconds, and the command. (A child is `setpriv` at first,
# which has it end with the program: not if that is killed before.)
KILLER = """
import glob, os, re, signal, subprocess, sys, time
pattern, seconds, *command = sys.argv[1:]
log = open('/run/killed.log', 'w')
process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
deadline = time.monotonic() + float(seconds)
while time.monotonic() < deadline and process.poll() is None:
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            parent = int(open(path).read().rpartition(')')[2].split()[1])
            line = open(path[:-4] + 'cmdline').read().replace(chr(0), ' ')
        except (OSError, IndexError):
            continue
        if parent == process.pid and re.search(pattern, line) and not line.startswith('setpriv '):
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(line)
            sys.exit(0)
    time.sleep(0.005)
sys.exit('%s: no child matches %s\\n%s' % (process.poll(), pattern, open('/run/killed.log').read()))
"""


@dataclass
class Done:
    """A command that has ended, and what it has printed."""

    words: Sequence[str]
    status: int
    output: str

    def succeeded(self) -> Self:
        assert self.status == 0, f"{shlex.join(self.words)} ended with {self.status}:\n{self.output}"
        return self

    def failed(self) -> Self:
        assert self.status != 0, f"{shlex.join(self.words)} ended with 0 and should not:\n{self.output}"
        assert "Traceback" not in self.output, self.output
        return self

    def says(self, *texts: str) -> Self:
        assert all(text in self.output for text in texts), f"{texts} are not in:\n{self.output}"
        return self


@dataclass
class Backups:
    """`host` is backed up, `storage` has its target."""

    host: Host
    app: Installation
    storage: Host
    deployments: Deployments
    # Rows of the table that the tests write.
    written: list[str] = field(default_factory=list)

    # -- an operator's commands

    def run(self, *words: str) -> Done:
        """Run `APPctl backup WORDS` without a terminal.

        A copy waits for that of the timer for five seconds only, and on a busy host that one takes longer.
        """
        command = [f"{self.app.name}ctl", "backup", *words]
        found = wait_for(
            lambda: self.host.run(f"{shlex.join(command)} </dev/null"),
            180,
            "another run has ended",
            lambda seen: seen.rc != BUSY,
        )
        return Done(command, found.rc, found.stdout + found.stderr)

    def start(self, *words: str) -> Run:
        return self.deployments.control("backup", *words)

    def list(self) -> dict[str, Any]:
        return json.loads(self.run("list", "--json").succeeded().output)

    def notes(self) -> str:
        """Return what `status` says of the backups."""
        return "\n".join(self.deployments.status()["backup"])

    def state(self, name: str) -> dict[str, Any]:
        """Return what the last run of a kind has written."""
        text = self.host.run(f"cat /var/lib/{self.app.name}-backup/{name}.json").stdout
        return json.loads(text) if text else {}

    def edit_state(self, name: str, **values: Any) -> None:
        """Change what the last run of a kind has written."""
        text = json.dumps(self.state(name) | values)
        self.host.check_output(f"printf %s {shlex.quote(text)} >/var/lib/{self.app.name}-backup/{name}.json")

    def kill(self, pattern: str, *words: str, seconds: int = 60) -> str:
        """Run `APPctl backup WORDS`, and kill it while a program that it has started matches; return its command."""
        command = ["python3", "-c", KILLER, pattern, str(seconds), f"{self.app.name}ctl", "backup", *words]
        return self.host.check_output(shlex.join(command))

    @contextmanager
    def timers_stopped(self) -> Iterator[None]:
        """No run of a timer comes between, or is running."""
        units = [f"{self.app.name}-backup-{name}" for name in TIMERS]
        self.host.check_output("systemctl stop " + " ".join(f"{unit}.timer" for unit in units))
        self.host.check_output("systemctl stop " + " ".join(f"{unit}.service" for unit in units))
        try:
            yield
        finally:
            # Like site.yml and a boot: a timer starts its service when it should have run meanwhile.
            self.host.check_output(
                "systemctl reset-failed; systemctl start " + " ".join(f"{unit}.timer" for unit in units)
            )

    def archive_again(self) -> None:
        """Wait until segments are archived after a failure; without a signal, PostgreSQL waits for a minute."""
        self.sql("SELECT pg_reload_conf()")
        wait_for(lambda: self.run("ship"), 90, "segments are archived again", lambda seen: seen.status == 0)

    # -- data

    def write(self, word: str = "") -> str:
        """Write a row, and return the word in it."""
        word = word or f"word{uuid.uuid4().hex}"
        self.sql(
            f"CREATE TABLE IF NOT EXISTS public.written (word text, at timestamptz DEFAULT clock_timestamp()); "
            f"INSERT INTO public.written VALUES ('{word}')"
        )
        self.written.append(word)
        return word

    def words(self) -> list[str]:
        """Return the words of all rows, in their order."""
        return self.sql("SELECT word FROM public.written ORDER BY at").split()

    def sql(self, statement: str) -> str:
        return query(self.host, self.app, statement)

    def now(self) -> str:
        """Return the host's time, as `restore --at` takes it."""
        return datetime.now(UTC).isoformat()

    # -- what is where

    def rclone(self, command: str) -> str:
        """Run rclone on the host with the credentials of the backups; REMOTE in the command is the target."""
        folder = self.configuration()["folder"]
        options = "--config=/dev/null --ca-cert=/etc/ssl/certs/ca-certificates.crt"
        script = f"set -a; . /etc/{self.app.name}/backup.env; rclone {options} {command}"
        return self.host.check_output(script.replace("REMOTE", f"offsite:{folder}"))

    def configuration(self) -> dict[str, Any]:
        return json.loads(self.host.check_output(f"cat /etc/{self.app.name}/backup.json"))

    def at_target(self, part: str = "") -> set[str]:
        """Return the files at the target, below a folder."""
        return set(self.rclone(f"lsf --recursive --files-only REMOTE/{part}").split("\n")) - {""}

    def in_repository(self, part: str = "") -> set[str]:
        """Return the files in the repository of the host, below a folder."""
        return set(
            self.host.check_output(f"cd /var/lib/pgbackrest/{part} && find . -type f -printf '%P\\n'").split("\n")
        )

    def shipped(self) -> dict[str, Any]:
        """Return what the target says of itself.

        Over SFTP a record is written in place: as long as it is not whole, its copy counts, as it does for a restore.
        """
        with suppress(AssertionError, json.JSONDecodeError):
            return json.loads(self.rclone("cat REMOTE/shipped.json"))
        return json.loads(self.rclone("cat REMOTE/shipped.json.copy"))

    def wait_shipped(self, moment: float, seconds: int = 60) -> dict[str, Any]:
        """Wait until the target has everything up to a moment."""
        return wait_for(self.shipped, seconds, "the target is newer", lambda seen: seen["seconds"] >= moment, pause=1)

    def server_process(self) -> str:
        """Return PostgreSQL's main process, which is another one after a restart."""
        return self.host.check_output("systemctl show --property=MainPID,ExecMainStartTimestamp 'postgresql@*'")

    @contextmanager
    def damaged(self, path: str, how: str, host: Host | None = None) -> Iterator[None]:
        """Damage a file of the host as long as this lasts: `how` is a command, with FILE for the file."""
        host, keep = host or self.host, f"/var/lib/kept-{uuid.uuid4().hex}"
        host.check_output(f"cp --archive {path} {keep}")
        try:
            host.check_output(how.replace("FILE", path))
            yield
        finally:
            # The folder may be another one by now.
            host.check_output(f"cp --archive {keep} {path}; rm {keep}")


DELETE = "rm FILE"
TRUNCATE = "truncate --size=-100 FILE"
# The bits of a byte in the middle.
FLIP_SCRIPT = """
import sys
with open(sys.argv[1], "r+b") as file:
    middle = file.seek(0, 2) // 2
    file.seek(middle)
    byte = file.read(1)[0]
    file.seek(middle)
    file.write(bytes([byte ^ 255]))
"""
FLIP = f"python3 -c {shlex.quote(FLIP_SCRIPT)} FILE"


class Orders:
    """A customer who orders once a second; `paths` are the orders that the site has accepted, with their times."""

    def __init__(self, backups: Backups, visitor: Any, pause: float = 1.0) -> None:
        self.visitor, self.pause = visitor, pause
        self.accepted: list[tuple[float, str]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep_ordering)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def keep_ordering(self) -> None:
        while not self.over.wait(self.pause):
            try:
                path = self.visitor.order()
            except (OSError, AssertionError, http.client.HTTPException):  # The host is gone.
                continue
            self.accepted.append((time.time(), path))
