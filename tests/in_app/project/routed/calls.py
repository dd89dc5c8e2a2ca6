"""Calls that name queues. Nothing imports this module."""

from django.conf import settings

from .celery import app, nothing

QUEUE = "constant"


def send() -> None:
    app.send_task("x", queue="literal")
    app.send_task("x", queue=QUEUE)
    app.signature("x").set(queue=settings.EXPORT_QUEUE)
    # Known otherwise; a broadcast; one that only the call knows.
    app.send_task("x", queue="named")
    app.send_task("x", queue="reload")
    app.send_task("x", queue=nothing())
