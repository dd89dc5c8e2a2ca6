import os

from celery import Celery

app = Celery("notes", broker=os.environ["QUEUE_URL"])
app.conf.task_ignore_result = True
app.conf.beat_schedule = {"tick": {"task": "notes.tasks.tick", "schedule": 5}}
app.autodiscover_tasks(["notes"])
