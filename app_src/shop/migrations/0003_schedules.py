"""The first schedules.

From then on they are rows that are edited in the admin. A later release adds schedules with a migration of its own.
"""

import json

from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.utils import timezone

QUEUES = ["default", "heavy", "io"]


def add_schedules(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Add each schedule unless its name exists."""
    task = apps.get_model("django_celery_beat", "PeriodicTask")
    minutely, _ = apps.get_model("django_celery_beat", "IntervalSchedule").objects.get_or_create(
        every=60, period="seconds"
    )
    nightly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
        minute="30", hour="3", day_of_week="*", day_of_month="*", month_of_year="*", timezone=settings.TIME_ZONE
    )

    # Without a worker only the newest task of a schedule matters, so each expires when the next one is sent.
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

    # Models in migrations send no signals, so a running beat would not notice.
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


class Migration(migrations.Migration):
    dependencies = [
        ("shop", "0002_products"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(add_schedules, migrations.RunPython.noop)]
