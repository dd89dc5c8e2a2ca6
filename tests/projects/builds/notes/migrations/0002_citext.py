from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("notes", "0001_initial")]
    operations = [migrations.RunSQL("ALTER TABLE notes_note ALTER COLUMN text TYPE citext", migrations.RunSQL.noop)]
