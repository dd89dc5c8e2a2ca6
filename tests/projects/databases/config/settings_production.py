import dj_database_url

from .settings import *  # noqa: F403
from .settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "visits"]
DATABASES = {**DATABASES, "analytics": dj_database_url.config("ANALYTICS_URL", conn_max_age=60)}
DATABASE_ROUTERS = ["visits.router.Router"]
