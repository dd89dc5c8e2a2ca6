"""The application's settings for tests: as in production, but with files and Redis databases of the tests' own."""

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from core import settings as production

globals().update({name: value for name, value in vars(production).items() if name.isupper()})

# The worker that the tests start inherits it.
TEST_FOLDER = Path(os.environ.setdefault("TEST_FOLDER", tempfile.mkdtemp(prefix="shop-tests-")))

DEBUG = False
ALLOWED_HOSTS = ["testserver"]
RELEASE_ID = "release-under-test"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = True

CELERY_BROKER_URL = urlsplit(production.CELERY_BROKER_URL)._replace(path="/15").geturl()
CACHE_URL = urlsplit(production.CACHE_URL)._replace(path="/14").geturl()
CACHES = {"default": {**production.CACHES["default"], "LOCATION": CACHE_URL}}

# What tests of a missing broker test is what happens then, not how long it is tried.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0}

MEDIA_ROOT = str(TEST_FOLDER / "media")
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = str(TEST_FOLDER / "mail")
# Nothing is collected for tests of pages; test_settings.py tests the collecting.
STORAGES = {
    **production.STORAGES,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Quick to compute: passwords are not what is tested.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
