"""The connections to databases that the inspector tries in the step check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = """
SECRET_KEY = "only-for-tests"
DATABASES = {}
"""
ASK = """
import sys
import django
django.setup()
from hostctl.in_app.questions import reach_databases
for warning in reach_databases({required}):
    print("Warning:", warning, file=sys.stderr)
"""
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/database"}
# Nothing listens on this port.
AWAY = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "reports",
    "USER": "reader",
    "HOST": "127.0.0.1",
    "PORT": 1,
}


def reach(folder: Path, databases: dict[str, Any], *required: str) -> str:
    """Return the error or the warnings; "" without any."""
    (folder / "settings_under_test.py").write_text(SETTINGS.format(databases))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    code = ASK.format(required=("default", *required))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    return done.stderr


@pytest.mark.parametrize("databases", [{}, {"default": SQLITE}, {"default": {}, "other": SQLITE}])
def test_projects_without_postgresql(tmp_path: Path, databases: dict[str, Any]) -> None:
    assert reach(tmp_path, databases) == ""


def test_a_database_without_an_answer_is_named(tmp_path: Path) -> None:
    text = "no connection to the database of DATABASES['reports'], reports as reader on 127.0.0.1: "
    error = reach(tmp_path, {"default": SQLITE, "reports": AWAY}, "reports").splitlines()[-1]
    assert error.startswith(f"django.db.utils.OperationalError: {text}")
    # One that is neither the default nor in app_databases may be optional.
    [warning] = reach(tmp_path, {"default": SQLITE, "reports": AWAY}).splitlines()
    assert warning.startswith(f"Warning: There is {text}")
    assert "OperationalError" in reach(tmp_path, {"default": AWAY})


def test_the_login_of_the_settings_is_tried(tmp_path: Path) -> None:
    url = urlsplit(os.environ["DATABASE_URL"])
    login = {"USER": unquote(url.username or ""), "PASSWORD": unquote(url.password or "")}
    place = {"NAME": url.path[1:], "HOST": unquote(url.hostname or ""), "PORT": url.port or ""}
    assert reach(tmp_path, {"default": AWAY | place | login}) == ""
    assert "as stranger on" in reach(tmp_path, {"default": AWAY | place | {"USER": "stranger", "PASSWORD": "wrong"}})
