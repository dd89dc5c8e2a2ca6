"""Projects for tests of the inspection: files as text, and what is found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugin_utils.inspection import Report, inspect_project

MANAGE = 'import os\nimport django\nos.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")\n'
WSGI = (
    "from django.core.wsgi import get_wsgi_application\n"
    'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")\napplication = get_wsgi_application()\n'
)
CELERY = (
    "from celery import Celery\nfrom django.conf import settings\n"
    'app = Celery("config")\napp.config_from_object("django.conf:settings", namespace="CELERY")\n'
)
SETTINGS = """
import os
from pathlib import Path
import dj_database_url

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ["SECRET_KEY"]
DEBUG = False
ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",")
INSTALLED_APPS = ["django.contrib.staticfiles", "notes"]
ROOT_URLCONF = "config.urls"
DATABASES = {"default": dj_database_url.config(conn_max_age=60)}
STATIC_ROOT = os.environ.get("STATIC_ROOT", str(BASE_DIR / "static"))
MEDIA_ROOT = os.environ.get("MEDIA_ROOT", str(BASE_DIR / "media"))
CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
"""
URLS = """
from django.urls import path
from notes import views
urlpatterns = [path("up", views.up), path("", views.index)]
"""
PLAIN = {
    "manage.py": MANAGE,
    "config/__init__.py": "from .celery import app\n",
    "config/settings.py": SETTINGS,
    "config/urls.py": URLS,
    "config/wsgi.py": WSGI,
    "config/celery.py": CELERY,
    "notes/__init__.py": "",
    "notes/views.py": "",
    "requirements.txt": "django==5.2.*\ncelery[redis]\ngunicorn\npsycopg[binary]\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def inspect(folder: Path, files: dict[str, str], **settings: Any) -> Report:
    """Inspect these files, as `make init` does, or with settings as a playbook does."""
    return inspect_project(write(folder, files), settings, writes=not settings)


def with_settings(text: str, **files: str) -> dict[str, str]:
    """Return the plain project with further lines of settings."""
    return PLAIN | {"config/settings.py": SETTINGS + text} | files


def without(*names: str) -> dict[str, str]:
    return {name: text for name, text in PLAIN.items() if name not in names}


def values(report: Report) -> dict[str, Any]:
    return {name: proposal.value for name, proposal in report.settings.items()}


def texts(report: Report, kind: str, subject: str = "") -> str:
    found = [finding for finding in report.findings if finding.kind == kind and subject in ("", finding.subject)]
    return "\n".join(finding.text for finding in found)
