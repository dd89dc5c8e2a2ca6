"""What settings hard-code, and which variables they read, is found before a deployment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspected import PLAIN, SETTINGS, inspect, texts, values, with_settings, write
from plugin_utils.inspection import inspect_project
from plugin_utils.inspection.project import PROVIDED
from plugin_utils.inspection.report import shown
from plugin_utils.inspection.security import REPLACED
from project import ROOT

TUTORIAL = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "django-insecure-x"
DEBUG = True
ALLOWED_HOSTS = []
INSTALLED_APPS = ["django.contrib.staticfiles"]
ROOT_URLCONF = "config.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
MEDIA_ROOT = BASE_DIR / "media"
CELERY_BROKER_URL = "redis://localhost:6379/0"
"""


def test_plain_project_needs_nothing(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN)
    assert texts(report, "needs") == ""
    assert {finding.subject for finding in report.findings if finding.kind == "decided"} == {"queues", "beat", "mail"}


def test_tutorial_needs_nothing(tmp_path: Path) -> None:
    files = PLAIN | {"config/settings.py": TUTORIAL, "requirements.txt": "Django==5.2.1\ncelery==5.6.0\n"}
    report = inspect(tmp_path, files)
    assert texts(report, "needs") == ""
    decided = texts(report, "decided")
    for words in ("SECRET_KEY is written", "DEBUG is True", "ALLOWED_HOSTS is []", "SQLite", "MEDIA_ROOT is a folder"):
        assert words in decided
    assert "config/settings.py:5" in texts(report, "decided", "debug")
    assert values(report)["app_extra_requirements"] == ["psycopg[binary]>=3.1,<4", "gunicorn>=23,<26", "celery[redis]"]
    assert "Proposed for app_extra_requirements: gunicorn>=23,<26." in texts(report, "decided", "requirements")


def test_overlay_that_is_off_makes_needs(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN | {"config/settings.py": TUTORIAL}, app_settings_overlay="never")
    needs = texts(report, "needs")
    for name in ("SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "DATABASES", "MEDIA_ROOT"):
        assert name in needs


def test_own_names_of_variables_are_mapped(tmp_path: Path) -> None:
    text = """
import environ
env = environ.Env()
SECRET_KEY = env("DJANGO_SECRET_KEY")
DEBUG = env.bool("DJANGO_DEBUG", True)
ALLOWED_HOSTS = env("HOSTS").split()
CSRF_TRUSTED_ORIGINS = env.list("ORIGINS", default=[])
DATABASES = {"default": env.db("PG_URL")}
CELERY_BROKER_URL = env("REDIS_URL") + "?x=1"
MEDIA_ROOT = env("MEDIA")
CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": env("CACHE")}}
"""
    report = inspect(tmp_path, with_settings(text))
    assert texts(report, "needs") == ""
    found = values(report)
    assert found["app_environment"] == {
        "DJANGO_SECRET_KEY": "{{ secret_django_key }}",
        "DJANGO_DEBUG": "false",
        "HOSTS": "{{ certificate_domains | join(' ') }}",
        "ORIGINS": "{{ app_origins | join(',') }}",
        "PG_URL": "{{ app_database_url_runtime }}",
        "REDIS_URL": "{{ app_broker_url_runtime }}",
        "MEDIA": "{{ app_root }}/shared/media",
        "CACHE": "{{ app_cache_url_runtime }}",
    }
    assert found["app_migration_environment"] == {"PG_URL": "{{ app_database_url_owner }}"}
    again = inspect_project(tmp_path, {name: found[name] for name in ("app_environment", "app_migration_environment")})
    assert texts(again, "needs") == ""


def test_variables_to_add_are_yaml(tmp_path: Path) -> None:
    text = 'DEBUG = os.environ.get("DEBUG_ON") != "false"\nSECRET_KEY = os.environ["KEY"]\n'
    files = write(tmp_path, with_settings(text))
    written = values(inspect_project(files, {}, writes=True))["app_environment"]
    needs = texts(inspect_project(files, {}), "needs")
    for name, value in written.items():
        line = re.search(rf"Add ({name}: .*) to app_environment", needs)
        assert line
        assert yaml.safe_load(line[1]) == {name: value}
    assert (written["DEBUG_ON"], written["KEY"]) == ("false", "{{ secret_django_key }}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("shop", "shop"),
        ("smtp://mail:25", "smtp://mail:25"),
        ("false", '"false"'),
        ("3.10", '"3.10"'),
        ("", '""'),
        ("{{ app_name }}", '"{{ app_name }}"'),
        ("a: b", '"a: b"'),
        ("[1]", '"[1]"'),
        (2, "2"),
        (True, "true"),
    ],
)
def test_values_as_yaml(value: Any, text: str) -> None:
    assert shown({"NAME": value}) == f"NAME: {text}"
    assert yaml.safe_load(f"NAME: {text}") == {"NAME": value}


def test_parts_of_the_database_address(tmp_path: Path) -> None:
    text = """
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["DB_NAME"],
    "USER": os.environ.get("DB_USER", "x"), "PASSWORD": os.environ["DB_PASSWORD"], "HOST": os.environ["DB_HOST"]}}
"""
    report = inspect(tmp_path, with_settings(text))
    found = values(report)
    assert found["app_environment"] == {
        "DB_NAME": "{{ app_name }}",
        "DB_USER": "{{ app_database_login }}",
        "DB_PASSWORD": "{{ secret_database_password }}",
        "DB_HOST": "{{ app_database_address }}",
    }
    assert found["app_migration_environment"]["DB_USER"] == "{{ app_name }}_owner"
    assert texts(report, "needs") == ""


