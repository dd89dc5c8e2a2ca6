"""Processes of the release that have ended. A worker that a message ended is no reason to revert: it is restarted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deployment import Deployment


def ended(deployment: Deployment, units: list[str]) -> list[str]:
    """Return the units that have ended, except workers that held messages: each is parked after a few such ends."""
    failed = deployment.manager.failed(units)
    nodes = {deployment.host.node(unit): unit for unit in failed if deployment.host.is_worker(unit)}
    if not nodes:
        return failed
    celery = deployment.settings.celery_app
    answer = deployment.application.ask("ended_by_messages", celery, deployment.began, *nodes)
    excused = {nodes[node] for node in answer["workers"]}
    for unit in sorted(excused - deployment.excused):
        deployment.warn(
            f"{unit} ended with messages in hand, one of which may be the reason, and is restarted. A message "
            f"that ends its process three times is parked: {deployment.settings.name}ctl tasks parked list."
        )
    deployment.excused |= excused
    return [unit for unit in failed if unit not in excused]
