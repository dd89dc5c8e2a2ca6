"""Compare the queues that the application publishes to with those that workers consume."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import ReleaseError, Settings, say

if TYPE_CHECKING:
    from .deployment import Deployment

# In the process definitions that Ansible wrote: the queues of the worker without `queues`.
PLACEHOLDER = "@QUEUES@"
# As in plugins/plugin_utils/preflight/processes.py: what systemd and Supervisor take as it is on a command line.
QUEUE = r"[\w.:/+-]+"
# How many senders of a queue a message names.
NAMED = 3


def check_queues(deployment: Deployment) -> None:
    """Give the worker without `queues` every queue that no other worker consumes; refuse a queue without a worker.

    The result is recorded with the release. Raises ReleaseError, with the line to write.
    """
    settings = deployment.settings
    if not settings.celery_app or not settings.workers:
        return
    folder = str(deployment.host.path(deployment.release))
    arguments = (settings.celery_app, settings.beat_scheduler, settings.has_beat, folder)
    found = deployment.application.ask("queues", *arguments)
    for warning in found["warnings"]:
        deployment.warn(warning)
    settings = with_queues_of_processes(deployment, found)
    known = {*settings.queues, *settings.external_queues}
    left = {queue: senders for queue, senders in found["queues"].items() if queue not in known}
    if any(not worker.queues for worker in settings.workers):
        rest = sorted({*left, *usable(deployment, found["in_code"]), found["default"]} - known)
        deployment.use(resolve(settings, deployment.release, rest))
        say(f"Queues of the worker without `queues` in app_workers: {', '.join(rest)}.")
    elif left:
        raise ReleaseError(refusal(settings, left))
    warn_of_others(deployment, found)


def with_queues_of_processes(deployment: Deployment, found: dict[str, Any]) -> Settings:
    """Add what a Celery worker of app_processes without -Q consumes to the queues that need no other worker."""
    settings = deployment.settings
    if not settings.process_without_queues:
        return settings
    consumed = [queue for queue in found["without_option"] if queue not in settings.queues]
    deployment.use(replace(settings, external_queues=list(dict.fromkeys([*settings.external_queues, *consumed]))))
    deployment.settings.record(deployment.release)
    return deployment.settings


def usable(deployment: Deployment, queues: dict[str, list[str]]) -> list[str]:
    """Return the queues that only calls name and that a worker can consume; warn of the others.

    A call such as `.set(queue=...)` may be one of something else: its name does not fail a deployment.
    """
    for queue, places in queues.items():
        if not is_valid(queue):
            deployment.warn(
                f"The queue {queue!r} ({senders(places)}) cannot be given to a worker: its name must match ^{QUEUE}$. "
                "If tasks are sent there, rename it."
            )
    return [queue for queue in queues if is_valid(queue)]


def is_valid(queue: str) -> bool:
    return bool(re.fullmatch(QUEUE, queue, re.ASCII))


def warn_of_others(deployment: Deployment, found: dict[str, Any]) -> None:
    """Warn of queues that something may be sent to, but nothing that is known is."""
    settings = deployment.settings
    known = {*settings.queues, *settings.external_queues}
    if found["default"] not in known:
        deployment.warn(
            f"No worker consumes the queue {found['default']} (task_default_queue), where Celery sends tasks without a "
            "route. No task that is known goes there."
        )
    for queue, places in found["in_code"].items():
        if queue not in known and is_valid(queue):
            deployment.warn(
                f"No worker consumes the queue {queue} ({senders(places)}): what is sent there never runs. Add it to "
                "the `queues` of a worker in app_workers, or to app_external_queues."
            )
    for queue in sorted(set(found["broadcast"]) - known):
        deployment.warn(
            f"No worker consumes the broadcast queue {queue}: its messages get lost. Add it to the `queues` of a "
            "worker in app_workers, or to app_external_queues."
        )


def resolve(settings: Settings, release: str, rest: list[str]) -> Settings:
    """Return the settings with these queues for the worker without any, and write them to the release's configuration.

    Raises ReleaseError when nothing is left for it, or when a name cannot be on a command line.
    """
    name = next(worker.name for worker in settings.workers if not worker.queues)
    if not rest:
        raise ReleaseError(
            f"the worker {name} of app_workers has no `queues`, so it would consume those that no other worker does, "
            "and there are none. Remove it, or name its queues."
        )
    for queue in rest:
        if not is_valid(queue):
            raise ReleaseError(
                f"the queue {queue!r} cannot be given to a worker: its name must match ^{QUEUE}$. Rename it."
            )
    workers = [worker if worker.queues else replace(worker, queues=rest) for worker in settings.workers]
    resolved = replace(settings, workers=workers, queues=sorted({*settings.queues, *rest}))
    for file in definitions(settings.configuration(release)):
        file.write_text(file.read_text().replace(PLACEHOLDER, ",".join(rest)))
    resolved.record(release)
    return resolved


def definitions(configuration: Path) -> list[Path]:
    """Return the process definitions of a release that name a worker's queues."""
    files = [*configuration.glob("systemd/*-worker-*.service"), configuration / "supervisor/release.conf"]
    return [file for file in files if file.exists() and PLACEHOLDER in file.read_text()]


def refusal(settings: Settings, left: dict[str, list[str]]) -> str:
    """Return what is wrong with queues that no worker consumes, and what to write."""
    names = {worker.name for worker in settings.workers}
    name = next(name for name in ("main", "more", *(f"more{number}" for number in range(2, 99))) if name not in names)
    queues = ", ".join(sorted(left))
    what = "; ".join(f"{queue} ({senders(left[queue])})" for queue in sorted(left))
    return (
        f"no worker consumes these queues, so what is sent there would never run: {what}. Add a worker to app_workers "
        f"in group_vars/ENV/app.yml:\n  - {{name: {name}, queues: [{queues}], pool: prefork, concurrency: 1}}\n"
        "A worker without `queues` consumes every queue that no other worker does. If workers elsewhere consume them:\n"
        f"app_external_queues: [{', '.join([*settings.external_queues, queues])}]"
    )


def senders(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
