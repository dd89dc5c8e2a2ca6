import dj_database_url

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.gis", "places"]
DATABASES = {"default": dj_database_url.config(conn_max_age=60, engine="django.contrib.gis.db.backends.postgis")}