def test_engine_that_a_variable_selects(tmp_path: Path) -> None:
    text = """
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DB_NAME", "x.sqlite3")}}
if os.environ.get("DB") == "postgres":
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "HOST": os.environ.get("DB_HOST", "")}}
"""
    found = values(inspect(tmp_path, with_settings(text)))
    assert (
        found["app_environment"] | {"DB": "postgres", "DB_HOST": "{{ app_database_address }}"}
        == found["app_environment"]
    )


PARTS = '"NAME": os.environ.get("DB_NAME"), "USER": os.environ.get("DB_USER")'


@pytest.mark.parametrize(
    ("text", "variable", "word"),
    [
        (
            f'DATABASES = {{"default": {{"ENGINE": os.getenv("DB_ENGINE", "django.db.backends.mysql"), {PARTS}}}}}',
            "DB_ENGINE",
            "django.db.backends.postgresql",
        ),
        (
            "ENGINE = 'django.db.backends.' + os.environ.get('DB_TYPE', 'mysql')\n"
            f'DATABASES = {{"default": {{"ENGINE": ENGINE, {PARTS}}}}}',
            "DB_TYPE",
            "postgresql",
        ),
        (
            f'KNOWN = {{"lite": {{"ENGINE": "django.db.backends.sqlite3"}}, "pg": {{"ENGINE": '
            f'"django.db.backends.postgresql", {PARTS}}}}}\n'
            'DATABASES = {"default": KNOWN[os.environ.get("DB", "lite")]}',
            "DB",
            "pg",
        ),
    ],
)
def test_variable_that_names_the_engine_gets_a_word_that_the_settings_know(
    tmp_path: Path, text: str, variable: str, word: str
) -> None:
    report = inspect(tmp_path, with_settings(f"{text}\n"))
    assert values(report)["app_environment"] == {
        variable: word,
        "DB_NAME": "{{ app_name }}",
        "DB_USER": "{{ app_database_login }}",
    }
    assert texts(report, "needs") == ""


@pytest.mark.parametrize(
    ("parts", "overlay"),
    [
        ('"NAME": "notes", "USER": "notes", "PASSWORD": os.environ["DB_PASSWORD"], "HOST": "db"', "always"),
        ('"NAME": os.environ["DB_NAME"], "USER": "notes", "HOST": os.environ["DB_HOST"]', "always"),
        ('"NAME": os.environ["DB_NAME"], "USER": os.environ["DB_USER"], "PORT": "5432"', None),
        # A server of the user's own.
        ('"NAME": "notes", "USER": "notes", "PASSWORD": os.environ["DB_PASSWORD"], "HOST": "db.example.org"', None),
    ],
)
def test_database_of_which_a_part_is_written_into_the_code(tmp_path: Path, parts: str, overlay: str | None) -> None:
    text = f'DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", {parts}}}}}\n'
    report = inspect(tmp_path, with_settings(text))
    assert values(report).get("app_settings_overlay") == overlay
    assert texts(report, "needs") == ""


@pytest.mark.parametrize(
    ("text", "variable", "word"),
    [
        ("DEBUG = os.environ.get('STAGE', 'dev') == 'dev'", "STAGE", "production"),
        ("DEBUG = os.environ.get('STAGE') != 'live'", "STAGE", "live"),
        ("DEBUG = os.environ.get('MY_DEBUG', '') != 'False'", "MY_DEBUG", "False"),
        ("DEBUG = bool(int(os.environ.get('MY_DEBUG', '1')))", "MY_DEBUG", "0"),
    ],
)
def test_word_that_switches_debug_off(tmp_path: Path, text: str, variable: str, word: str) -> None:
    assert values(inspect(tmp_path, with_settings(f"{text}\n")))["app_environment"] == {variable: word}


def test_sqlite_whose_path_is_a_variable_is_replaced(tmp_path: Path) -> None:
    text = (
        'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DB_PATH", "db")}}\n'
    )
    report = inspect(tmp_path, with_settings(text))
    assert f"DATABASES is a SQLite file (config/settings.py:16): {REPLACED}" in texts(report, "decided", "database")
    assert texts(report, "needs") == ""
    assert "app_environment" not in values(report)


@pytest.mark.parametrize(
    ("settings", "django", "variables"),
    [
        ("CSRF_TRUSTED_ORIGINS = [os.environ['SITE']]", "5.2", {"SITE": "{{ app_origins | first }}"}),
        # Before version 4, names without https://.
        ("CSRF_TRUSTED_ORIGINS = [os.environ['SITE']]", "3.2.25", {"SITE": "{{ certificate_domains | first }}"}),
        (
            "CSRF_TRUSTED_ORIGINS = [f'https://{name}' for name in os.environ['SITES'].split()]",
            "5.2",
            {"SITES": "{{ certificate_domains | join(' ') }}"},
        ),
        ("CSRF_TRUSTED_ORIGINS = os.environ.get('CSRF_TRUSTED_ORIGINS', '').split(',')", "5.2", {}),
        (
            "CSRF_TRUSTED_ORIGINS = os.environ['CSRF_TRUSTED_ORIGINS'].split()",
            "5.2",
            {"CSRF_TRUSTED_ORIGINS": "{{ app_origins | join(' ') }}"},
        ),
        # Seedbed separates names with commas.
        (
            "ALLOWED_HOSTS = os.environ['ALLOWED_HOSTS'].split(' ')",
            "5.2",
            {"ALLOWED_HOSTS": "{{ certificate_domains | join(' ') }}"},
        ),
        ("ALLOWED_HOSTS = [name.strip() for name in os.environ['ALLOWED_HOSTS'].split(',')]", "5.2", {}),
    ],
)
def test_variables_of_names_and_origins(tmp_path: Path, settings: str, django: str, variables: dict[str, str]) -> None:
    requirements = PLAIN["requirements.txt"].replace("5.2.*", django)
    report = inspect(tmp_path, with_settings(f"{settings}\n", **{"requirements.txt": requirements}))
    assert values(report).get("app_environment", {}) == variables
    assert texts(report, "needs") == ""


