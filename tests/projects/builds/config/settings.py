import os

from . import local_settings
from .base import BASE_DIR, Base


class Production(Base):
    DEBUG = False
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    CELERY_BEAT_SCHEDULE = {"tick": {"task": "notes.tasks.write", "schedule": 2.0, "args": ["tick"]}}
    STATICFILES_DIRS = [BASE_DIR / "assets"]
    ROOT_URLCONF = "config.urls_production"
    GREETING = local_settings.GREETING
    PRIVATE_KEY = os.environ["PRIVATE_KEY"]
