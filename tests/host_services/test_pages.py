"""The login pages and the admin site that the inspector finds in a project."""

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
URLS_WITH_STATUS = """
from django.http import HttpResponse
from django.urls import include, path, re_path

urlpatterns = [
    path("status/<int:number>/", HttpResponse),
    path("ops/", include([path("health", HttpResponse), path("state/", include([path("a/", HttpResponse)]))])),
    re_path(r"^old/?$", HttpResponse),
    path("api/<path:rest>", HttpResponse),
    path("<slug:page>/", HttpResponse),
    path("<path:anything>", HttpResponse),
]
"""
ASK_BELOW = """
import json, sys, django
django.setup()
from hostctl.in_app.questions import pages_below
print(json.dumps(pages_below(*sys.argv[1:])["paths"]))
"""
ASK = """
import json, django
django.setup()
from hostctl.in_app.questions import admin_page, login_pages
print(json.dumps([login_pages(), admin_page()]))
"""


@pytest.mark.parametrize(
    ("apps", "urls", "login", "pages", "admin"),
    [
        (APPS, "urls_under_test", "enter", ["/enter/", "/secret/login/", "/staff/login/"], "/secret/"),
        (APPS, "urls_under_test", "/enter/", ["/enter/", "/secret/login/", "/staff/login/"], "/secret/"),
        # Django's default, which this project does not have; and the page of another site.
        (APPS, "urls_under_test", "/accounts/login/", ["/secret/login/", "/staff/login/"], "/secret/"),
        (APPS, "urls_under_test", "https://sso.example.org/login", ["/secret/login/", "/staff/login/"], "/secret/"),
        (APPS, "urls_without_admin", "/enter/", ["/enter/"], ""),
        (APPS, "gone", "/enter/", [], ""),
        ([], "urls_without_admin", "/enter/", ["/enter/"], ""),
    ],
)
def test_pages(tmp_path: Path, apps: list[str], urls: str, login: str, pages: list[str], admin: str) -> None:
    (tmp_path / "settings_under_test.py").write_text(SETTINGS.format(apps=apps, urls=urls, login=login))
    (tmp_path / "urls_under_test.py").write_text(URLS)
    (tmp_path / "urls_without_admin.py").write_text(URLS_WITHOUT_ADMIN)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [pages, admin]


@pytest.mark.parametrize(
    ("urls", "asked", "found"),
    [
        # A page with its slash and without, some below, and in an include.
        (
            URLS_WITH_STATUS,
            ["/old/", "/status/", "/ops/", "/ops/health/"],
            ["/old/", "/status/", "/ops/", "/ops/health/"],
        ),
        (URLS_WITH_STATUS, ["/ops/state/", "/ops/state/a/", "/ops/s/"], ["/ops/state/", "/ops/state/a/"]),
        # Patterns for any name, and no page.
        (URLS_WITH_STATUS, ["/flower/", "/flower/deep/", "/statu/", "/api/status/"], []),
        (URLS, ["/status/", "/enter/"], ["/enter/"]),
        ("urlpatterns = []", ["/status/"], []),
    ],
)
def test_pages_below_a_path(tmp_path: Path, urls: str, asked: list[str], found: list[str]) -> None:
    (tmp_path / "settings_under_test.py").write_text(SETTINGS.format(apps=APPS, urls="urls_under_test", login="/"))
    (tmp_path / "urls_under_test.py").write_text(urls)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    command = [sys.executable, "-c", ASK_BELOW, *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found
