from .base import Base


class Development(Base):
    DEBUG = True


class Production(Base):
    DEBUG = False
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    CELERY_BEAT_SCHEDULE = {"tick": {"task": "notes.tasks.write", "schedule": 2.0, "args": ["tick"]}}
