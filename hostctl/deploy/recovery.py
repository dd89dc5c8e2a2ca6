"""Recover from a deployment that was killed: its state is unfinished and its lock is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..settings import say
from . import traffic
from .context import Context
from .steps import STEPS, undo_order

if TYPE_CHECKING:
    from .deployment import Deployment


def recover(deployment: Deployment) -> None:
    """Revert a killed deployment of another release; one of the same release is continued by the steps that follow.

    A killed deployment whose release is current already is not reverted: its old workers are drained by this one.
    """
    killed = deployment.killed
    if not killed:
        return
    say(f"The deployment of {killed['release']} by {killed['by']} was killed at step {killed['step']}.")
    context = Context(deployment.host, killed["release"], killed | {"previous": deployment.live})
    if context.release == deployment.live:
        resume_own_workers(deployment, context)
        return
    try:
        traffic.resume_consumers(context)
        deployment.record.note(stopped_consuming={}, beat_stopped=False)
        if context.release != deployment.release:
            for step in undo_order(STEPS):
                step.undo(context)
            say(f"Reverted the deployment of {context.release}.")
    finally:
        context.application.close()


def resume_own_workers(deployment: Deployment, killed: Context) -> None:
    """Rollback to the release before a killed deployment: its workers still run, but have stopped consuming."""
    own = {deployment.host.node(unit) for unit in deployment.host.running_units(deployment.release)}
    stopped = {node: queues for node, queues in killed.state.get("stopped_consuming", {}).items() if node in own}
    if stopped:
        traffic.consume_again(killed, stopped)
