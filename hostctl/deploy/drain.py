"""After the switch is final: beat moves, old processes finish their work and end, old releases are removed."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from .. import beat
from ..host import release_of
from ..settings import ReleaseError, read_file, say
from ..status import moment
from ..upgrade import OLD_REQUEUED, remove_old_files, remove_unlisted_modules
from . import archive, health, static
from .configuration import adopt_earlier, forget_kept, remove_earlier

if TYPE_CHECKING:
    from .deployment import Deployment

# Seconds after which a running task is worth a line.
LONG_TASK = 10


def restart_beat(deployment: Deployment) -> None:
    """Restart the only beat with the new release's code, and what else runs once in an installation."""
    adopt_earlier(deployment.host, deployment.release)
    deployment.manager.mark_active(deployment.release)
    if deployment.settings.beat:
        beat.forget(deployment.settings)
        deployment.manager.restart_beat(deployment.release)
        beat.forget_others(deployment.settings, deployment.release)
        say("Beat restarted.")
    restart_single(deployment)
    deployment.started_after_switch = time.monotonic()
    try:
        deployment.host.cron.start(deployment.release)
    except ReleaseError as error:
        # Nor must a timer.
        deployment.warn(str(error))


def restart_single(deployment: Deployment) -> None:
    """Start the processes of which only one may run, each after that of another release has ended.

    One that does not start is a warning: it must not keep the old release from being drained.
    """
    host, manager, release = deployment.host, deployment.manager, deployment.release
    units = host.process_units(release, single=True)
    names = {host.process_name(unit) for unit in units}
    if not units:
        return
    try:
        manager.stop([unit for unit in host.other_units(release) if host.process_name(unit) in names])
        manager.start(units)
        say(f"Started, each after that of the previous release: {', '.join(units)}.")
    except ReleaseError as error:
        deployment.warn(f"{deployment.explain(units, str(error))}\nThe others of this release are not affected.")


def drain(deployment: Deployment) -> None:
    """Stop the processes of other releases; each finishes what it holds, within its own time limit."""
    host, manager = deployment.host, deployment.manager
    warn_of_memory(deployment)
    units = host.other_units(deployment.release)
    web = [unit for unit in units if host.is_web(unit)]
    workers = [unit for unit in units if host.is_worker(unit)]
    manager.stop([unit for unit in units if unit not in web + workers], wait=False)
    stopping = host.stopping_units()
    empty_queues(deployment, [unit for unit in workers if unit not in stopping])
    manager.stop(workers, wait=False)
    for unit in web:
        health.wait_until_idle(host.socket(release_of(unit)))
    manager.stop(web, wait=False)
    # From here on these processes end without this program: another deployment may begin (control.take_over).
    deployment.record.note(draining=units)
    await_end(deployment, units)
    if workers:
        # Also without one that has ended: they may have parked tasks that this release knows.
        answer = deployment.application.ask("requeue_unacknowledged", deployment.settings.celery_app)
        count_tasks(deployment, [unit for unit in workers if unit not in manager.alive()], answer["requeued"])


def warn_of_memory(deployment: Deployment) -> None:
    """Name the processes, old and new, that the kernel has killed at their memory limit."""
    for process in deployment.manager.states():
        if process.memory_kills:
            deployment.warn(
                f"{process.unit} has reached its memory limit: the kernel has killed {process.memory_kills} of its "
                "processes. Raise its memory_mb (app_workers, app_web, app_processes), or lower concurrency."
            )


def announce_tasks(deployment: Deployment, units: list[str]) -> None:
    """Name the tasks that old workers have been running for a while: the drain will wait for them."""
    nodes = {deployment.host.node(unit): unit for unit in units}
    try:
        answer = deployment.application.ask("running", deployment.settings.celery_app, 3, *nodes)
    except ReleaseError:
        return  # It is only an announcement.
    for unit, task in [(nodes[node], task) for node, tasks in sorted(answer.items()) for task in tasks]:
        seconds, limit = int(time.time() - task["since"]), deployment.host.stop_timeout(unit)
        text = (
            f"{unit} has been running the task {task['name']} ({task['id']}) for {seconds} s, since "
            f"{moment(int(task['since']))}. After the switch this deployment waits up to {limit} s for it; then "
            "the worker is killed. Another deployment may begin meanwhile."
        )
        if seconds > limit:
            deployment.warn(text)
        elif seconds >= LONG_TASK:
            say(text)


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
    """Wait until stopping units have ended, or until another deployment takes over."""
    began = said = time.monotonic()
    while left := sorted(set(units) & set(deployment.manager.alive())):
        if deployment.handed_over:
            say(f"Another deployment begins. Still finishing their tasks: {', '.join(left)}.")
            return
        if time.monotonic() - said > 10:
            most = max(map(deployment.host.stop_timeout, left)) - (time.monotonic() - began)
            say(
                f"Waiting for old processes to end, for up to {max(most, 0):.0f} s: {', '.join(left)}. "
                "Another deployment may begin."
            )
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
        numbers = json.loads(read_file(file))
    except (OSError, ValueError):
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
    forget_kept(deployment.host)
    remove_earlier(deployment.host)
    deployment.manager.remove_stale()
    for release in deployment.host.prune(deployment.previous if deploys else ""):
        say(f"Removed release {release}.")
    static.prune(deployment.host)
    remove_old_files(deployment.settings)
    remove_unlisted_modules(deployment.settings)