def test_variables_without_a_value_are_listed_with_their_place(tmp_path: Path) -> None:
    files = with_settings('STRIPE = os.environ["STRIPE_KEY"]\nMAPS = os.environ.get("MAPS_KEY")\n')
    files |= {".env.example": "STRIPE_KEY=sk_test\n"}
    needs = texts(inspect(tmp_path, files), "needs", "environment")
    line = (SETTINGS + "x").count("\n") + 1
    assert f"STRIPE_KEY is read without a default (config/settings.py:{line})" in needs
    assert ".env.example" in needs
    assert "MAPS_KEY" not in needs
    assert texts(inspect(tmp_path, files, app_environment={"STRIPE_KEY": "x"}), "needs") == ""


def test_further_database(tmp_path: Path) -> None:
    files = with_settings('DATABASES["logs"] = dj_database_url.parse(os.environ["LOGS_URL"])\n')
    report = inspect(tmp_path, files)
    assert texts(report, "needs") == ""
    found = values(report)
    assert found["app_databases"] == [{"name": "logs", "environment": "LOGS_URL"}]
    # In a file that was written by hand.
    missing = texts(inspect(tmp_path, files, app_name="notes"), "needs", "database")
    assert "Add {name: logs, environment: LOGS_URL} to app_databases in group_vars/ENV/app.yml" in missing
    own = [{"name": "logs", "environment": "LOGS_URL", "extensions": ["citext"]}]
    assert texts(inspect(tmp_path, files, app_databases=own), "needs") == ""
    assert texts(inspect(tmp_path, files, app_environment={"LOGS_URL": "postgresql://db/logs"}), "needs") == ""


@pytest.mark.parametrize(
    "settings",
    [
        'DATABASES["logs"] = {"ENGINE": "django.db.backends.postgresql", "HOST": "localhost"}\n',
        'DATABASES["logs"] = {"ENGINE": "django.db.backends.postgresql", "HOST": os.environ["LOGS_HOST"]}\n',
    ],
    ids=["in the code", "in parts"],
)
def test_further_database_without_a_url(tmp_path: Path, settings: str) -> None:
    needs = texts(inspect(tmp_path, with_settings(settings)), "needs", "database")
    assert "app_databases: [{name: logs, environment: LOGS_URL}]" in needs


def test_further_database_on_a_server_of_its_own(tmp_path: Path) -> None:
    text = 'DATABASES["legacy"] = {"ENGINE": "django.db.backends.mysql", "HOST": "db.example.org", "NAME": "x"}\n'
    report = inspect(tmp_path, with_settings(text))
    assert texts(report, "needs") == ""
    assert "legacy" in texts(report, "decided", "database")


def test_extensions_of_a_managed_database(tmp_path: Path) -> None:
    text = (
        'INSTALLED_APPS += ["django.contrib.gis"]\n'
        'DATABASES = {"default": dj_database_url.config(engine="django.contrib.gis.db.backends.postgis")}\n'
    )
    given = {"app_database_url": "postgresql://a:b@db.example.org/x", "app_database_extensions": []}
    assert texts(inspect(tmp_path, with_settings(text), **given), "needs") == ""


def test_media_folder_of_the_installation(tmp_path: Path) -> None:
    files = with_settings('MEDIA_ROOT = "/srv/notes/shared/media"\n')
    assert texts(inspect(tmp_path, files, app_settings_overlay="never", app_name="notes"), "needs") == ""
    assert "MEDIA_ROOT" in texts(inspect(tmp_path, files, app_settings_overlay="never", app_name="other"), "needs")


@pytest.mark.parametrize(
    ("folder", "needed"),
    [("media", True), ("/tmp/media", True), ("/data/media", True), ("/data/kept/a", False),
     ("/srv/notes/shared/media", False), ("{{ app_root }}/shared/media", False)],
)  # fmt: skip
def test_media_folder_by_a_variable_of_the_user(tmp_path: Path, folder: str, needed: bool) -> None:
    files = with_settings('MEDIA_ROOT = os.environ["MEDIA"]\n')
    given = {"app_name": "notes", "app_sandbox": {"read_write_paths": ["/data/kept"]}}
    report = inspect(tmp_path, files, app_environment={"MEDIA": folder}, **given)
    assert (f"MEDIA_ROOT is {folder} by MEDIA" in texts(report, "needs", "media")) is needed


