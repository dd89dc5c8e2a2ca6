"""A PostgreSQL on restored files that no client can connect to: it recovers up to a target, and stays there.

It archives nothing and writes no new timeline, so that what turns out to be wrong leaves no trace in the backups.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from ..settings import ReleaseError, tail
from . import history
from .configuration import Configuration
from .server import Server
from .tools import ACCOUNT, Repository, call, tied

# Of the server that the files are of; recovery stops when one is lower.
CONTROLLED = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
# Seconds without progress of the recovery after which it has failed.
STALLED_SECONDS = 600
RESTORED = re.compile(r'restored log file "([0-9A-F]{24})"')
WRONG = re.compile(r"FATAL|PANIC|ERROR|WARN|HINT|invalid|incorrect")
PRELOADED = re.compile(r"^\s*shared_preload_libraries\s*=\s*'([^']*)'", re.MULTILINE)


class Scratch:
    """PostgreSQL on the files in `data`; its socket, settings and log are in `folder`."""

    def __init__(self, configuration: Configuration, data: Path, folder: Path, *, lasting: bool) -> None:
        self.configuration = configuration
        self.data, self.folder = data, folder
        # Without it, nothing is forced to disk: the files are removed afterwards.
        self.lasting = lasting
        self.server = Server(configuration, folder, 5432)
        self.log = folder / "log"

    def restore(self, repository: Repository, label: str, target: list[str]) -> None:
        """Fill `data` with a base backup; recovery to `target` (options of pgBackRest) comes with `start`."""
        own_folder(self.folder)
        own_folder(self.data)
        options = [f"--set={label}", f"--pg1-path={self.data}", "--target-action=pause", "--process-max=2", *target]
        repository.call("restore", *options, "--log-level-console=warn", seconds=24 * 3600)

    def start(self) -> None:
        """Recover to the target, and stay there. Raises ReleaseError with the cause when it is not reached."""
        (self.folder / "hba").write_text("local all postgres peer\n")
        (self.folder / "ident").write_text("")
        (self.folder / "settings").write_text(
            "".join(f"{name} = '{value}'\n" for name, value in self.settings().items())
        )
        self.log.unlink(missing_ok=True)
        postgres = str(self.configuration.programs / "postgres")
        # A fast shutdown when this program is killed.
        command = tied([postgres, "-D", str(self.data), "-c", f"config_file={self.folder}/settings"], "INT")
        account = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, umask=0o077, **account,
            )  # fmt: skip
        try:
            self.wait_paused()
        except BaseException:
            self.stop()
            raise

    def settings(self) -> dict[str, str]:
        found = call([str(self.configuration.programs / "pg_controldata"), str(self.data)], seconds=30, user=ACCOUNT)
        values = dict(re.findall(r"^([^:]+):\s*(.*)$", found, re.MULTILINE))
        self.segment_bytes = int(values["Bytes per WAL segment"])
        controlled = {name: values[label] for label, name in CONTROLLED.items() if label in values}
        etc = Path(f"/etc/postgresql/{self.configuration.version}/main")
        preloaded = [
            PRELOADED.findall(file.read_text())
            for file in [etc / "postgresql.conf", *sorted(etc.glob("conf.d/*.conf"))]
            if file.exists()
        ]
        libraries = [value for values in preloaded for value in values][-1:]
        return controlled | {
            "hba_file": f"{self.folder}/hba", "ident_file": f"{self.folder}/ident",
            "listen_addresses": "", "unix_socket_directories": str(self.folder), "port": "5432", "hot_standby": "on",
            "archive_mode": "off", "shared_buffers": "16MB", "max_parallel_workers": "0", "jit": "off",
            "autovacuum": "off", "log_line_prefix": "%t ", "ssl": "off", "fsync": "on" if self.lasting else "off",
        } | ({"shared_preload_libraries": libraries[0]} if libraries else {})  # fmt: skip

    def wait_paused(self) -> None:
        """Wait until recovery has reached its target. Raises ReleaseError when the server ends before, or stalls."""
        position, changed = "", time.monotonic()
        while True:
            if self.process.poll() is not None:
                raise ReleaseError(f"PostgreSQL did not recover to the target. {self.place()}\n{self.errors()}")
            try:
                state, replayed = self.server.run(
                    "SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn()"
                ).split("|")
            except ReleaseError:
                state, replayed = "", self.errors(1)
            if state == "paused":
                return
            if replayed != position:
                position, changed = replayed, time.monotonic()
            if time.monotonic() - changed > STALLED_SECONDS:
                raise ReleaseError(f"The recovery has made no progress for {STALLED_SECONDS} s:\n{self.errors()}")
            time.sleep(0.2)

    def place(self) -> str:
        """Return where the recovery has ended, "" when it read nothing."""
        read = RESTORED.findall(self.log.read_text(errors="replace"))
        if not read:
            return ""
        following = history.following(read[-1], self.segment_bytes)
        return f"The segment {read[-1]} is damaged, or {following} is missing or damaged."

    def errors(self, lines: int = 8) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        wrong = [line for line in text.splitlines() if WRONG.search(line) and "is starting up" not in line]
        return "\n".join(wrong[-lines:]) or tail(text, lines)

    def stop(self) -> None:
        """End the server, which keeps its files consistent."""
        if self.process.poll() is None:
            self.process.send_signal(2)  # SIGINT: a fast shutdown.
            try:
                self.process.wait(300)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def own_folder(folder: Path) -> None:
    """Create a folder that only PostgreSQL's user can read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT, ACCOUNT)


def clear(folder: Path, seconds: float = 30) -> None:
    """Remove a folder, in which programs of a run that was killed may still be ending. Raises ReleaseError."""
    deadline = time.monotonic() + seconds
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        if time.monotonic() > deadline:
            raise ReleaseError(f"{folder} cannot be removed: is a file in it in use, or a file system mounted?")
        time.sleep(0.2)
