from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Visit",
            [
                (
                    "id",
                    models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID"),
                ),
                ("page", models.TextField()),
            ],
        )
    ]
