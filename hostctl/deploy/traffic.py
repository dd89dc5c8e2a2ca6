"""Move work from the old release to the new one: queues, pages, and proof that both arrive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..application import Application
from ..settings import ReleaseError, say
from . import drain, health
from .context import Context
from .ended import ended
from .pages import health_problem

if TYPE_CHECKING:
    from .deployment import Deployment

# --- Queues


def stop_consuming(deployment: Deployment) -> None:
    """Have old workers stop consuming, except queues that no new worker consumes: those they empty."""
    if deployment.is_current and deployment.state.get("stopped_consuming"):
        # Told before the deployment was killed: these workers may be about to end.
        return
    if deployment.manager.beat_runs() and not deployment.settings.beat:
        deployment.record.note(beat_stopped=True)
        deployment.manager.stop_beat()
        say("Beat stopped: it does not run on this host any more.")
    stopped, stopping = {}, deployment.host.stopping_units()
    # Workers that finish their tasks after an earlier deployment consume nothing, and answer nothing.
    units = [unit for unit in deployment.host.other_units(deployment.release) if unit not in stopping]
    for unit in units:
        shared = [queue for queue in deployment.host.queues(unit) if queue in deployment.settings.queues]
        if shared and deployment.host.is_worker(unit):
            stopped[deployment.host.node(unit)] = shared
    if not stopped:
        return
    # Persisted first: if this deployment is killed, the next one has them consume again.
    deployment.record.note(stopped_consuming=stopped)
    for node, queues in stopped.items():
        celery = deployment.settings.celery_app
        if deployment.application.ask("consumers", celery, "cancel", ",".join(queues), node)["silent"]:
            deployment.warn(f"Worker {node} did not confirm that it stopped consuming; it is stopped later.")
    say("Old workers stopped consuming.")
    drain.announce_tasks(deployment, [unit for unit in units if deployment.host.node(unit) in stopped])


def resume_consumers(context: Context) -> None:
    """Undo: old workers consume again; beat runs here again."""
    if stopped := context.state.get("stopped_consuming"):
        # The new release's interpreter may be removed next.
        context.application.close()
        consume_again(context, stopped)
        say("Old workers consume again.")
        context.state["stopped_consuming"] = {}
    if context.state.get("beat_stopped") and not context.manager.beat_runs():
        context.manager.restart_beat(context.previous)


def consume_again(context: Context, stopped: dict[str, list[str]]) -> None:
    """Have workers of the previous release consume their queues; restart those that do not answer."""
    previous = Application(context.host, context.previous)
    try:
        for node, queues in stopped.items():
            if previous.ask("consumers", previous.settings.celery_app, "add", ",".join(queues), node)["silent"]:
                name, _, release = node.partition("@")[0].partition(".")
                unit = f"{context.settings.name}-worker-{name}@{release}"
                say(f"Worker {node} does not answer and is restarted.")
                context.manager.stop([unit])
                context.manager.start([unit])
    finally:
        previous.close()


# --- Pages


def switch(deployment: Deployment) -> None:
    deployment.host.switch(deployment.release)
    say(f"Traffic switched to {deployment.release}.")


def switch_back(context: Context) -> None:
    """Undo: traffic goes to the previous release again."""
    if context.host.current_release() != context.release:
        return
    if context.previous:
        context.host.switch(context.previous)
        say(f"Traffic switched back to {context.previous}.")
    else:
        context.settings.current.unlink()


def require_previous(context: Context) -> None:
    """Raise ReleaseError when traffic would have to move back to a release that no longer runs."""
    if context.host.current_release() == context.release and context.previous and not still_runs(context):
        raise ReleaseError(f"release {context.previous} no longer runs, so traffic stays with {context.release}.")


def still_runs(context: Context) -> bool:
    """Return whether the previous release could take traffic at once.

    A unit that is stopping still counts as alive, so its socket is asked as well.
    """
    host, previous = context.host, context.previous
    if not host.facts(previous) or not set(host.units(previous)) & set(context.manager.alive()):
        return False
    settings = context.settings.of(previous)
    return not settings.web or health.answers(settings, host.socket(previous))


# --- Proof


def smoke_test(deployment: Deployment) -> None:
    """Send a task through every queue and wait until this release has answered each of them."""
    settings = deployment.settings
    queues = sorted({queue for worker in settings.workers for queue in worker.queues})
    if queues:
        test_queues(deployment, queues)
    deployment.run_hook("after_switch")


def test_queues(deployment: Deployment, queues: list[str]) -> None:
    settings, seconds = deployment.settings, deployment.settings.health_check_timeout
    units = deployment.host.worker_units(deployment.release)
    nodes = {deployment.host.node(unit): worker.queues for unit, worker in zip(units, settings.workers, strict=True)}
    arguments = (settings.celery_app, seconds, deployment.release, nodes, *queues)
    answer = deployment.application.ask("smoke_test", *arguments, seconds=seconds + 30)
    if answer["silent"]:
        reason = f"no task came back within {seconds} s from the queues: {', '.join(answer['silent'])}."
        raise deployment.failure(units, reason)
    for queue, other in answer["other"].items():
        deployment.warn(f"The smoke test of queue {queue} was answered by release {other}.")
    if passed := [queue for queue in queues if queue not in answer["busy"]]:
        say(f"Smoke test passed: a task came back from the queues {', '.join(passed)}.")
    if answer["busy"]:
        say(f"Smoke test waits behind running tasks of this release in the queues: {', '.join(answer['busy'])}.")


def bake(deployment: Deployment) -> None:
    """For a few seconds after the switch, require healthy pages and running processes."""
    seconds = deployment.settings.bake
    deadline = time.monotonic() + seconds
    units = deployment.host.side_by_side(deployment.release)
    while True:
        problem = deployment.settings.web and health_problem(deployment)
        # One timeout on a busy machine is no reason to revert.
        if problem and problem.startswith("no answer"):
            problem = health_problem(deployment)
        if problem:
            raise deployment.failure(units, f"health check after the switch: {problem}.")
        if failed := ended(deployment, units):
            raise deployment.failure(failed, f"ended after the switch: {', '.join(failed)}.")
        if time.monotonic() > deadline:
            say(f"Health checks passed for {seconds} s.")
            return
        time.sleep(0.25)
