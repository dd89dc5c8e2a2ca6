"""Start the new release beside the current one, and check it before it gets traffic."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..application import Application
from ..host import release_of
from ..settings import ReleaseError, say
from . import build, health, pages
from .configuration import keep_connections
from .context import Context
from .ended import ended

if TYPE_CHECKING:
    from .deployment import Deployment


def start(deployment: Deployment) -> None:
    """Start the release's processes, in a rollback only its web process; stop processes of killed deployments."""
    host, release = deployment.host, deployment.release
    wanted = (deployment.live, deployment.previous)
    strays = [unit for unit in host.other_units(release) if release_of(unit) not in wanted]
    deployment.manager.stop(strays, wait=False)
    if deployment.pages_first:
        keep_connections(deployment.settings, release, deployment.live)
    deployment.manager.prepare(release)
    if deployment.pages_first:
        deployment.schema_check = ThreadPoolExecutor(1).submit(
            deployment.application.ask, "migrations", list(deployment.settings.databases)
        )
        start_units(deployment, host.web_units(release))
    else:
        start_units(deployment, host.side_by_side(release))


def start_workers(deployment: Deployment) -> None:
    """Rollback: start the workers and further processes, once the pages are back."""
    host, release = deployment.host, deployment.release
    start_units(deployment, [unit for unit in host.side_by_side(release) if not host.is_web(unit)])
    check_workers(deployment)
    check_processes(deployment)


def start_units(deployment: Deployment, units: list[str]) -> None:
    if stopping := sorted(deployment.host.stopping_units() & set(units)):
        most = max(map(deployment.host.stop_timeout, stopping))
        say(f"Still finishing tasks after an earlier deployment, up to {most} s, then started: {', '.join(stopping)}.")
    try:
        deployment.manager.start(units)
    except ReleaseError as error:
        raise deployment.failure(units, str(error)) from None
    if units:
        say(f"Started: {', '.join(units)}.")


def stop_release(context: Context) -> None:
    """Undo: stop the release's processes. Its workers stop consuming first, or a task could run twice."""
    units = context.host.running_units(context.release)
    if "health_check" in context.state.get("steps", {}):
        stop_new_consumers(context, [unit for unit in units if context.host.is_worker(unit)])
    if any(context.host.is_web(unit) for unit in units):
        health.wait_until_idle(context.host.socket(context.release), at_least=0.5 if context.previous else 0)
    context.manager.stop(units)


def stop_new_consumers(context: Context, units: list[str]) -> None:
    application = Application(context.host, context.release)
    queues = {worker.name: worker.queues for worker in application.settings.workers}
    try:
        for unit in units:
            names = ",".join(queues[context.host.worker_name(unit)])
            application.ask("consumers", application.settings.celery_app, "cancel", names, context.host.node(unit))
    except (ReleaseError, KeyError, OSError) as error:
        say(f"The new workers could not be told to stop consuming: {error}")
    finally:
        application.close()


def health_check(deployment: Deployment) -> None:
    """Wait until the release's own socket passes its health check and its workers answer; its processes must run."""
    pages.check_pages(deployment)
    if deployment.pages_first:
        return
    check_workers(deployment)
    check_processes(deployment)
    deployment.run_hook("before_switch")


def check_workers(deployment: Deployment) -> None:
    units = deployment.host.worker_units(deployment.release)
    if not units:
        return
    nodes = [deployment.host.node(unit) for unit in units]
    settings, seconds = deployment.settings, deployment.settings.health_check_timeout
    deadline = time.monotonic() + seconds
    while silent := deployment.application.ask("ping", settings.celery_app, 3, *nodes)["silent"]:
        if ended(deployment, units) or time.monotonic() > deadline:
            reason = f"no answer (within {seconds} s) from {', '.join(silent)}."
            raise deployment.failure(units, reason)
    say(f"Workers answered: {', '.join(worker.name for worker in settings.workers)}.")


def check_processes(deployment: Deployment) -> None:
    """Raise ReleaseError where a further process has ended since its start. (The step bake looks again.)"""
    units = deployment.host.process_units(deployment.release, single=False)
    if failed := deployment.manager.failed(units):
        reason = f"ended, but must run until it is stopped: {', '.join(failed)}."
        raise deployment.failure(failed, reason)


def warm_up(deployment: Deployment) -> None:
    """Request the warm-up pages; sync the release to disk."""
    if deployment.settings.web:
        pages.warm_up_pages(deployment)
    # After a power failure `current` must not point to empty files. An older release was written long ago.
    if deployment.sync is not None and not build.is_synced(deployment.sync):
        deployment.warn(f"Release {deployment.release} may not be on disk yet (sync failed or took too long).")