def test_media_that_get_lost_at_a_restart_are_replaced(tmp_path: Path) -> None:
    report = inspect(tmp_path, with_settings('MEDIA_ROOT = "/tmp/media"\n'))
    assert "MEDIA_ROOT is /tmp/media, where files get lost" in texts(report, "decided", "media")


@pytest.mark.parametrize("name", ["MEDIA_ROOT", "OTHER"])
def test_models_that_store_files_without_a_folder_are_named(tmp_path: Path, name: str) -> None:
    """It is empty, or not set at all."""
    text = PLAIN["config/settings.py"].replace("MEDIA_ROOT = os.environ.get", "OTHER = os.environ.get")
    files = PLAIN | {"config/settings.py": f'{text}{name} = ""\n'}
    model = "from django.db import models\n\n\nclass A(models.Model):\n    file = models.FileField()\n"
    assert texts(inspect(tmp_path, files), "decided", "media") == ""
    warning = texts(inspect(tmp_path, files | {"notes/models.py": model}), "decided", "media")
    assert "Warning: notes/models.py stores uploads, and MEDIA_ROOT is not set" in warning


def test_geodjango(tmp_path: Path) -> None:
    text = 'INSTALLED_APPS += ["django.contrib.gis"]\n'
    report = inspect(tmp_path, with_settings(text))
    assert values(report)["app_database_extensions"] == ["postgis"]
    assert "gdal-bin" in values(report)["app_system_packages"]
    assert "engine=" in texts(report, "needs", "database")
    engine = 'DATABASES = {"default": dj_database_url.config(engine="django.contrib.gis.db.backends.postgis")}\n'
    assert texts(inspect(tmp_path, with_settings(text + engine)), "needs") == ""


@pytest.mark.parametrize("name", ['BASE_DIR / "app.log"', '"logs/app.log"', '"/var/log/notes.log"'])
def test_logging_to_a_file(tmp_path: Path, name: str) -> None:
    text = f'LOGGING = {{"handlers": {{"file": {{"class": "logging.FileHandler", "filename": {name}}}}}}}\n'
    files = with_settings(text)
    assert "writes to" in texts(inspect(tmp_path, files), "decided", "logging")
    assert "stderr" in texts(inspect(tmp_path, files, app_settings_overlay="never"), "needs", "logging").replace(
        "Log to", "log to"
    )


