"""The Celery application `core`, and the base class of every task."""

import os
from typing import Any

from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "core.settings")
# Each release is checked before it starts. Workers need no check of their own, since all tasks are in a tasks.py.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")


class Task(DjangoTask):
    """A task that survives a restart of the database and says which release ran it."""

    autoretry_for = (OperationalError, InterfaceError)
    retry_backoff = True
    retry_backoff_max = 60
    max_retries = 8

    def before_start(self, task_id: str, args: tuple, kwargs: dict) -> None:
        # django-celery-results stores `meta` in the row it writes anyway.
        self.request.meta = {"release": settings.RELEASE_ID}

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Send the task after the commit; if the broker is away, log it and go on.

        What was saved is saved: an error page would only invite the user to do it twice.
        """

        def send() -> None:
            self.delay(*args, **kwargs)

        transaction.on_commit(send, robust=True)


app = Celery("core", task_cls="core.celery:Task")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
