"""The end of a deployment: what its last lines say, and what is recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

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
    warn_of_failed_beat(deployment)
    if state["previous"]:
        say(
            f"Tasks of the old workers: {tasks['finished']} finished, {tasks['requeued']} requeued, "
            f"{tasks['lost']} lost. Failed requests (5xx): {failed}."
        )
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
    named = " ".join(deployment.warnings)
    for queue, number in deployment.application.ask("unconsumed", settings.celery_app, *settings.queues).items():
        if f"in the queue {queue}," not in named:
            deployment.warn(
                f"{number} tasks wait in the queue {queue}, which no worker consumes. Give it one (app_workers), or "
                f"delete them: {settings.name}ctl celery purge -Q {queue}"
            )


def warn_of_failed_beat(deployment: Deployment) -> None:
    """Beat had the time of drain and prune to fail: both managers report it as started before that."""
    settings, manager = deployment.settings, deployment.manager
    name = f"{settings.name}-beat"
    if settings.beat and (not manager.beat_runs() or manager.failed([name])):
        deployment.warn(
            f"Beat does not keep running, so no periodic task is sent. Its log: {settings.name}ctl logs beat"
        )


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