def test_ignored_settings_that_are_imported(tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    files = with_settings("from .local_settings import *\n") | {"config/local_settings.py": "MOTTO = 1\n"}
    report = inspect(tmp_path, files | {".gitignore": "config/local_settings.py\n"})
    assert "app_files" in texts(report, "needs", "files")
    answered = inspect(tmp_path, files, app_files={"config/local_settings.py": {"src": "x"}})
    assert texts(answered, "needs") == ""


def test_settings_that_are_computed(tmp_path: Path) -> None:
    write(tmp_path, PLAIN | {"config/settings.py": "from lib import load\nload(globals())\n"})
    assert "computes its settings" in texts(inspect_project(tmp_path, {}), "fine", "settings")


def test_settings_with_a_syntax_error_are_a_warning_with_the_line(tmp_path: Path) -> None:
    """It is no need: a newer Python than that of this machine may accept them."""
    report = inspect(tmp_path, {**PLAIN, "config/settings.py": "DEBUG = False\nALLOWED_HOSTS = [\n"})
    assert "Warning: config/settings.py:2 is no valid Python" in texts(report, "decided", "settings")
    assert "computes" not in texts(report, "fine")


def test_a_settings_module_that_does_not_exist_is_not_fine(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN, app_settings_module="config.setings")
    assert "config.setings is not a module of the project" in texts(report, "needs", "settings")
    assert texts(report, "fine", "settings") == ""


def test_url_that_the_settings_split(tmp_path: Path) -> None:
    text = """
from urllib.parse import urlsplit
url = urlsplit(os.environ["PG_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username,
    "PASSWORD": url.password, "HOST": url.hostname, "PORT": url.port}}
ALLOWED_HOSTS = [os.environ["SITE_HOST"]]
"""
    report = inspect(tmp_path, with_settings(text))
    assert values(report)["app_environment"] == {
        "PG_URL": "{{ app_database_url_runtime }}",
        "SITE_HOST": "{{ certificate_domains | first }}",
    }
    assert texts(report, "needs") == ""


def test_variables_of_a_file_of_the_project(tmp_path: Path) -> None:
    text = 'from dotenv import load_dotenv\nload_dotenv(BASE_DIR / "prod.env")\nKEY = os.environ["MAPS_KEY"]\n'
    assert "MAPS_KEY" in texts(inspect(tmp_path, with_settings(text)), "needs")
    assert texts(inspect(tmp_path, with_settings(text), app_files={".env": {"src": "x"}}), "needs") == ""
    assert texts(inspect(tmp_path, with_settings(text) | {"prod.env": "export MAPS_KEY='x'\n"}), "needs") == ""


@pytest.mark.parametrize(
    "reader",
    [
        "import environ\nenviron.Env.read_env(BASE_DIR / 'prod.env')",
        "from environs import Env\nEnv().read_env('prod.env')",
    ],
)
def test_file_that_an_env_object_reads(tmp_path: Path, reader: str) -> None:
    files = with_settings(f'{reader}\nKEY = os.environ["MAPS_KEY"]\n') | {"prod.env": "MAPS_KEY=x\n"}
    assert texts(inspect(tmp_path, files), "needs") == ""


def test_variable_that_only_one_branch_reads(tmp_path: Path) -> None:
    text = 'import socket\nif socket.gethostname() == "a":\n    KEY = os.environ["MAPS_KEY"]\n'
    assert texts(inspect(tmp_path, with_settings(text)), "needs") == ""


def test_classes_of_django_configurations(tmp_path: Path) -> None:
    settings = """
from configurations import Configuration, values
class Base(Configuration):
    INSTALLED_APPS = ["notes"]
    ROOT_URLCONF = "config.urls"
    SECRET_KEY = values.SecretValue()
    DATABASES = values.DatabaseURLValue()
class Staging(Base):
    STAGING_KEY = values.SecretValue()
class Production(Base):
    DEBUG = False
    MAPS_KEY = values.SecretValue()
    CELERY_BROKER_URL = values.Value("redis://localhost", environ_prefix=None)
"""
    files = PLAIN | {"config/settings.py": settings}
    files["manage.py"] += 'os.environ.setdefault("DJANGO_CONFIGURATION", "Production")\n'
    report = inspect(tmp_path, files)
    assert values(report)["app_environment"]["DJANGO_SECRET_KEY"] == "{{ secret_django_key }}"
    assert "DJANGO_MAPS_KEY" in texts(report, "needs")
    assert "STAGING" not in texts(report, "needs")
    assert "DATABASE_URL" in texts(report, "fine", "database")
    assert "CELERY_BROKER_URL" in texts(report, "fine", "broker")


def test_uploads_in_other_storage(tmp_path: Path) -> None:
    text = 'MEDIA_ROOT = BASE_DIR / "media"\nSTORAGES = {"default": {"BACKEND": "storages.backends.s3.S3Storage"}}\n'
    assert "S3Storage" in texts(inspect(tmp_path, with_settings(text)), "fine", "media")


@pytest.mark.parametrize("start", ["import environs\nenv = environs.Env()", "from environs import env"])
@pytest.mark.parametrize("name", ["", " as env"])
def test_prefixes_of_environs(tmp_path: Path, start: str, name: str) -> None:
    text = f"""
{start}
with env.prefixed("NOTES_"){name}:
    KEY = env("KEY")
    with env.prefixed("MAPS_"){name}:
        MAPS = env.str("KEY")
OTHER = env("OTHER")
"""
    needs = texts(inspect(tmp_path, with_settings(text)), "needs", "environment")
    assert [line.partition(" ")[0] for line in needs.splitlines()] == ["NOTES_KEY", "NOTES_MAPS_KEY", "OTHER"]


def test_urls_in_the_code_are_no_variables(tmp_path: Path) -> None:
    text = 'import environ\nenv = environ.Env()\nOTHER = env.db_url_config("sqlite:///x")\n'
    assert texts(inspect(tmp_path, with_settings(text)), "needs") == ""


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("PRIVATE_ROOT", {}, False),
        ("MAPS_KEY", {}, True),
        # Set during a rotation of the secrets only.
        ("SECRET_KEY_FALLBACK", {}, True),
        ("STATS_URL", {"app_databases": [{"name": "stats", "environment": "STATS_URL"}]}, False),
    ],
)
def test_variables_that_a_release_has(tmp_path: Path, name: str, settings: dict[str, Any], needed: bool) -> None:
    report = inspect(tmp_path, with_settings(f'X = os.environ["{name}"]\n'), **settings)
    assert (f"{name} is read without a default" in texts(report, "needs")) is needed


def test_provided_variables_are_those_that_the_wiring_sets() -> None:
    text = yaml.safe_load((ROOT / "group_vars/all/wiring.yml").read_text())["runtime_environment"]
    always, _, sometimes = text.partition("combine")
    set_by_wiring = set(re.findall(r"'([A-Z_]+)':", always))
    assert re.findall(r"'([A-Z_]+)':", sometimes) == ["SECRET_KEY_FALLBACK"]
    # By hostctl/deploy/build.py for each release, and by systemd.
    others = {"STATIC_ROOT", "STATIC_MANIFEST_ROOT", "RELEASE_ID", "HOME", "PATH", "USER", "LANG"}
    assert set(PROVIDED) | {"DJANGO_SETTINGS_MODULE"} == set_by_wiring | others


@pytest.mark.parametrize("url", ["db+sqlite:///results.sqlite", "file://results"])
def test_results_in_a_file_of_the_release(tmp_path: Path, url: str) -> None:
    report = inspect(tmp_path, with_settings(f'CELERY_RESULT_BACKEND = "{url}"\n'))
    assert "CELERY_RESULT_BACKEND is a file in the release" in texts(report, "decided", "results")
    elsewhere = with_settings('CELERY_RESULT_BACKEND = "db+sqlite:////srv/data/results.sqlite"\n')
    assert texts(inspect(tmp_path, elsewhere), "decided", "results") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "are sent to port 25 of the server itself"),
        ("DEBUG = True\n", "become files in /srv/NAME/shared/mail. Set app_email_url in group_vars/ENV/app.yml"),
        ('EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"\n', "are printed to the log"),
        ('X = os.environ["EMAIL_URL"]\n', "become files in /srv/NAME/shared/mail. Set app_email_url"),
        ('EMAIL_HOST = os.environ.get("MAIL_HOST", "localhost")\n', "Set MAIL_HOST in app_environment"),
    ],
)
def test_project_without_a_mail_server(tmp_path: Path, text: str, says: str) -> None:
    found = texts(inspect(tmp_path, with_settings(text)), "decided", "mail")
    assert found.startswith("No mail server is set: messages ")
    assert says in found


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {"app_email_url": "smtp://mail.example.org"}),
        ('X = os.environ["EMAIL_URL"]\n', {"app_environment": {"EMAIL_URL": "smtp://mail.example.org"}}),
        ('EMAIL_HOST = "mail.example.org"\n', {}),
        ('EMAIL_HOST = os.environ["MAIL_HOST"]\n', {}),
        ('EMAIL_BACKEND = "anymail.backends.mailgun.EmailBackend"\n', {}),
    ],
)
def test_project_with_a_mail_server(tmp_path: Path, text: str, settings: dict[str, Any]) -> None:
    assert texts(inspect(tmp_path, with_settings(text), **settings), "decided", "mail") == ""


