"""The application's processes: gunicorn, Celery workers, their memory and sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .access import address_problem
from .problems import Installation, Problem, quoted

# Its default is computed from the host's facts, which are not gathered yet.
NEEDS_FACTS = "app_memory_mb"

# The beginning of a path as nginx takes it, longer than "/", and those that nginx serves itself.
PATH_PREFIX = r"/[\w./~@+-]+"
OTHER_PATHS = ("/static/", "/media/", "/flower/", "/.well-known/acme-challenge/")
LONGEST_REQUEST = 86400

WORKER = "[a-z][a-z0-9_]*"
QUEUE = r"[\w.-]+"


def check_web(here: Installation) -> Iterator[Problem]:
    for name, value in here.values["app_web"].items():
        least = 64 if name == "memory_mb" else 1
        if int(value) < least:
            yield Problem("app_web", f"must be at least {least}; it is {value}.", part=f".{name}")


def check_requests(here: Installation) -> Iterator[Problem]:
    limit = int(here.values["app_request_timeout"])
    if not 1 <= limit <= LONGEST_REQUEST:
        yield Problem("app_request_timeout", f"must be seconds from 1 to {LONGEST_REQUEST}; it is {limit}.")
    for path, seconds in here.values["app_long_requests"].items():
        if not re.fullmatch(PATH_PREFIX, str(path)) or str(path).startswith(OTHER_PATHS):
            yield Problem(
                "app_long_requests",
                f"contains {quoted(str(path))}; write the beginning of a path of the application, such as /export/.",
            )
        elif (
            isinstance(seconds, bool)
            or not re.fullmatch(r"\d{1,5}", str(seconds))
            or not limit <= int(seconds) <= LONGEST_REQUEST
        ):
            yield Problem(
                "app_long_requests",
                f"must be seconds from app_request_timeout, {limit}, to {LONGEST_REQUEST}; it is {seconds}.",
                part=f".{path}",
            )


def check_memory(here: Installation) -> Iterator[Problem]:
    if int(here.values[NEEDS_FACTS]) < 256:
        yield Problem(NEEDS_FACTS, f"must be at least 256 (MiB); it is {here.values[NEEDS_FACTS]}.")


def check_workers(here: Installation) -> Iterator[Problem]:
    workers = here.values["app_workers"]
    names = [worker["name"] for worker in workers]
    if not workers:
        yield Problem("app_workers", "must list at least one worker; it is empty.")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("app_workers", f"has more than one worker named {name}; names must be unique.")
    for worker in workers:
        for part, sentence in worker_problems(worker):
            yield Problem("app_workers", sentence, part=f".{worker['name']}{part}")


def worker_problems(worker: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(WORKER, worker["name"]):
        yield "", f"is not a valid name: it must match ^{WORKER}$."
    if not worker["queues"]:
        yield ".queues", "is empty, so this worker would never receive a task."
    for queue in worker["queues"]:
        if not re.fullmatch(QUEUE, queue, re.ASCII):
            yield ".queues", f"contains {quoted(queue)}; a queue must match ^{QUEUE}$."
    for number, least in {"concurrency": 1, "stop_timeout": 0, "memory_mb": 64}.items():
        if int(worker.get(number, least)) < least:
            yield f".{number}", f"must be at least {least}; it is {worker[number]}."


def check_sandbox(here: Installation) -> Iterator[Problem]:
    sandbox = here.values["app_sandbox"]
    for path in sandbox.get("read_write_paths", []):
        if not re.fullmatch(r"/[\w./-]+", path, re.ASCII) or ".." in path.split("/"):
            yield Problem("app_sandbox", f"contains {quoted(path)}; write an absolute path.", part=".read_write_paths")
    for address in sandbox.get("egress_allow", []):
        if sentence := address_problem(address):
            yield Problem("app_sandbox", f"contains {quoted(address)}; {sentence}", part=".egress_allow")
    if sandbox.get("egress_allow") and here.values["app_process_manager"] != "systemd":
        yield Problem(
            "app_sandbox",
            "needs systemd, which has a sandbox for each process. Set it to [], or app_process_manager to systemd.",
            part=".egress_allow",
        )
