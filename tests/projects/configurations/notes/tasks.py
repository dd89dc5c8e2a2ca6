from config.celery import app


@app.task
def write(text):
    from .models import Note

    Note.objects.create(text=text)
