from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Note",
            [
                (
                    "id",
                    models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID"),
                ),
                ("text", models.TextField()),
            ],
        )
    ]
