"""The schedules the shop opens with.

They are rows from here on: the admin edits them, and nothing ever sets them back. A later release adds its own by a
migration of its own.
"""

import json

from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.utils import timezone

QUEUES = ["default", "heavy", "io"]


def add_schedules(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Add each schedule unless there is one of its name."""
    task = apps.get_model("django_celery_beat", "PeriodicTask")
    minutely, _ = apps.get_model("django_celery_beat", "IntervalSchedule").objects.get_or_create(
        every=60, period="seconds"
    )
    nightly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
        minute="30", hour="3", day_of_week="*", day_of_month="*", month_of_year="*", timezone=settings.TIME_ZONE
    )

    # What piled up while no worker was there is worth no more than the last of it, so each expires with its successor.
    every_minute = {"interval": minutely, "expire_seconds": 60}
    schedules = {
        "flush-page-views": {"task": "shop.tasks.flush_page_views", **every_minute},
        "reconcile-orders": {"task": "shop.tasks.reconcile_orders", **every_minute},
        "clean-up": {"task": "shop.tasks.clean_up", "crontab": nightly},
    }
    for queue in QUEUES:
        schedules[f"heartbeat-{queue}"] = {
            "task": "shop.tasks.heartbeat",
            "kwargs": json.dumps({"name": queue}),
            "queue": queue,
            **every_minute,
        }
    for name, defaults in schedules.items():
        task.objects.get_or_create(name=name, defaults=defaults)

    # A migration's models send no signals, so a beat that is running would not look.
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


class Migration(migrations.Migration):
    dependencies = [
        ("shop", "0002_products"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(add_schedules, migrations.RunPython.noop)]
