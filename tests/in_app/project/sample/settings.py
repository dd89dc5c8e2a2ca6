"""A minimal Django project."""

import os

import dj_database_url

SECRET_KEY = "only-for-tests"
INSTALLED_APPS = ["django_celery_beat", "django_celery_results"]
# A persistent connection, which a query may still use when a signal arrives.
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"], conn_max_age=60)}
if cache := os.environ.get("CACHE_URL"):
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": cache}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = "NAIVE" not in os.environ
TIME_ZONE = os.environ.get("TIME_ZONE", "UTC")

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_RESULT_BACKEND = os.environ.get("BACKEND", f"file://{os.environ['RESULTS']}")
CELERY_TASK_TRACK_STARTED = "BACKEND" in os.environ and "UNTRACKED" not in os.environ
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ACKS_LATE = "EARLY" not in os.environ
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_SOFT_TIME_LIMIT = 300
CELERY_TASK_TIME_LIMIT = 330
CELERY_WORKER_DEDUPLICATE_SUCCESSFUL_TASKS = "DEDUPLICATE" in os.environ
CELERY_WORKER_MAX_TASKS_PER_CHILD = int(os.environ.get("MAX_TASKS", "0")) or None
CELERY_WORKER_PREFETCH_MULTIPLIER = int(os.environ.get("PREFETCH", "1"))
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_WORKER_CONSUMER = os.environ.get("WORKER_CONSUMER", "celery.worker.consumer:Consumer")
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": int(os.environ.get("VISIBILITY", "43200"))}
if timeout := os.environ.get("SOCKET_TIMEOUT", "30"):
    CELERY_BROKER_TRANSPORT_OPTIONS["socket_timeout"] = float(timeout)
CELERY_BEAT_SCHEDULE = {"tick": {"task": "sample.tick", "schedule": 1.0, "options": {"queue": "ticks"}}}
# Of the calls in routed/calls.py.
EXPORT_QUEUE = "exports"
if url := os.environ.get("REDBEAT_URL"):
    CELERY_REDBEAT_REDIS_URL = url
if "UNSET" not in os.environ:
    CELERY_BEAT_SCHEDULER = os.environ.get("SCHEDULER", "celery.beat:PersistentScheduler")
