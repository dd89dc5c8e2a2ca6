"""The table of effects, and a schedule that ticks every second."""

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.utils import timezone


def add_tick(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    second, _ = apps.get_model("django_celery_beat", "IntervalSchedule").objects.get_or_create(
        every=1, period="seconds"
    )
    apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
        name="ledger-tick", defaults={"task": "ledger.tick", "interval": second}
    )
    # A migration's models send no signals, so a beat that is running would not look.
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = (("django_celery_beat", "0019_alter_periodictasks_options"),)
    operations = (
        migrations.CreateModel(
            name="Effect",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=100, unique=True)),
            ],
        ),
        migrations.RunPython(add_tick, migrations.RunPython.noop),
    )
