# whitenoise and django-compressor, as cookiecutter-django combines them; folder and URL are not those of the environment.
from .settings import *  # noqa: F403
from .settings import BASE_DIR, INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "compressor"]
MIDDLEWARE = [MIDDLEWARE[0], "whitenoise.middleware.WhiteNoiseMiddleware", *MIDDLEWARE[1:]]
STATIC_URL = "/assets/"
STATIC_ROOT = BASE_DIR / "collected"
# What `npm run build` writes.
STATICFILES_DIRS = [BASE_DIR / "built"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "compressor.finders.CompressorFinder",
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
COMPRESS_OFFLINE = True
LANGUAGE_CODE = "de"
LOCALE_PATHS = [BASE_DIR / "locale"]
