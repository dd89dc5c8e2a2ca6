"""The Celery application `core`, and the base class of every task."""

import os
from typing import Any

from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "core.settings")
# A deployment runs Django's checks once; workers skip them.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")


class Task(DjangoTask):
    """A task that is retried while the database restarts, and records which release ran it."""

    autoretry_for = (OperationalError, InterfaceError)
    retry_backoff = True
    retry_backoff_max = 60
    max_retries = 8

    def before_start(self, task_id: str, args: tuple, kwargs: dict) -> None:
        # django-celery-results stores `meta` with the result.
        self.request.meta = {"release": settings.RELEASE_ID}

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Send the task after the commit; if the broker is unavailable, log the error only.

        The data is saved by then: an error page would make the user submit it twice.
        """

        def send() -> None:
            self.delay(*args, **kwargs)

        transaction.on_commit(send, robust=True)


app = Celery("core", task_cls="core.celery:Task")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
