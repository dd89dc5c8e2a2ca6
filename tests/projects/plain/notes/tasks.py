from celery import shared_task


@shared_task
def write(text):
    from .models import Note

    Note.objects.create(text=text)
