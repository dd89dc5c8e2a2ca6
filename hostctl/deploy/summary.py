"""The end of a deployment: what its last lines say, and what is recorded."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import beat
from ..parked import number_of
from ..settings import Settings, say

if TYPE_CHECKING:
    from .deployment import Deployment


def finish(deployment: Deployment) -> None:
    """Print tasks, failed requests and seconds per step, and record the success."""
    state, tasks = deployment.state, deployment.tasks
    failed = failed_requests(deployment.settings, state["access_log_offset"])
    warn_of_parked_tasks(deployment)
    warn_of_queues_without_worker(deployment)
    watch_after_switch(deployment)
    warn_of_failed_beat(deployment)
    warn_of_failed_processes(deployment)
    if state["previous"]:
        say(
            f"Tasks of the old workers: {tasks['finished']} finished, {tasks['requeued']} requeued, "
            f"{tasks['lost']} lost. Failed requests (5xx): {failed}."
        )
    if deployment.overlay:
        say(f"Settings from the environment: {', '.join(deployment.overlay)}.")
    durations = ", ".join(f"{step} {seconds}" for step, seconds in state["steps"].items() if seconds >= 0.05)
    say(f"{deployment.record.seconds()} s: {durations}.")
    say(f"Release {deployment.release} is live.")
    deployment.record.note(tasks=tasks, failed_requests=failed, warnings=deployment.warnings)
    deployment.record.end(0, "succeeded")


def warn_of_parked_tasks(deployment: Deployment) -> None:
    settings = deployment.settings
    if not settings.celery_app or not settings.workers:
        return
    answer = deployment.application.ask("parked", settings.celery_app)
    for name, number in answer["tasks"].items():
        deployment.warn(f"{number} tasks called {name} are parked until a release with such a task is live.")
    if answer["others"]:
        verb = "is" if answer["others"] == 1 else "are"
        deployment.warn(f"{number_of(answer['others'])} {verb} parked: see {settings.name}ctl tasks parked list.")


def warn_of_queues_without_worker(deployment: Deployment) -> None:
    """Name the tasks that wait for a worker which no release of the installation has any more, or never had."""
    settings = deployment.settings
    if not settings.celery_app or not settings.workers:
        return
    named, known = " ".join(deployment.warnings), (*settings.queues, *settings.external_queues)
    for queue, number in deployment.application.ask("unconsumed", settings.celery_app, *known).items():
        if f"in the queue {queue}," not in named:
            deployment.warn(
                f"{number} tasks wait in the queue {queue}, which no worker consumes. Give it one (app_workers), or "
                f"delete them: {settings.name}ctl celery purge -Q {queue}"
            )


def units_after_switch(deployment: Deployment) -> list[str]:
    """Return the units that start after the switch, when nothing is undone any more."""
    settings, host = deployment.settings, deployment.host
    return ([f"{settings.name}-beat"] if settings.beat else []) + host.process_units(deployment.release, single=True)


def watch_after_switch(deployment: Deployment) -> None:
    """Watch them for as long as the step `bake` watches the others, and until beat has begun; drain and prune count."""
    units, settings = units_after_switch(deployment), deployment.settings
    while units and not deployment.manager.failed(units):
        passed = time.monotonic() - deployment.started_after_switch
        if passed >= settings.bake and (passed >= settings.health_check_timeout or not beat_loads(deployment)):
            break
        time.sleep(0.25)


def beat_loads(deployment: Deployment) -> bool:
    """Return whether beat has not read its schedule yet, as far as it says so: plain `celery beat` does not."""
    settings, release = deployment.settings, deployment.release
    if not settings.beat or not beat.writes_state(settings, release):
        return False
    is_plain = deployment.host.facts(release).get("plain_workers", False)
    return not is_plain and not beat.state_file(settings).exists()


def warn_of_failed_beat(deployment: Deployment) -> None:
    """Warn if beat has ended, or was restarted, since the step restart_beat."""
    settings, manager = deployment.settings, deployment.manager
    name = f"{settings.name}-beat"
    if settings.beat and (not manager.beat_runs() or manager.failed([name])):
        deployment.warn(
            f"Beat does not keep running, so no periodic task is sent. Its log: {settings.name}ctl logs beat"
        )
    elif beat_loads(deployment):
        deployment.warn(
            f"Beat has not read its schedule within {settings.health_check_timeout} s. Its log: "
            f"{settings.name}ctl logs beat"
        )
    elif settings.beat:
        for text in beat.warnings(settings):
            deployment.warn(text)


def warn_of_failed_processes(deployment: Deployment) -> None:
    """Like beat, the processes of which only one may run start after the point of no return."""
    host = deployment.host
    for unit in deployment.manager.failed(host.process_units(deployment.release, single=True)):
        name = host.process_name(unit)
        deployment.warn(f"{name} does not keep running. Its log: {deployment.settings.name}ctl logs {name}")


def access_log_size(settings: Settings) -> int:
    try:
        return Path(settings.access_log).stat().st_size if settings.access_log else 0
    except FileNotFoundError:
        return 0


def failed_requests(settings: Settings, offset: int) -> int:
    """Count the answers of 500 to 599 that nginx has given since the deployment began."""
    if not settings.access_log or not Path(settings.access_log).exists():
        return 0
    with Path(settings.access_log).open("rb") as file:
        # A log that was rotated meanwhile starts at 0 again.
        file.seek(offset if access_log_size(settings) >= offset else 0)
        failed = (line for line in file if re.search(rb'" 5\d\d \d', line))
        # During maintenance nginx answers 503 without asking an upstream.
        return sum(1 for line in failed if not (b'" 503 ' in line and b"upstream=- " in line))
