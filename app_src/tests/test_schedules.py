"""Schedules: created by a migration, edited in the admin, sent by beat."""

from importlib import import_module

import pytest
from django.apps import apps
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from core.celery import app
from shop.models import Heartbeat
from tests.processes import celery, wait_until

add_schedules = import_module("shop.migrations.0003_schedules").add_schedules


def test_the_shop_opens_with_schedules_for_tasks_that_exist(db: None) -> None:
    app.loader.import_default_modules()
    ours = PeriodicTask.objects.filter(task__startswith="shop.")
    assert {task.name: str(task.interval or task.crontab) for task in ours} == {
        "flush-page-views": "every 60 seconds",
        "reconcile-orders": "every 60 seconds",
        "heartbeat-default": "every 60 seconds",
        "heartbeat-heavy": "every 60 seconds",
        "heartbeat-io": "every 60 seconds",
        "clean-up": "30 3 * * * (m/h/dM/MY/d) UTC",
    }
    assert {task.task for task in ours} <= set(app.tasks)


def test_schedules_edited_in_the_admin_stay(db: None) -> None:
    often, _ = IntervalSchedule.objects.get_or_create(every=5, period="seconds")
    PeriodicTask.objects.filter(name="flush-page-views").update(interval=often, enabled=False)
    noon = CrontabSchedule.objects.create(minute="0", hour="12")
    PeriodicTask.objects.filter(name="clean-up").update(crontab=noon)

    add_schedules(apps, None)

    flush = PeriodicTask.objects.get(name="flush-page-views")
    assert (flush.interval, flush.enabled) == (often, False)
    assert PeriodicTask.objects.get(name="clean-up").crontab == noon
    assert PeriodicTask.objects.filter(task__startswith="shop.").count() == 6


@pytest.mark.django_db(transaction=True)
def test_beat_sends_heartbeats_through_a_queue(worker: None) -> None:
    add_schedules(apps, None)
    every_second, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    PeriodicTask.objects.filter(name="heartbeat-io").update(interval=every_second)
    started = timezone.now()
    with celery("beat"):
        first = wait_until(lambda: Heartbeat.objects.filter(name="io", at__gt=started).first())
        wait_until(lambda: Heartbeat.objects.filter(name="io", at__gt=first.at).exists())
    assert first.release == "release-under-test"
