"""Settings come from the environment; a missing one stops the process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django import Settings

from core import settings as production
from tests.processes import PROJECT

PRODUCTION = {
    "SECRET_KEY": "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "DATABASE_URL": "postgres://shop:p%40ss@127.0.0.1/shop",
    "CELERY_BROKER_URL": "redis://127.0.0.1/0",
    "CACHE_URL": "redis://127.0.0.1/1",
    "ALLOWED_HOSTS": "shop.example.org",
    "DEBUG": "false",
}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in `folder` with this environment only."""
    environment |= {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without .env."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    return shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(".env", ".venv", "var", "__pycache__"))


def setting(project: Path, name: str, **environment: str) -> object:
    """Return the value of a setting in production, with changes to the environment."""
    code = f"import json; from core import settings; print(json.dumps(settings.{name}))"
    result = run(project, "-c", code, **(PRODUCTION | environment))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["SECRET_KEY", "DATABASE_URL", "CELERY_BROKER_URL", "CACHE_URL"])
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "missing"])
def test_without_a_required_variable_nothing_starts_and_the_error_names_it(
    project: Path, name: str, empty: bool
) -> None:
    environment = PRODUCTION | {name: ""}
    if not empty:
        del environment[name]
    result = run(project, "-c", "from core import settings", **environment)
    assert result.returncode != 0
    assert name in result.stderr.strip().splitlines()[-1]


def test_the_former_key_is_a_fallback(project: Path) -> None:
    """Users stay signed in when the key changes; it may contain any character."""
    assert setting(project, "SECRET_KEY_FALLBACKS") == []
    assert setting(project, "SECRET_KEY_FALLBACKS", SECRET_KEY_FALLBACK="for, mer") == ["for, mer"]


def test_production_passes_djangos_deployment_checks(project: Path) -> None:
    result = run(project, "manage.py", "check", "--deploy", "--fail-level", "WARNING", **PRODUCTION)
    assert result.returncode == 0, result.stderr


def test_debug_is_off_unless_asked_for(project: Path) -> None:
    environment = {name: value for name, value in PRODUCTION.items() if name != "DEBUG"}
    result = run(project, "-c", "from core import settings; print(settings.DEBUG)", **environment)
    assert result.stdout.strip() == "False"


def test_only_the_web_has_a_pool_of_connections(project: Path) -> None:
    assert "pool" not in setting(project, "DATABASES['default']['OPTIONS']")
    web = setting(project, "DATABASES['default']", DATABASE_POOL="true")
    assert web["OPTIONS"]["pool"]
    assert web["CONN_MAX_AGE"] == 0
    assert web["PASSWORD"] == "p@ss"


def test_mail_goes_to_the_folder_of_the_url(project: Path) -> None:
    assert setting(project, "EMAIL_FILE_PATH", EMAIL_URL="file:///srv/shop/mail") == "/srv/shop/mail"


def test_mail_goes_to_the_server_of_the_url(project: Path) -> None:
    email = setting(project, "EMAIL", EMAIL_URL="smtp://me%40x:s%3Acret@mail.example.org:587/?tls=true")
    assert (email["EMAIL_HOST"], email["EMAIL_PORT"], email["EMAIL_USE_TLS"]) == ("mail.example.org", 587, True)
    assert (email["EMAIL_HOST_USER"], email["EMAIL_HOST_PASSWORD"]) == ("me@x", "s:cret")


def test_mail_to_nowhere_is_refused(project: Path) -> None:
    result = run(project, "-c", "from core import settings", **PRODUCTION, EMAIL_URL="mail.example.org")
    assert "EMAIL_URL must begin with" in result.stderr.strip().splitlines()[-1]


def test_static_files_have_hashed_names_in_a_manifest_beside_them(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/shop.css").write_text("a {}")
    settings.STATICFILES_DIRS = [tmp_path / "files"]
    settings.STATIC_ROOT = str(tmp_path / "static")
    settings.STORAGES = production.STORAGES
    call_command("collectstatic", interactive=False, verbosity=0, ignore_patterns=["admin"])
    manifest = json.loads((tmp_path / "static/staticfiles.json").read_text())
    name = manifest["paths"]["shop.css"]
    assert name != "shop.css"
    assert (tmp_path / "static" / name).exists()
