"""Further commands of the application: long-running ones, and those on a timer."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from .problems import Installation, Problem, quoted

NAME = "[a-z][a-z0-9_]*"
# Names of processes that each installation has: `logs NAME` shows theirs.
TAKEN = {"web", "worker", "beat", "flower"}
# Options of gunicorn and uvicorn, also in a command in quotes (sh -c '...').
RELOAD = re.compile(r"""(?<![^\s'"])--reload(-engine|-extra-file)?(?![^\s'"=])""")
RELOAD_REFUSED = "contains --reload, which is for development: it replaces processes while they serve. Remove it."


def check_processes(here: Installation) -> Iterator[Problem]:
    workers = [worker["name"] for worker in here.values["app_workers"]]
    yield from name_problems("app_processes", here.values["app_processes"], workers)
    for process in here.values["app_processes"]:
        for part, sentence in process_problems(process, here):
            yield Problem("app_processes", sentence, part=f".{process['name']}{part}")


def check_cron(here: Installation) -> Iterator[Problem]:
    yield from name_problems("app_cron", here.values["app_cron"], [])
    for entry in here.values["app_cron"]:
        for part, sentence in cron_problems(entry):
            yield Problem("app_cron", sentence, part=f".{entry['name']}{part}")


def cron_problems(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if sentence := command_problem(entry["command"]):
        yield ".command", sentence
    if not is_schedule(entry["schedule"]):
        yield (
            ".schedule",
            f'must be a time as systemd has it, such as daily, "Mon *-*-* 04:00" or "*:0/15"; it is '
            f"{quoted(entry['schedule'])}. Try: systemd-analyze calendar {shlex.quote(entry['schedule'])}",
        )
    for number, least in {"timeout": 1, "memory_mb": 64}.items():
        if int(entry.get(number, least)) < least:
            yield f".{number}", f"must be at least {least}; it is {entry[number]}."


def is_schedule(text: str) -> bool:
    """Return whether systemd can read a schedule. Where this machine has no systemd, the host decides."""
    if not re.fullmatch(r"[\w*,.:/~ +-]+", text):
        return False
    program = shutil.which("systemd-analyze")
    return not program or subprocess.run([program, "calendar", text], capture_output=True, check=False).returncode == 0


def name_problems(setting: str, entries: list[Mapping[str, Any]], workers: list[str]) -> Iterator[Problem]:
    names = [entry["name"] for entry in entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(setting, f"has more than one entry named {name}; names must be unique.")
    for name in dict.fromkeys(names):
        if not re.fullmatch(NAME, name):
            yield Problem(setting, f"is not a valid name: it must match ^{NAME}$.", part=f".{name}")
        elif name in TAKEN or name in workers:
            yield Problem(setting, "has the name of a worker or of another process. Choose another.", part=f".{name}")


def process_problems(process: Mapping[str, Any], here: Installation) -> Iterator[tuple[str, str]]:
    if sentence := command_problem(process["command"]):
        yield ".command", sentence
    elif RELOAD.search(process["command"]):
        yield ".command", RELOAD_REFUSED
    for number, least in {"stop_timeout": 0, "memory_mb": 64}.items():
        if int(process.get(number, least)) < least:
            yield f".{number}", f"must be at least {least}; it is {process[number]}."
    group = process.get("group")
    if process.get("single") and group:
        yield ".group", "cannot be set beside single: true, which runs on the scheduler's host. Remove one of them."
    elif group and not here.members(group):
        yield ".group", f"is {quoted(group)}, but {here.inventory} has no host in that group."


def command_problem(command: str) -> str:
    """Return what is wrong with a command that a shell runs by `exec`, or ""."""
    if not command.strip() or re.search(r"[\n\r\0]", command):
        return "must be a command on one line."
    try:
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        first = shlex.split(command)[0]
    except (ValueError, IndexError) as error:
        return f"cannot be read by a shell ({error}): {quoted(command)}."
    if any(set(word) <= set("();<>|&") for word in words):
        return f"must be one command, without ; & | < and >: it is {quoted(command)}. Write sh -c '...' around others."
    if "=" in first:
        return f"must begin with a program; it is {quoted(command)}. Set variables by env NAME=VALUE PROGRAM."
    return ""
