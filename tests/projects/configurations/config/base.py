from pathlib import Path

from configurations import Configuration, values

BASE_DIR = Path(__file__).resolve().parent.parent


class Base(Configuration):
    SECRET_KEY = values.SecretValue(environ_prefix=None)
    ALLOWED_HOSTS = values.ListValue([], environ_prefix=None)
    CSRF_TRUSTED_ORIGINS = values.ListValue([], environ_prefix=None)
    INSTALLED_APPS = [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "notes",
    ]
    MIDDLEWARE = [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    ROOT_URLCONF = "config.urls"
    WSGI_APPLICATION = "config.wsgi.application"
    TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ]
    DATABASES = values.DatabaseURLValue(environ_prefix=None)
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    USE_TZ = True
    STATIC_URL = "/static/"
    STATIC_ROOT = values.PathValue(str(BASE_DIR / "staticfiles"), environ_prefix=None, check_exists=False)
    CELERY_BROKER_URL = values.Value("redis://localhost:6379/0", environ_prefix=None)
    CELERY_TASK_IGNORE_RESULT = True