def test_channels_without_a_layer_are_named(tmp_path: Path) -> None:
    for settings, named in (("", True), ("CHANNEL_LAYERS = {}\n", False)):
        text = with_settings(f'INSTALLED_APPS = ["channels"]\n{settings}')
        assert ("CHANNEL_LAYERS is not set" in texts(inspect(tmp_path / str(named), text), "decided")) is named


WRAPPER = """
from django.core.exceptions import ImproperlyConfigured
def get(name, default=None):
    try:
        return os.environ[name]
    except KeyError:
        if default is not None:
            return default
        raise ImproperlyConfigured(name)
"""


def test_default_of_a_function_of_the_project(tmp_path: Path) -> None:
    text = f"{WRAPPER}ONE = get('ONE')\nTWO = get('TWO', 'x')\nSECRET_KEY = get('KEY')\n"
    report = inspect(tmp_path, with_settings(text))
    assert re.findall(r"(\w+) is read without", texts(report, "needs")) == ["ONE"]
    assert values(report)["app_environment"] == {"KEY": "{{ secret_django_key }}"}


@pytest.mark.parametrize(
    ("file", "text", "needed"),
    [
        ("config/celery.py", 'DSN = os.environ["DSN"]\n', True),
        ("config/wsgi.py", 'DSN = os.environ["DSN"]\n', True),
        ("config/celery.py", 'DSN = os.environ.get("DSN")\n', False),
        ("config/celery.py", 'def connect():\n    return os.environ["DSN"]\n', False),
    ],
)
def test_variable_that_celery_or_wsgi_reads(tmp_path: Path, file: str, text: str, needed: bool) -> None:
    needs = texts(inspect(tmp_path, PLAIN | {file: f"import os\n{PLAIN[file]}{text}"}), "needs", "environment")
    assert (f"DSN is read without a default ({file}:" in needs) == needed


@pytest.mark.parametrize(
    ("file", "app", "text", "needed"),
    [
        ("notes/models.py", "notes", 'DSN = os.environ["DSN"]', True),
        ("notes/models.py", "notes.apps.NotesConfig", 'DSN = os.environ["DSN"]', True),
        ("notes/apps.py", "notes.apps.NotesConfig", 'class NotesConfig:\n    dsn = os.environ["DSN"]', True),
        ("config/urls.py", "notes", 'urlpatterns = []\nDSN = os.environ["DSN"]', True),
        ("notes/models.py", "notes", "from config.settings import X\nif X:\n    DSN = os.environ['DSN']", False),
        ("notes/models.py", "other", 'DSN = os.environ["DSN"]', False),
        ("notes/models.py", "notes", 'def dsn():\n    return os.environ["DSN"]', False),
        ("notes/management/commands/x.py", "notes", 'DSN = os.environ["DSN"]', False),
    ],
)
def test_variable_that_an_application_reads(tmp_path: Path, file: str, app: str, text: str, needed: bool) -> None:
    files = with_settings(f'INSTALLED_APPS = ["django.contrib.staticfiles", "{app}"]\n')
    needs = texts(inspect(tmp_path, files | {file: f"import os\n{text}\n"}), "needs")
    assert (f"DSN is read without a default ({file}:" in needs) == needed
    assert bool(needs) == needed


def test_variable_of_an_application_that_may_not_be_installed(tmp_path: Path) -> None:
    text = "import socket\nif socket.gethostname() == 'a':\n    INSTALLED_APPS = INSTALLED_APPS + ['more']\n"
    more = {"more/__init__.py": "", "more/models.py": 'import os\nDSN = os.environ["DSN"]\n'}
    assert texts(inspect(tmp_path, with_settings(text) | more), "needs") == ""


