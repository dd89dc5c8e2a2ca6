"""Settings, all from the environment (or from `.env` for local development; see `.env.example`).

Secrets and URLs have no default: a process without one stops with its name.
"""

from pathlib import Path

import dj_database_url
import dj_email_url
from decouple import Csv, config
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


def required(name: str) -> str:
    """Return the value of a variable without a default.

    Raises decouple.UndefinedValueError when it is missing and ImproperlyConfigured when it is empty; both name it.
    """
    value = config(name)
    if not value:
        raise ImproperlyConfigured(f"{name} is empty: set it in the environment or in .env.")
    return value


DEBUG = config("DEBUG", default=False, cast=bool)
SECRET_KEY = required("SECRET_KEY")
# The previous key: users stay signed in when the key changes.
SECRET_KEY_FALLBACKS = [key for key in [config("SECRET_KEY_FALLBACK", default="")] if key]
ALLOWED_HOSTS = config("ALLOWED_HOSTS", default="", cast=Csv())
CSRF_TRUSTED_ORIGINS = config("CSRF_TRUSTED_ORIGINS", default="", cast=Csv())

# Health checks, tasks and heartbeats name the release.
RELEASE_ID = config("RELEASE_ID", default="dev")

INSTALLED_APPS = [
    "shop",
    "django_celery_beat",
    "django_celery_results",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "core.urls"
WSGI_APPLICATION = "core.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "shop.context_processors.release",
            ],
        },
    },
]

# --- Database --------------------------------------------------------------------------------------------------------

# For web processes only, whose threads share connections. A worker's child has one, and closes it when it is old.
DATABASE_POOL = config("DATABASE_POOL", default=False, cast=bool)
DATABASES = {
    "default": dj_database_url.parse(
        required("DATABASE_URL"),
        conn_max_age=0 if DATABASE_POOL else 60,
        conn_health_checks=True,
    ),
}
DATABASE_OPTIONS = DATABASES["default"].setdefault("OPTIONS", {})
# Without it a request, and /readyz/, waits for minutes when the database's host drops packets.
DATABASE_OPTIONS["connect_timeout"] = 3
if DATABASE_POOL:
    # An idle site keeps no database session; the first request after a minute waits some milliseconds for one.
    DATABASE_OPTIONS["pool"] = {"min_size": 0, "max_size": 4, "timeout": 3, "max_idle": 60}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Cache: a Redis instance of its own, which may evict any key ----------------------------------------------------

CACHE_URL = required("CACHE_URL")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CACHE_URL,
        "KEY_PREFIX": "shop",
        "OPTIONS": {"socket_connect_timeout": 1, "socket_timeout": 1},
    },
}

# --- Celery ----------------------------------------------------------------------------------------------------------

TIME_ZONE = config("TIME_ZONE", default="UTC")
USE_TZ = True

CELERY_BROKER_URL = required("CELERY_BROKER_URL")
CELERY_TIMEZONE = TIME_ZONE
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"

CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {
    # Long tasks have a worker of their own, so that they do not delay orders.
    "shop.tasks.build_report": {"queue": "heavy"},
    # Tasks that wait for another machine share a worker with many threads.
    "shop.tasks.send_*": {"queue": "io"},
    "shop.tasks.notify_*": {"queue": "io"},
}

# Results are rows, shown in the admin, with the worker, the arguments and whether the task has started.
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_TASK_TRACK_STARTED = True
# Seconds. Celery's nightly task celery.backend_cleanup deletes older rows.
CELERY_RESULT_EXPIRES = 7 * 24 * 3600

