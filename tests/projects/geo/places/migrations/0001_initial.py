from django.contrib.gis.db.models import PointField
from django.contrib.postgres.operations import CreateExtension
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        CreateExtension("postgis"),
        migrations.CreateModel(
            "Place",
            [
                (
                    "id",
                    models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID"),
                ),
                ("point", PointField(srid=4326)),
            ],
        ),
    ]
