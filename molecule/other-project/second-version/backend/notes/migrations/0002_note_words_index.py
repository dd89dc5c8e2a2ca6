from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("notes", "0001_initial"),)
    operations = (migrations.AddIndex(model_name="note", index=models.Index(fields=["words"], name="notes_by_words")),)