# A task is acknowledged when it ends, not when it starts: tasks of a killed worker run again.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# A task may therefore be delivered twice; one that has succeeded is not run again. Tasks are idempotent anyway.
CELERY_WORKER_DEDUPLICATE_SUCCESSFUL_TASKS = True
# A worker reserves only what it can run now; the rest stays available to other workers.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Seconds: first SoftTimeLimitExceeded, with time to clean up, then the child is killed.
CELERY_TASK_SOFT_TIME_LIMIT = 300
CELERY_TASK_TIME_LIMIT = 330
# Seconds until an unacknowledged message is delivered again. A longer task or ETA would run twice, so it is far above
# both. The shortest value of any client wins, so it is set wherever Celery's documentation names it.
CELERY_VISIBILITY_TIMEOUT = 43200
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": CELERY_VISIBILITY_TIMEOUT,
    # Every worker looks for such messages every 10 s.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # Seconds until a Redis that does not answer counts as lost. Above the 1 s of a blocking read.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
}
# Redis may be the last to start after a reboot, and may be unavailable for longer than 100 attempts.
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A full Redis refuses even acknowledgements; without this setting the worker then exits.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
# A running task continues when the broker's connection drops: killed, it would only run again.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
# Retry for four seconds, enough for a restart of Redis; Celery's default is 0.6 s.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 12, "interval_start": 0, "interval_step": 0.2, "interval_max": 1}

CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Write last_run_at with every tick, so that a killed beat does not send tasks again.
CELERY_BEAT_SYNC_EVERY = 1

# Seconds until the reconcile task sends an order's unfinished task again.
ORDER_RESEND_AFTER = config("ORDER_RESEND_AFTER", default=120, cast=int)

# --- Email -----------------------------------------------------------------------------------------------------------

EMAIL = dj_email_url.parse(config("EMAIL_URL", default=f"file://{BASE_DIR}/var/mail"))
if "EMAIL_BACKEND" not in EMAIL:
    raise ImproperlyConfigured("EMAIL_URL must begin with smtp:// or file:// (see .env.example).")
EMAIL_BACKEND = EMAIL["EMAIL_BACKEND"]
# dj-email-url removes the first slash of the path.
EMAIL_FILE_PATH = "/" + EMAIL["EMAIL_FILE_PATH"]
EMAIL_HOST = EMAIL["EMAIL_HOST"]
EMAIL_PORT = EMAIL["EMAIL_PORT"]
EMAIL_HOST_USER = EMAIL["EMAIL_HOST_USER"]
EMAIL_HOST_PASSWORD = EMAIL["EMAIL_HOST_PASSWORD"]
EMAIL_USE_TLS = EMAIL["EMAIL_USE_TLS"]
EMAIL_USE_SSL = EMAIL["EMAIL_USE_SSL"]
# Celery's time limits do not apply to threads, so a mail server that does not answer must not block one.
EMAIL_TIMEOUT = 20
DEFAULT_FROM_EMAIL = config("DEFAULT_FROM_EMAIL", default="shop@localhost")
WAREHOUSE_EMAIL = config("WAREHOUSE_EMAIL", default=DEFAULT_FROM_EMAIL)

# --- Files -----------------------------------------------------------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = config("STATIC_ROOT", default=str(BASE_DIR / "var/static"))
MEDIA_URL = "/media/"
MEDIA_ROOT = config("MEDIA_ROOT", default=str(BASE_DIR / "var/media"))
STORAGES = {
    # A task that runs twice overwrites its file instead of adding a second one.
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"allow_overwrite": True},
    },
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}
# nginx must be able to read uploaded and generated files, whatever the umask.
FILE_UPLOAD_PERMISSIONS = 0o644
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o755

# --- Accounts and language -------------------------------------------------------------------------------------------

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
LANGUAGE_CODE = "en-gb"
USE_I18N = True

# --- TLS: terminated by nginx; none in local development -------------------------------------------------------------

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = not DEBUG
# Health checks use the socket, without nginx.
SECURE_REDIRECT_EXEMPT = [r"^healthz/$", r"^readyz/$"]
SESSION_COOKIE_SECURE = not DEBUG
CSRF_COOKIE_SECURE = not DEBUG
# Seconds. One hour limits the damage of a mistake; raise it when TLS is known to work.
SECURE_HSTS_SECONDS = config("SECURE_HSTS_SECONDS", default=3600, cast=int)
# HSTS for subdomains and preloading are decisions of the domain's owner, not of one site.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

# --- Logging: to stdout, read by journald, Supervisor or a terminal --------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}},
    "root": {"handlers": ["stdout"], "level": "INFO"},
    # Django's own handlers would write to stderr and mail the administrators.
    "loggers": {"django": {"handlers": [], "level": "INFO"}},
}
