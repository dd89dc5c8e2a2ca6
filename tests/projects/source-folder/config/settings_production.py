# GeoDjango; a further database; whitenoise and django-compressor, as cookiecutter-django combines them, whose folder and URL
# are not those of the environment.
import dj_database_url

from .settings import *  # noqa: F403
from .settings import BASE_DIR, INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.gis", "places", "visits", "compressor"]
DATABASES = {
    "default": dj_database_url.config(conn_max_age=60, engine="django.contrib.gis.db.backends.postgis"),
    "analytics": dj_database_url.config("ANALYTICS_URL", conn_max_age=60),
}
DATABASE_ROUTERS = ["visits.router.Router"]
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
