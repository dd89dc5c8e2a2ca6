"""The application's processes: gunicorn, Celery workers, their memory and sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .access import address_problem
from .application import DOTTED
from .problems import Installation, Problem, quoted

# Its default is computed from the host's facts, which are not gathered yet.
NEEDS_FACTS = "app_memory_mb"

# The beginning of a path as nginx takes it, longer than "/", and those that nginx serves itself.
PATH_PREFIX = r"/[\w./~@+-]+"
OTHER_PATHS = ("/static/", "/media/", "/flower/", "/_private/", "/.well-known/acme-challenge/")
STATUS_PATH = r"(/[A-Za-z0-9_-]+)+/"
LONGEST_REQUEST = 86400

DATABASE_LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
DURATION = r"0|\d+(ms|s|min|h)"

WORKER = "[a-z][a-z0-9_]*"
# As in hostctl/deploy/queues.py.
QUEUE = r"[\w.:/+-]+"


def check_web(here: Installation) -> Iterator[Problem]:
    web, asgi = here.values["app_web"], here.values["app_asgi_app"]
    for name, least in {"processes": 1, "threads": 1, "memory_mb": 64, "stop_timeout": 0}.items():
        if int(web.get(name, least)) < least:
            yield Problem("app_web", f"must be at least {least}; it is {web[name]}.", part=f".{name}")
    if web.get("worker") == "asgi" and not asgi:
        yield Problem("app_web", "is asgi: set app_asgi_app, too, such as config.asgi:application.", part=".worker")
    if asgi and not re.fullmatch(rf"{DOTTED}:{DOTTED}", asgi):
        yield Problem(
            "app_asgi_app", f"must be MODULE:CALLABLE, such as config.asgi:application; it is {quoted(asgi)}."
        )


def check_requests(here: Installation) -> Iterator[Problem]:
    limit = int(here.values["app_request_timeout"])
    taken = OTHER_PATHS + ((here.values["app_status_path"],) if here.values["app_monitoring"] else ())
    if not 1 <= limit <= LONGEST_REQUEST:
        yield Problem("app_request_timeout", f"must be seconds from 1 to {LONGEST_REQUEST}; it is {limit}.")
    for path, seconds in here.values["app_long_requests"].items():
        if not re.fullmatch(PATH_PREFIX, str(path)) or str(path).startswith(taken):
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


def check_health_path(here: Installation) -> Iterator[Problem]:
    path = here.values["app_health_path"]
    if path and here.values["app_monitoring"] and f"{path}/".startswith(here.values["app_status_path"]):
        yield Problem(
            "app_health_path",
            f"is {path}, where nginx serves the status page. Use another path, or set app_status_path.",
        )


def check_status_path(here: Installation) -> Iterator[Problem]:
    path = here.values["app_status_path"]
    if not re.fullmatch(STATUS_PATH, path) or path.startswith(OTHER_PATHS):
        yield Problem(
            "app_status_path",
            f"must match ^{STATUS_PATH}$, such as /status/, and not begin with {', '.join(OTHER_PATHS)}; "
            f"it is {quoted(path)}.",
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
    without = [worker["name"] for worker in workers if "queues" not in worker]
    if len(without) > 1:
        yield Problem(
            "app_workers",
            f"has {len(without)} workers without queues ({', '.join(without)}); only one may consume the rest.",
        )
    for worker in workers:
        for part, sentence in worker_problems(worker):
            yield Problem("app_workers", sentence, part=f".{worker['name']}{part}")


def worker_problems(worker: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(WORKER, worker["name"]):
        yield "", f"is not a valid name: it must match ^{WORKER}$."
    queues = worker.get("queues", [])
    if "queues" in worker and not queues:
        yield ".queues", "is empty; leave it out for a worker that consumes every queue that no other worker does."
    for queue in queues:
        if not re.fullmatch(QUEUE, queue, re.ASCII):
            yield ".queues", f"contains {quoted(queue)}; a queue must match ^{QUEUE}$."
    for number, least in {"concurrency": 1, "stop_timeout": 0, "memory_mb": 64}.items():
        if int(worker.get(number, least)) < least:
            yield f".{number}", f"must be at least {least}; it is {worker[number]}."


def check_external_queues(here: Installation) -> Iterator[Problem]:
    consumed = {queue for worker in here.values["app_workers"] for queue in worker.get("queues", [])}
    for queue in here.values["app_external_queues"]:
        if queue in consumed:
            yield Problem(
                "app_external_queues",
                f"contains {quoted(queue)}, which a worker of app_workers consumes; remove it here.",
            )


def check_database_limits(here: Installation) -> Iterator[Problem]:
    for kind, limits in here.values["app_database_limits"].items():
        for name, value in limits.items():
            if name not in DATABASE_LIMITS:
                sentence = f"is not a limit; valid are {', '.join(DATABASE_LIMITS)}."
            elif not re.fullmatch(DURATION, str(value)):
                sentence = f"must be 0 or a time such as 90s or 15min; it is {quoted(value)}."
            else:
                continue
            yield Problem("app_database_limits", sentence, part=f".{kind}.{name}")
    if here.values["app_database_limits"] and "PGOPTIONS" in here.values["app_environment"]:
        yield Problem("app_database_limits", "is passed as PGOPTIONS, which app_environment sets, too: remove one.")


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
