#!/usr/bin/env python3
"""Make sure this machine has what the tests and the demo need.

Missing packages are installed with apt if this user may (root or sudo); otherwise
the message says what to type. Uses the standard library only: it runs before the
virtual environment exists.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".testhosts"
DOCKERD_LOG = Path("/var/log/seedbed-dockerd.log")
ENGINE_SECONDS = 30
# Where cgroups are version 1, all containers together weigh as much as one process of this machine: test hosts get too
# little time beside the tests. Docker keeps the weight of a cgroup that exists.
PREFER_CONTAINERS = """
if [ -d /sys/fs/cgroup/cpu/docker ] || mkdir /sys/fs/cgroup/cpu/docker 2>/dev/null; then
    echo 4096 >/sys/fs/cgroup/cpu/docker/cpu.shares
fi
"""


class SetupError(Exception):
    """Something that only the user can fix; the message says how."""


def say(text: str) -> None:
    """Print one line of progress without buffering."""
    print(text, flush=True)


@contextmanager
def timed(text: str) -> Iterator[None]:
    """Print what begins and, when it ends, how many seconds it took."""
    say(f"{text} ...")
    start = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - start:.1f} s.")


@contextmanager
def only_one(name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock `name` (.testhosts/NAME.lock); with `shared`, together with others that share it."""
    STATE.mkdir(exist_ok=True)
    with (STATE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def run(command: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a command and return its output. Raises SetupError with its output if it fails."""
    result = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise SetupError(f"This command failed: {' '.join(command)}\n{result.stdout.strip()}")
    return result.stdout.strip()


def succeeds(command: Sequence[str]) -> bool:
    """Return whether the command exists and exits with 0."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def as_root() -> list[str] | None:
    """Return the prefix for a command that needs root; None if this user may not use root."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo"] if sys.stdin.isatty() else ["sudo", "--non-interactive"]
    return sudo if succeeds([*sudo, "true"]) else None


def ensure_packages(packages: Sequence[str], reason: str) -> None:
    """Install Debian packages. Raises SetupError with the command to type if this user may not."""
    root = as_root()
    if root is None or shutil.which("apt-get") is None:
        raise SetupError(
            f"{reason}, and this user may not install it. As root, type:\n"
            f"    apt-get update && apt-get install {' '.join(packages)}"
        )
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    with only_one("apt"), timed(f"{reason}: installing {' '.join(packages)}"):
        run([*apt, "update"])
        run([*apt, "install", "--yes", "--no-install-recommends", *packages])


def ensure_venv() -> None:
    """Install what `.venv` and Ansible need: Python with venv, git, an SSH client."""
    if sys.version_info < (3, 11):  # noqa: UP036 (any Python may run this)
        raise SetupError(
            f"Python 3.11 or later is needed; {sys.executable} is {sys.version.split()[0]}.\n"
            "Choose another: make PYTHON=/usr/bin/python3.12 ..."
        )
    missing = [
        package
        for package, present in {
            "python3-venv": find_spec("ensurepip") is not None,
            "git": shutil.which("git") is not None,
            "openssh-client": shutil.which("ssh") is not None,
        }.items()
        if not present
    ]
    if missing:
        ensure_packages(missing, "Ansible's environment needs a few tools")


def ensure_browser() -> None:
    """Install Chromium for the browser tests."""
    # A scenario begins to install it beside its first steps: the tests wait here until it is complete.
    with only_one("browser"):
        if shutil.which("chromium") is None:
            ensure_packages(["chromium"], "The browser tests need Chromium")


def docker() -> list[str] | None:
    """Return the command prefix that reaches a container engine; None if no engine answers."""
    for words in (["docker"], ["sudo", "--non-interactive", "docker"]):
        if succeeds([*words, "version"]):
            return words
    return None


def ensure_engine() -> list[str]:
    """Install and start Docker's engine if none answers; return the command prefix that reaches it."""
    with only_one("engine"):
        if words := docker():
            return words
        if shutil.which("dockerd") is None:
            ensure_packages(docker_packages(), "Test hosts need a container engine")
        root = as_root()
        if root is None:
            raise SetupError(
                "No container engine answers, and this user may not start one. As root, type:\n"
                f"    systemctl start docker && usermod --append --groups docker {getpass.getuser()}\n"
                "and log in again."
            )
        start_engine(root)
        if words := docker():
            return words
        raise SetupError("The container engine runs, but `docker version` fails. Run it by hand to see why.")


def docker_packages() -> list[str]:
    """Return the packages of Debian's engine; from Debian 13 on its client is a separate package."""
    client = succeeds(["apt-cache", "show", "docker-cli"])
    return ["docker.io", "docker-cli"] if client else ["docker.io"]


def start_engine(root: list[str]) -> None:
    """Start the engine with systemd, or directly on a machine that runs without systemd."""
    with timed("Starting the container engine"):
        if Path("/run/systemd/system").is_dir():
            run([*root, "systemctl", "start", "docker"])
            log = [*root, "journalctl", "--unit", "docker", "--lines", "10"]
        else:
            run([*root, "sh", "-c", PREFER_CONTAINERS])
            run([*root, "sh", "-c", f"exec setsid dockerd </dev/null >{DOCKERD_LOG} 2>&1 &"])
            log = [*root, "tail", str(DOCKERD_LOG)]
        deadline = time.monotonic() + ENGINE_SECONDS
        while not succeeds([*root, "docker", "version"]):
            if time.monotonic() > deadline:
                raise SetupError(f"No engine answers after {ENGINE_SECONDS} s. Its log:\n{run(log)}")
            time.sleep(0.5)


NEEDS = {"venv": ensure_venv, "engine": ensure_engine, "browser": ensure_browser}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("need", nargs="+", choices=NEEDS)
    for need in parser.parse_args().need:
        NEEDS[need]()


def exit_with_instructions(entry: Callable[[], None]) -> None:
    """Run `entry`; print a SetupError's message and exit with 1."""
    try:
        entry()
    except SetupError as problem:
        sys.exit(f"\n{problem}")


if __name__ == "__main__":
    exit_with_instructions(main)