def test_database_of_the_branch_without_debug(tmp_path: Path) -> None:
    text = """
DEBUG = os.environ.get("DEBUG", "1") == "1"
if DEBUG:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db"}}
else:
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"], "PASSWORD": os.environ["PGPASSWORD"], "HOST": os.environ["PGHOST"]}}
"""
    report = inspect(tmp_path, with_settings(text))
    assert texts(report, "needs") == ""
    assert "SQLite" not in texts(report, "decided")
    assert set(values(report)["app_environment"]) == {"DEBUG", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGHOST"}


@pytest.mark.parametrize(
    ("cookie", "settings", "needed"),
    [
        ("example.com", {"app_domain": "notes.example.org"}, True),
        (".example.org", {"app_domain": "notes.example.org"}, False),
        ("notes.example.org", {"app_domain": "notes.example.org"}, False),
        ("otes.example.org", {"app_domain": "notes.example.org"}, True),
        ("example.com", {"app_domain": "notes.example.org", "app_domain_aliases": ["www.example.com"]}, False),
    ],
)
def test_cookies_of_another_domain(tmp_path: Path, cookie: str, settings: dict[str, Any], needed: bool) -> None:
    report = inspect(tmp_path, with_settings(f'SESSION_COOKIE_DOMAIN = "{cookie}"\n'), **settings)
    assert ("SESSION_COOKIE_DOMAIN is" in texts(report, "needs", "cookies")) == needed


def test_cookies_of_a_domain_by_a_variable(tmp_path: Path) -> None:
    text = 'DOMAIN = os.environ["DOMAIN"]\nALLOWED_HOSTS = [DOMAIN]\nSESSION_COOKIE_DOMAIN = DOMAIN\n'
    report = inspect_project(write(tmp_path, with_settings(text)), {"app_domain": "notes.example.org"}, writes=True)
    assert texts(report, "needs") == ""


def test_cache_in_a_table_of_the_database(tmp_path: Path) -> None:
    text = 'CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}\n'
    words = "the table cache of the database, which no migration creates"
    assert words in texts(inspect(tmp_path, with_settings(text)), "decided", "cache")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://guest:guest@rabbit:5672//", "So Redis is the broker, not amqp"),
        ("sqs://", "So Redis is the broker, not sqs"),
        ("redis://:x@redis.example.org:6379/0", "To use redis.example.org, set app_broker_url"),
        ("redis://localhost:6379/0", None),
        ("redis://127.0.0.1:6379/0", None),
    ],
)
def test_broker_that_is_written_into_the_code(tmp_path: Path, url: str, words: str | None) -> None:
    text = texts(inspect(tmp_path, with_settings(f'CELERY_BROKER_URL = "{url}"\n')), "decided", "broker")
    assert text.startswith("Warning") == bool(words)
    assert (words or "prefers to the setting") in text


def test_redirect_to_https_needs_no_header(tmp_path: Path) -> None:
    """gunicorn knows by nginx's X-Forwarded-Proto that the request was secure."""
    report = inspect(tmp_path, with_settings("SECURE_SSL_REDIRECT = True\n"))
    assert texts(report, "needs") == ""


@pytest.mark.parametrize(("backend", "mapped"), [("redis.RedisCache", True), ("memcached.PyMemcacheCache", False)])
def test_variable_of_memcached_does_not_get_the_url_of_redis(tmp_path: Path, backend: str, mapped: bool) -> None:
    text = (
        f'CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.{backend}", '
        '"LOCATION": os.environ.get("CACHE_SERVER", "127.0.0.1:11211")}}\n'
    )
    report = inspect(tmp_path, with_settings(text))
    assert ("CACHE_SERVER" in values(report).get("app_environment", {})) == mapped
    assert values(report).get("app_settings_overlay") == (None if mapped else "always")
    own = {"app_environment": {"CACHE_SERVER": "cache.example.org"}}
    again = inspect(tmp_path, with_settings(text), **own)
    assert texts(again, "needs") == ""
    assert "CACHE_SERVER" in texts(again, "fine", "cache")


PYDANTIC = """
from typing import Optional
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

class Base(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NOTES_")
    secret_key: SecretStr

class Env(Base):
    debug: bool = True
    hosts: list[str] = []
    database: str = Field(validation_alias="PG_URL")
    stripe_key: str
    maps_key: Optional[str] = None

env = Env()
"""


def test_fields_of_pydantic(tmp_path: Path) -> None:
    text = """
import dj_database_url
from config.env import env
SECRET_KEY = env.secret_key.get_secret_value()
DEBUG = env.debug
ALLOWED_HOSTS = env.hosts
DATABASES = {"default": dj_database_url.parse(env.database)}
"""
    report = inspect(tmp_path, with_settings(text, **{"config/env.py": PYDANTIC}))
    assert values(report)["app_environment"] == {
        "NOTES_SECRET_KEY": "{{ secret_django_key }}",
        "NOTES_DEBUG": "false",
        "NOTES_HOSTS": "{{ certificate_domains | to_json }}",
        "PG_URL": "{{ app_database_url_runtime }}",
    }
    needs = texts(report, "needs")
    assert "NOTES_STRIPE_KEY is read without a default (config/env.py:14)" in needs
    assert "MAPS_KEY" not in needs


def test_files_that_split_settings_includes(tmp_path: Path) -> None:
    main = """
import os
from split_settings.tools import include, optional
include("parts/base.py", "parts/c*.py", f"environments/{os.environ.get('STAGE') or 'production'}.py")
include(optional("environments/local.py"))
"""
    files = {
        "config/settings/__init__.py": main,
        "config/settings/parts/base.py": SETTINGS,
        "config/settings/parts/celery.py": 'CELERY_TASK_DEFAULT_QUEUE = "jobs"\n',
        "config/settings/parts/tests.py": "DEBUG = True\n",
        "config/settings/environments/production.py": "KEY = os.environ['KEY']\n",
    }
    report = inspect(tmp_path, {k: v for k, v in PLAIN.items() if k != "config/settings.py"} | files)
    assert "KEY is read without a default (config/settings/environments/production.py:1)" in texts(report, "needs")
    assert "jobs (the default queue)" in texts(report, "decided", "queues")
    assert "DEBUG is off" in texts(report, "fine")


