from django.db import models


class Note(models.Model):
    """A text, and how many words a worker counted in it."""

    text = models.TextField()
    words = models.IntegerField(null=True)
    worker = models.TextField(default="")

    class Meta:
        indexes = (models.Index(fields=["words"], name="notes_by_words"),)
