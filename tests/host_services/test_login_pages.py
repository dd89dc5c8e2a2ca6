"""The login pages that the inspector finds in a project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APPS = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "messages", "sessions")]
SETTINGS = """
SECRET_KEY = "only-for-tests"
INSTALLED_APPS = {apps}
ROOT_URLCONF = "{urls}"
LOGIN_URL = "{login}"
"""
URLS = """
from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.urls import path

staff = admin.AdminSite("staff")
urlpatterns = [
    path("secret/", admin.site.urls),
    path("staff/", staff.urls),
    path("enter/", LoginView.as_view(), name="enter"),
]
"""
URLS_WITHOUT_ADMIN = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("enter/", HttpResponse)]
"""
ASK = """
import json, django
django.setup()
from hostctl.in_app.questions import login_pages
print(json.dumps(login_pages()))
"""


@pytest.mark.parametrize(
    ("apps", "urls", "login", "pages"),
    [
        (APPS, "urls_under_test", "enter", ["/enter/", "/secret/login/", "/staff/login/"]),
        (APPS, "urls_under_test", "/enter/", ["/enter/", "/secret/login/", "/staff/login/"]),
        # Django's default, which this project does not have; and the page of another site.
        (APPS, "urls_under_test", "/accounts/login/", ["/secret/login/", "/staff/login/"]),
        (APPS, "urls_under_test", "https://sso.example.org/login", ["/secret/login/", "/staff/login/"]),
        (APPS, "gone", "/enter/", []),
        ([], "urls_without_admin", "/enter/", ["/enter/"]),
    ],
)
def test_login_pages(tmp_path: Path, apps: list[str], urls: str, login: str, pages: list[str]) -> None:
    (tmp_path / "settings_under_test.py").write_text(SETTINGS.format(apps=apps, urls=urls, login=login))
    (tmp_path / "urls_under_test.py").write_text(URLS)
    (tmp_path / "urls_without_admin.py").write_text(URLS_WITHOUT_ADMIN)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pages
