"""settings_probe.py and overlay.py with real projects: what follows the environment, what the generated module sets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "SECRET_KEY": "of-the-environment",
    "ALLOWED_HOSTS": "shop.example.org",
    "CSRF_TRUSTED_ORIGINS": "https://shop.example.org",
    "DATABASE_URL": "postgresql://shop:pw@127.0.0.1:5432/shop",
    "CELERY_BROKER_URL": "redis://shop:pw@127.0.0.1:6379/0",
    "CACHE_URL": "redis://shop:pw@127.0.0.1:6380/0",
    "EMAIL_URL": "file:///srv/mail",
    "DEFAULT_FROM_EMAIL": "shop@example.org",
    "STATIC_ROOT": "/srv/static",
    "MEDIA_ROOT": "/srv/media",
}
CELERY = """
from celery import Celery
app = Celery("config", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
"""
SHOW = """
import json
import django
django.setup()
from django.conf import settings
from config import settings as module
from config.celery import app
names = "SECRET_KEY ALLOWED_HOSTS DEBUG STATIC_ROOT DATABASES CSRF_TRUSTED_ORIGINS EMAIL_FILE_PATH".split()
found = {name: getattr(settings, name) for name in names}
print(json.dumps(found | {"broker": app.conf.broker_url, "results": app.conf.result_backend, "module": module.DEBUG}))
"""


@dataclass
class Sample:
    """A project in a folder, with the environment of a release."""

    folder: Path

    def run(self, *words: str, text: str = "", **variables: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", **VARIABLES, **variables}
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, input=text, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def ask(self, mode: str = "auto", **variables: str) -> dict[str, Any]:
        names = ["shop.example.org"]
        asked = [mode, "config.settings", "config.wsgi:application", "config", names, str(self.folder)]
        question = json.dumps(["settings_overlay", *asked, sorted(VARIABLES | variables)])
        answer = self.run(str(ROOT / "hostctl/in_app/inspector.py"), text=question, **variables)
        return json.loads(answer)["answer"]

    def change(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(*layers: str) -> Sample:
        for layer in layers:
            shutil.copytree(ROOT / "tests/projects" / layer, tmp_path / "project", dirs_exist_ok=True)
        return Sample(tmp_path / "project")

    return make


@pytest.mark.core
def test_a_tutorial_project_gets_everything_from_the_environment(make: Any, tmp_path: Path) -> None:
    sample = make("plain", "tutorial")
    (sample.folder / "config/celery.py").write_text(CELERY)
    answer = sample.ask()
    assert answer["problems"] == answer["warnings"] == []
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/seedbed_settings.py").write_text(answer["text"])
    variables = {"DJANGO_SETTINGS_MODULE": "seedbed_settings", "PYTHONPATH": f"{tmp_path / 'lib'}:{ROOT}"}
    found = json.loads(sample.run("-c", SHOW, **variables))
    database = found.pop("DATABASES")["default"]
    assert (database["ENGINE"], database["HOST"]) == ("django.db.backends.postgresql", "127.0.0.1")
    assert found == {
        "SECRET_KEY": "of-the-environment",
        "ALLOWED_HOSTS": ["shop.example.org"],
        "DEBUG": False,
        "STATIC_ROOT": "/srv/static",
        "CSRF_TRUSTED_ORIGINS": ["https://shop.example.org"],
        "EMAIL_FILE_PATH": "/srv/mail",
        "broker": VARIABLES["CELERY_BROKER_URL"],
        "results": VARIABLES["CELERY_BROKER_URL"],
        "module": False,
    }


def test_a_project_that_reads_the_environment_is_left_alone(make: Any) -> None:
    assert make("plain").ask() == {"text": "", "names": [], "problems": [], "warnings": []}


def test_a_further_cache_is_replaced_where_only_it_is_hard_coded(make: Any) -> None:
    sample = make("plain")
    cache = '{"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": %s}'
    with (sample.folder / "config/settings.py").open("a") as settings:
        default, sessions = cache % 'os.environ["CACHE_URL"]', cache % '"redis://localhost:6379/2"'
        settings.write(f'CACHES = {{"default": {default}, "sessions": {sessions}}}\n')
    answer = sample.ask()
    assert "CACHES" in answer["names"]
    assert "['sessions'])" in answer["text"]


def test_every_redis_of_the_developer_is_replaced(make: Any) -> None:
    sample = make("plain")
    (sample.folder / "config/celery.py").write_text(f'{CELERY}app.config_from_object("django.conf:settings")\n')
    layer = '{"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [("127.0.0.1", 6379)]}}'
    with (sample.folder / "config/settings.py").open("a") as settings:
        settings.write(f'CHANNEL_LAYERS = {{"default": {layer}}}\nINSTALLED_APPS += ["constance"]\n')
    answer = sample.ask()
    # Without a setting of its own, RedBeat would use the broker that is written into celery.py.
    assert {"CHANNEL_LAYERS", "CONSTANCE_REDIS_CONNECTION", "REDBEAT_REDIS_URL"} <= set(answer["names"])
    show = """
from django.conf import settings
from redbeat.schedulers import ensure_conf
from config.celery import app
print([settings.CHANNEL_LAYERS["default"]["CONFIG"], settings.CONSTANCE_REDIS_CONNECTION, ensure_conf(app).redis_url])
"""
    (sample.folder / "seedbed_settings.py").write_text(answer["text"])
    variables = {"DJANGO_SETTINGS_MODULE": "seedbed_settings", "PYTHONPATH": str(ROOT)}
    broker = VARIABLES["CELERY_BROKER_URL"]
    expected = [{"hosts": [VARIABLES["CACHE_URL"]]}, broker, broker]
    assert sample.run("-c", show, **variables) == f"{expected}\n"


def test_a_variable_of_the_user_counts_as_the_environment(make: Any) -> None:
    sample = make("plain")
    sample.change("config/settings.py", 'os.environ["SECRET_KEY"]', 'os.environ["MY_KEY"]')
    assert sample.ask(MY_KEY="mine")["names"] == []


def test_settings_that_take_few_values_are_compared_with_seedbeds_variables(make: Any) -> None:
    sample = make("plain")
    sample.change("config/settings.py", "DEBUG = False", 'DEBUG = {"on": True, "of": False}[os.environ["MODE"]]')
    assert sample.ask(MODE="of") == {"text": "", "names": [], "problems": [], "warnings": []}


def test_without_an_overlay_what_must_not_go_live_is_refused(make: Any) -> None:
    answer = make("plain", "tutorial").ask("never")
    assert answer["text"] == ""
    assert [problem.partition(" ")[0] for problem in answer["problems"]] == ["DEBUG", "SECRET_KEY", "ALLOWED_HOSTS"]


def test_a_project_for_mysql_starts_on_an_empty_database_only_on_demand(make: Any) -> None:
    sample = make("plain")
    engine = '{"default": {"ENGINE": "django.db.backends.mysql", "HOST": "db.example.org", "NAME": "notes"}}'
    sample.change("config/settings.py", "dj_database_url.config(conn_max_age=60)}", f"0}}\nDATABASES = {engine}")
    [problem] = sample.ask()["problems"]
    assert "app_settings_overlay: always" in problem
    answer = sample.ask("always")
    assert answer["problems"] == []
    assert "DATABASES" in answer["names"]
    assert sample.ask("never")["problems"] == [], "it is used as it is"


def test_a_file_that_assigns_the_settings_module_is_named(make: Any) -> None:
    sample = make("plain", "tutorial")
    sample.change(
        "config/wsgi.py",
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")',
        'os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"',
    )
    [problem] = sample.ask()["problems"]
    assert problem.startswith("config/wsgi.py assigns DJANGO_SETTINGS_MODULE")


def test_settings_that_cannot_be_loaded_are_left_to_the_check(make: Any) -> None:
    sample = make("plain")
    sample.change("config/settings.py", "DEBUG = False", "DEBUG = missing")
    assert sample.ask() == {"text": "", "names": [], "problems": [], "warnings": []}


# --- The first administrator

SUPERUSER = ["DJANGO_SUPERUSER_EMAIL", "DJANGO_SUPERUSER_PASSWORD", "DJANGO_SUPERUSER_USERNAME"]
USER = """

from django.contrib.auth.models import AbstractUser


class Member(AbstractUser):
    phone = models.TextField()
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = ["phone"]
    email = models.EmailField(unique=True)
"""


@pytest.fixture
def with_database(make: Any, tmp_path: Path) -> Any:
    """A project with tables in a file; `ask` returns the answer about its administrator."""
    sample = make("plain")
    file = {"DATABASE_URL": f"sqlite:///{tmp_path / 'database'}"}

    def ask(names: list[str]) -> dict[str, Any]:
        sample.run("manage.py", "migrate", "--run-syncdb", "-v0", **file)
        question = json.dumps(["administrator", names])
        return json.loads(sample.run(str(ROOT / "hostctl/in_app/inspector.py"), text=question, **file))["answer"]

    return sample, ask, file


def test_createsuperuser_creates_the_first_superuser_only(with_database: Any) -> None:
    sample, ask, file = with_database
    answer = ask(SUPERUSER)
    assert answer == {"command": ["createsuperuser", "--noinput"], "reason": "", "line": "", "superusers": []}
    values = dict.fromkeys(SUPERUSER, "ada@example.org")
    sample.run("manage.py", *answer["command"], **file, **values)
    assert ask(SUPERUSER) == {"command": [], "reason": "", "line": "", "superusers": ["ada@example.org"]}


def test_a_command_of_the_project_takes_precedence(with_database: Any) -> None:
    sample, ask, _ = with_database
    folder = sample.folder / "notes/management/commands"
    folder.mkdir(parents=True)
    (folder / "ensure_admin.py").touch()
    assert ask(SUPERUSER)["command"] == ["ensure_admin"]


def test_fields_that_the_user_model_requires_are_named(with_database: Any) -> None:
    sample, ask, _ = with_database
    shutil.rmtree(sample.folder / "notes/migrations")
    with (sample.folder / "notes/models.py").open("a") as models:
        models.write(USER)
    with (sample.folder / "config/settings.py").open("a") as settings:
        settings.write('AUTH_USER_MODEL = "notes.Member"\n')
    answer = ask(SUPERUSER)
    assert answer["command"] == []
    assert answer["reason"] == "Member also needs DJANGO_SUPERUSER_PHONE"
    assert answer["line"] == "app_migration_environment: {DJANGO_SUPERUSER_PHONE: ...}"
    assert ask([*SUPERUSER, "DJANGO_SUPERUSER_PHONE"])["command"] == ["createsuperuser", "--noinput"]


def test_a_project_without_users_has_no_administrator(with_database: Any) -> None:
    sample, ask, _ = with_database
    (sample.folder / "config/urls.py").write_text("urlpatterns = []\n")
    with (sample.folder / "config/settings.py").open("a") as settings:
        settings.write('INSTALLED_APPS = ["notes"]\nMIDDLEWARE = []\n')
    answer = ask(SUPERUSER)
    assert (answer["command"], answer["reason"]) == ([], "the project does not use django.contrib.auth")
