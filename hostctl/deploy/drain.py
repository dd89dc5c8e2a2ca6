"""After the switch is final: beat moves, old processes finish their work and end, old releases are removed."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from ..host import release_of
from ..settings import say
from ..upgrade import OLD_REQUEUED, remove_old_files, remove_unlisted_modules
from . import archive, health
from .configuration import adopt_earlier, remove_earlier

if TYPE_CHECKING:
    from .deployment import Deployment


def restart_beat(deployment: Deployment) -> None:
    """Restart the only beat with the new release's code."""
    adopt_earlier(deployment.host, deployment.release)
    deployment.manager.mark_active(deployment.release)
    if deployment.settings.beat:
        deployment.manager.restart_beat(deployment.release)
        say("Beat restarted.")


def drain(deployment: Deployment) -> None:
    """Stop the processes of other releases; each finishes what it holds, within its own time limit."""
    host, manager = deployment.host, deployment.manager
    warn_of_memory(deployment)
    units = host.other_units(deployment.release)
    web = [unit for unit in units if host.is_web(unit)]
    workers = [unit for unit in units if unit not in web]
    empty_queues(deployment, workers)
    manager.stop(workers, wait=False)
    for unit in web:
        health.wait_until_idle(host.socket(release_of(unit)))
    manager.stop(web)
    await_end(deployment, workers)
    if workers:
        answer = deployment.application.ask("requeue_unacknowledged", deployment.settings.celery_app)
        count_tasks(deployment, workers, answer["requeued"])


def warn_of_memory(deployment: Deployment) -> None:
    """Name the processes, old and new, that the kernel has killed at their memory limit."""
    for process in deployment.manager.states():
        if process.memory_kills:
            deployment.warn(
                f"{process.unit} has reached its memory limit: the kernel has killed {process.memory_kills} of its "
                "processes. Raise memory_mb in app_workers or app_web, or lower concurrency."
            )


def empty_queues(deployment: Deployment, workers: list[str]) -> None:
    """Wait until old workers have emptied the queues that no new worker consumes, up to the longest stop_timeout."""
    settings = deployment.settings
    queues = {queue for unit in workers for queue in deployment.host.queues(unit)} - set(settings.queues)
    if not queues:
        return
    deadline = time.monotonic() + max([worker.stop_timeout for worker in settings.workers], default=300)
    while any((waiting := deployment.application.ask("depths", settings.celery_app, *sorted(queues))).values()):
        if time.monotonic() > deadline:
            for queue, number in waiting.items():
                deployment.warn(f"{number} tasks wait in the queue {queue}, which no worker consumes any more.")
            return
        time.sleep(0.5)
    say(f"Queues no longer consumed, and empty: {', '.join(sorted(queues))}.")


def await_end(deployment: Deployment, units: list[str]) -> None:
    """Wait until stopping units have ended."""
    said = time.monotonic()
    while left := sorted(set(units) & set(deployment.manager.alive())):
        if time.monotonic() - said > 10:
            say(f"Waiting for workers to finish their tasks: {', '.join(left)}.")
            # Repeated: Supervisor restarts a program that had exited just before it was told to stop.
            deployment.manager.stop(left, wait=False)
            said = time.monotonic()
        time.sleep(0.1)


def count_tasks(deployment: Deployment, workers: list[str], requeued: int) -> None:
    """Count what became of the tasks that old workers held, from the summary that each wrote at its end."""
    held, tasks = 0, deployment.tasks
    for unit in workers:
        numbers = worker_summary(deployment, unit)
        held += numbers["held"]
        for name in ("finished", "requeued"):
            tasks[name] += numbers[name]
    tasks["lost"] = max(0, held - tasks["finished"] - tasks["requeued"])
    tasks["requeued"] += requeued


def worker_summary(deployment: Deployment, unit: str) -> dict[str, int]:
    """Return how many tasks a worker held, finished and requeued at its end; warn when it left no summary."""
    host = deployment.host
    file = host.path(release_of(unit)) / "run" / f"{host.worker_name(unit)}.json"
    try:
        numbers = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        if not host.facts(release_of(unit)).get("plain_workers"):
            deployment.warn(
                f"{unit} was killed before it had finished. Its unacknowledged tasks were requeued; what it ran "
                "without acks_late is lost. If its time to stop was over, give it a longer stop_timeout."
            )
        return {"held": 0, "finished": 0, "requeued": 0}
    requeued = numbers.get("requeued", numbers.get(OLD_REQUEUED, 0))
    return {"held": numbers["held"], "finished": numbers["finished"], "requeued": requeued}


def prune(deployment: Deployment) -> None:
    """Remove old releases, archives, stale units, and files of earlier versions of this program."""
    deploys = deployment.request.action == "deploy"
    if deploys:
        # The order of releases is the order of these times.
        os.utime(deployment.host.path(deployment.release) / "build.json")
    archive.discard(deployment.host)
    remove_earlier(deployment.host)
    deployment.manager.remove_stale()
    for release in deployment.host.prune(deployment.previous if deploys else ""):
        say(f"Removed release {release}.")
    remove_old_files(deployment.settings)
    remove_unlisted_modules(deployment.settings)
