#!/usr/bin/env python3
"""Print the logs of a process from every server that has it: the last lines in the order of time, or new ones (-f).

    make logs ENV=production PROCESS=worker-heavy LINES=100
    make logs ENV=production FOLLOW=1

On each server it runs `shopctl logs`. It logs in as Ansible does, by key (playbooks/logs.yml detects user and port).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import ROOT, SetupError, exit_with_instructions

# How `shopctl logs` says that a server does not have the process, or that it has not logged yet.
ABSENT = ("There is no process", " has no log ")


@dataclass(frozen=True)
class Server:
    """A server, as playbooks/logs.yml describes it. `port` 0 and `user` "" are SSH's own choice."""

    name: str
    address: str
    user: str
    port: int
    become: bool
    password: bool
    key: str
    arguments: str
    ssh: str
    program: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `shopctl logs` with these words on the server."""
        remote = [*(["sudo", "-n"] if self.become else []), self.program, "logs", *words]
        return [
            *(self.ssh, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *shlex.split(self.arguments)),
            *(["-p", str(self.port)] if self.port else []),
            *(["-i", self.key] if self.key else []),
            *(["-l", self.user] if self.user else []),
            *(self.address, shlex.join(remote)),
        ]


def find_servers(inventory: str) -> list[Server]:
    """Return the servers of an inventory that run the application.

    Those that Ansible cannot reach are left out, with its output on stderr. Raises SetupError if none is left.
    """
    playbook = Path(sys.executable).parent / "ansible-playbook"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "connections.json"
        options = ["-i", inventory, str(ROOT / "playbooks/logs.yml"), "-e", json.dumps({"connection_file": str(file)})]
        environment = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_DISPLAY_OK_HOSTS": "false"} | os.environ
        done = subprocess.run([playbook, *options], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(done.stdout, done.stderr, file=sys.stderr)
        if not file.exists():
            raise SetupError(f"No server of {inventory} can be reached: see above.")
        servers = [Server(**found) for found in json.loads(file.read_text())]
    if names := [server.name for server in servers if server.password]:
        raise SetupError(f"Logs are read with an SSH key, and {', '.join(names)} asks for a password: ssh-copy-id.")
    return servers


def read_entries(server: Server, words: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the last lines that a process has logged on a server, and what went wrong, if something did."""
    done = subprocess.run(
        server.command("--json", *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": done.stderr.strip() or f"ssh has ended with status {done.returncode}"}
    return ([], answer["error"]) if isinstance(answer, dict) else (answer, "")


def show_last(servers: list[Server], words: Sequence[str]) -> int:
    """Print the last lines of all servers in the order of time; return 1 if a server could not be asked.

    Supervisor's log files have no time of their own: their lines come first, file by file.
    """
    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(lambda server: read_entries(server, words), servers))
    found = [(entry, server.name) for server, (entries, _) in zip(servers, answers, strict=True) for entry in entries]
    for entry, name in sorted(found, key=lambda pair: pair[0]["time"] or ""):
        print(f"{moment(entry['time'])}{name} {entry['unit']}: {entry['message']}")
    errors = {server.name: error for server, (_, error) in zip(servers, answers, strict=True) if error}
    absent = [name for name, error in errors.items() if any(text in error for text in ABSENT)]
    if len(absent) < len(servers):
        errors = {name: error for name, error in errors.items() if name not in absent}
    for name, error in errors.items():
        print(f"{name}: {error}", file=sys.stderr)
    return 1 if errors else 0


def moment(time: str | None) -> str:
    """Return the time of a line (UTC) with milliseconds and a blank; "" without one."""
    return f"{datetime.fromisoformat(time):%F %H:%M:%S.%f}"[:-3] + " " if time else ""


def follow(servers: list[Server], words: Sequence[str]) -> int:
    """Print new lines as they come, until Ctrl-C; return 1 if the connections to all servers end before."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = {
        server.name: subprocess.Popen(server.command("-f", *words), **pipes, text=True, errors="replace")
        for server in servers
    }
    for name, process in running.items():
        threading.Thread(target=forward, args=(name, process, lines), daemon=True).start()
    left = len(running)
    # A shell lets its background commands ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while left:
            line = lines.get()
            if line is None:
                left -= 1
            else:
                print(line, flush=True)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running.values():
            process.terminate()
    return 1


def forward(name: str, process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Put each line of a server into the queue, after its name; then its end, and None."""
    for line in process.stdout:
        lines.put(f"{name} {line.rstrip()}")
    lines.put(f"{name}: ended with status {process.wait()}")
    lines.put(None)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("process", nargs="?", default="", metavar="PROCESS", help="as in shopctl logs; default: all")
    parser.add_argument("-i", "--inventory", required=True)
    parser.add_argument("-n", "--lines", type=int, default=100, help="of each server; default: %(default)s")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines as they come, until Ctrl-C")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    given = parse(words)
    show = follow if given.follow else show_last
    sys.exit(show(find_servers(given.inventory), ["-n", str(given.lines), *([given.process] if given.process else [])]))


if __name__ == "__main__":
    exit_with_instructions(main)
