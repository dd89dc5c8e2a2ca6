"""Settings for tests: as in production, with separate files and Redis databases."""

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from core import settings as production

globals().update({name: value for name, value in vars(production).items() if name.isupper()})

# Inherited by the worker that the tests start.
TEST_FOLDER = Path(os.environ.setdefault("TEST_FOLDER", tempfile.mkdtemp(prefix="shop-tests-")))

DEBUG = False
ALLOWED_HOSTS = ["testserver"]
RELEASE_ID = "release-under-test"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = True

CELERY_BROKER_URL = urlsplit(production.CELERY_BROKER_URL)._replace(path="/15").geturl()
CACHE_URL = urlsplit(production.CACHE_URL)._replace(path="/14").geturl()
CACHES = {"default": {**production.CACHES["default"], "LOCATION": CACHE_URL}}

# Tests without a broker need not wait for retries.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0}

MEDIA_ROOT = str(TEST_FOLDER / "media")
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = str(TEST_FOLDER / "mail")
# Static files are not collected for tests of pages; test_settings.py tests that.
STORAGES = {
    **production.STORAGES,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Fast, since passwords are not tested.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
