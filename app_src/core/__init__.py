"""The project: settings, URLs and the Celery application."""

# Loaded with Django, so that `shared_task` uses this application in every process.
from core.celery import app as celery_app

__all__ = ("celery_app",)