def test_settings_that_dynaconf_replaces_are_left_to_the_host(tmp_path: Path) -> None:
    text = "import dynaconf\nsettings = dynaconf.DjangoDynaconf(__name__)\n"
    fine = texts(inspect(tmp_path, with_settings(text)), "fine")
    assert "computes its settings; the host checks them" in fine
    assert "DEBUG" not in fine


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ('if not os.environ.get("DSN"):\n    raise RuntimeError("DSN")\n', True),
        ('DSN = os.getenv("DSN")\nif DSN is None:\n    raise RuntimeError("DSN")\n', True),
        ('DSN = os.getenv("DSN")\nif DEBUG and not DSN:\n    raise RuntimeError("DSN")\n', False),
        ('DSN = os.getenv("DSN")\nif DSN:\n    raise RuntimeError("DSN")\n', False),
        ('if not os.getenv("DSN"):\n    DSN = ""\n', False),
    ],
)
def test_variable_without_which_the_settings_raise(tmp_path: Path, text: str, needed: bool) -> None:
    assert ("DSN is read" in texts(inspect(tmp_path, with_settings(text)), "needs")) == needed


def cache(address: str) -> str:
    return f'{{"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://{address}"}}'


def layer(hosts: str) -> str:
    return f'{{"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {{"hosts": [{hosts}]}}}}'


@pytest.mark.parametrize(
    ("name", "aliases", "named"),
    [
        ("CACHES", {"default": cache("localhost/2")}, ["CACHES"]),
        ("CACHES", {"default": '{"BACKEND": "x.LocMemCache"}', "a": cache("redis")}, ['CACHES["a"]']),
        ("CACHES", {"default": 'env.cache_url("CACHE_URL")', "a": cache("redis")}, ['CACHES["a"]']),
        ("CACHES", {"default": cache("redis"), "a": '{"LOCATION": os.environ["A"]}'}, ["CACHES"]),
        ("CACHES", {"a": cache("cache.example.org")}, []),
        ("CACHES", {"default": cache("[2001:db8::1]")}, []),
        ("CHANNEL_LAYERS", {"default": layer('("redis", 6379)')}, ["CHANNEL_LAYERS"]),
        ("CHANNEL_LAYERS", {"default": layer('("10.0.0.5", 6379)')}, []),
        ("CHANNEL_LAYERS", {"default": layer('"redis://127.0.0.1/3"')}, ["CHANNEL_LAYERS"]),
        ("CHANNEL_LAYERS", {"default": layer('os.environ["A"]'), "chat": layer("")}, ['CHANNEL_LAYERS["chat"]']),
    ],
)
def test_each_cache_and_layer_is_judged_as_by_the_overlay(
    tmp_path: Path, name: str, aliases: dict[str, str], named: list[str]
) -> None:
    entries = ", ".join(f'"{alias}": {value}' for alias, value in aliases.items())
    code = f"import environ\nenv = environ.Env()\n{name} = {{{entries}}}\n"
    report = inspect(tmp_path, with_settings(code), app_environment={"A": "redis://a.example.org"})
    lines = texts(report, "decided").splitlines()
    assert [line.partition(" is ")[0] for line in lines if line.startswith(name) and REPLACED in line] == named


def test_mysql_is_answered_with_what_to_do(tmp_path: Path) -> None:
    mysql = with_settings('DATABASES = {"default": {"ENGINE": "django.db.backends.mysql", "HOST": "db.example.org"}}\n')
    needs = texts(inspect(tmp_path, mysql), "needs", "database")
    assert "DATABASES is for MySQL" in needs
    assert "app_settings_overlay: always" in needs
    report = inspect(tmp_path, mysql, app_settings_overlay="always")
    assert texts(report, "needs", "database") == ""
    assert "copy the data into it" in texts(report, "decided", "database")


@pytest.mark.parametrize("line", ['os.environ["SITE"] = "one"', 'os.environ.setdefault("SITE", "one")'])
def test_a_variable_that_only_some_processes_set_is_proposed(tmp_path: Path, line: str) -> None:
    files = with_settings('SITE = os.environ["SITE"]\n')
    files["manage.py"] += f"{line}\n"
    report = inspect(tmp_path, files)
    assert values(report)["app_environment"] == {"SITE": "one"}
    assert "read without a default" not in texts(report, "needs")


@pytest.mark.parametrize(
    "condition",
    ['"test" in sys.argv', 'len(sys.argv) > 1 and sys.argv[1] == "test"', '"pytest" in sys.modules',
     'sys.argv[1:2] == ["test"]', 'sys.argv[0].endswith("pytest")'],
)  # fmt: skip
def test_settings_of_tests_do_not_count(tmp_path: Path, condition: str) -> None:
    block = f'import sys\nif {condition}:\n    DATABASES = {{"default": {{"ENGINE": "django.db.backends.mysql"}}}}\n'
    report = inspect(tmp_path, with_settings(block))
    assert "MySQL" not in texts(report, "decided") + texts(report, "needs")
    assert "DATABASES" in texts(report, "fine")


def test_a_further_sqlite_database_is_a_finding(tmp_path: Path) -> None:
    line = 'DATABASES["logs"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "logs.sqlite3"}\n'
    assert "further database, logs" in texts(inspect(tmp_path, with_settings(line)), "needs")
