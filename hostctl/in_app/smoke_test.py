"""The task that a deployment sends through every queue: it shows that the queue is consumed, and by which release."""

from __future__ import annotations

from typing import Any

from .broker import open_channel

TASK = "hostctl.smoke_test"
# Seconds for which the answer is kept.
EXPIRES = 60


def answer_key(nonce: str) -> str:
    """Return the Redis key of the answer to one smoke test."""
    return f"celery-smoke-test-{nonce}"


def add_task(app: Any, release: str) -> None:
    """Add the task to an application: it notes the release that ran it."""
    from celery.app.task import Task

    @app.task(name=TASK, base=Task, ignore_result=True)
    def smoke_test(nonce: str) -> None:
        with open_channel(app) as (_, client):
            client.set(answer_key(nonce), release, ex=EXPIRES)
