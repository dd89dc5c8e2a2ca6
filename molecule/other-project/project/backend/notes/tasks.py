from celery import Task, shared_task
from django.db.models import F

from notes.models import Note

TICK = "tick"


@shared_task(bind=True)
def count_words(self: Task, number: int) -> None:
    """Count the words of a note, and say which worker did."""
    note = Note.objects.get(pk=number)
    note.words, note.worker = len(note.text.split()), self.request.hostname
    note.save()


@shared_task
def tick() -> None:
    """Count how often beat has called."""
    Note.objects.get_or_create(text=TICK, defaults={"words": 0})
    Note.objects.filter(text=TICK).update(words=F("words") + 1)
