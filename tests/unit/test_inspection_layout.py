"""The inspection finds the parts of a project, and the file of its requirements."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from inspected import MANAGE, PLAIN, SETTINGS, WSGI, inspect, texts, values, with_settings, without


def test_plain_project(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN)
    found = values(report)
    assert found["app_project_dir"] == ""
    assert found["app_settings_module"] == "config.settings"
    assert found["app_wsgi_app"] == "config.wsgi:application"
    assert found["app_celery_app"] == "config"
    assert found["app_requirements"] == "requirements.txt"


def test_project_in_src(tmp_path: Path) -> None:
    files = {f"src/{name}" if name != "requirements.txt" else name: text for name, text in PLAIN.items()}
    found = values(inspect(tmp_path, files))
    assert found["app_project_dir"] == "src"
    assert found["app_settings_module"] == "config.settings"
    assert found["app_requirements"] == "requirements.txt"


@pytest.mark.parametrize("production", ["production", "prod"])
def test_settings_package_prefers_production(tmp_path: Path, production: str) -> None:
    package = {f"config/settings/{name}.py": "from .base import *\n" for name in ("local", "test", production)}
    files = (
        without("config/settings.py")
        | {"config/settings/__init__.py": "", "config/settings/base.py": SETTINGS}
        | package
    )
    files["manage.py"] = MANAGE.replace("config.settings", "config.settings.local")
    files["config/wsgi.py"] = WSGI.replace("config.settings", "config.settings.local")
    assert values(inspect(tmp_path, files))["app_settings_module"] == f"config.settings.{production}"


def test_only_settings_of_development(tmp_path: Path) -> None:
    files = without("config/settings.py") | {"config/settings/__init__.py": "", "config/settings/local.py": ""}
    files["manage.py"] = files["config/wsgi.py"] = MANAGE.replace("config.settings", "config.settings.local")
    assert "settings module for development" in texts(inspect(tmp_path, files), "needs")
    report = inspect(tmp_path, files, app_settings_module="config.settings.local")
    assert "settings module for development" not in texts(report, "needs")


def test_no_manage(tmp_path: Path) -> None:
    report = inspect(tmp_path, {"a.py": ""})
    assert [finding.kind for finding in report.findings] == ["needs"]
    assert "Set app_project_dir in" in report.findings[0].text
    assert "set app_settings_module." in report.findings[0].text


def test_settings_without_manage(tmp_path: Path) -> None:
    """The project's own package, without manage.py: wsgi.py names the settings."""
    report = inspect(tmp_path, without("manage.py") | {"locale/de/LC_MESSAGES/django.po": ""})
    found = values(report)
    assert found["app_settings_module"] == "config.settings"
    assert found["app_wsgi_app"] == "config.wsgi:application"
    assert found["app_build_commands"] == ["python -m django compilemessages"]
    assert "commands run as `python -m django`" in texts(report, "fine", "project")
    assert texts(report, "needs") == ""


def test_settings_of_another_framework_are_no_project(tmp_path: Path) -> None:
    report = inspect(tmp_path, {"settings.py": "import os\n", "app.py": "import flask\n"})
    assert [finding.setting for finding in report.findings] == ["app_project_dir"]


PACKAGE = {
    "app_settings_module": "notes_app.settings",
    "app_wsgi_app": "notes_app.wsgi:application",
    "app_celery_app": "notes_app.celery",
}


@pytest.mark.parametrize("name", ["notes_app==1.0", "Notes.App"])
@pytest.mark.parametrize("project_dir", [{}, {"app_project_dir": ""}], ids=["init", "playbook"])
def test_a_package_among_the_requirements(tmp_path: Path, name: str, project_dir: dict[str, str]) -> None:
    files = {"requirements.txt": f"{name}\ngunicorn\n"}
    report = inspect(tmp_path, files, **PACKAGE, **project_dir)
    assert texts(report, "needs") == ""
    assert PACKAGE.items() <= values(report).items()
    assert "is not inspected here" in texts(report, "decided", "settings")
    assert "URLs of a package are not inspected" in texts(report, "decided", "health")
    # What it requires in its turn is not known here.
    assert "app_extra_requirements" not in values(report)


def test_a_package_may_have_a_longer_name(tmp_path: Path) -> None:
    report = inspect(tmp_path, {"requirements.txt": "notes-app-server\n"}, app_settings_module="server.settings")
    assert "is not inspected here" in texts(report, "decided", "settings")
    needs = texts(report, "needs")
    for name in ("app_wsgi_app", "app_celery_app", "gunicorn"):
        assert name in needs


def test_settings_of_no_requirement_are_a_need(tmp_path: Path) -> None:
    report = inspect(tmp_path, {"requirements.txt": "notes-app\n"}, app_settings_module="core.settings")
    assert "core.settings is neither a module of the project nor of a package" in texts(report, "needs", "settings")


@pytest.mark.parametrize("place", ["", "backend"])
def test_another_folder_with_manage_is_a_need(tmp_path: Path, place: str) -> None:
    files = {f"{place}/{name}".lstrip("/"): text for name, text in PLAIN.items()} | {"web/a.txt": ""}
    report = inspect(tmp_path, files, app_project_dir="web", app_settings_module="config.settings")
    assert [finding.setting for finding in report.findings] == ["app_project_dir"]


def test_the_manage_of_another_project_is_named(tmp_path: Path) -> None:
    """PROJECT is a folder of several projects: the one nearest to the top is taken."""
    files = {f"{name}/{path}": text for name in ("blog", "shop") for path, text in PLAIN.items()}
    report = inspect(tmp_path, files)
    assert values(report)["app_project_dir"] == "blog"
    assert "There is also shop/manage.py: app_project_dir chooses." in texts(report, "fine", "project")
    chosen = inspect(tmp_path, files, app_project_dir="shop")
    assert "There is also" not in texts(chosen, "fine", "project")


@pytest.mark.parametrize(
    ("setting", "name", "subject"),
    [("app_wsgi_app", "config.wsgii:application", "web"), ("app_celery_app", "notes.celery", "celery")],
)
def test_a_misspelt_module_is_a_warning(tmp_path: Path, setting: str, name: str, subject: str) -> None:
    """It is no need: a package of the requirements may have it."""
    report = inspect(tmp_path, PLAIN, **{setting: name})
    assert f"Warning: {setting} names the module {name.partition(':')[0]}" in texts(report, "decided", subject)
    assert texts(report, "fine", subject) == ""


def test_a_module_in_a_folder_that_the_project_adds_is_no_warning(tmp_path: Path) -> None:
    files = PLAIN | {"apps/jobs/tasks.py": "app = make()\n", "apps/jobs/__init__.py": ""}
    files["manage.py"] = MANAGE + 'import sys\nsys.path.append("apps")\n'
    assert "Warning" not in texts(inspect(tmp_path, files, app_celery_app="jobs.tasks"), "decided", "celery")


def test_celery_in_other_module(tmp_path: Path) -> None:
    files = without("config/celery.py") | {"config/jobs.py": "import celery\nqueue = celery.Celery('x')\n"}
    assert values(inspect(tmp_path, files))["app_celery_app"] == "config.jobs:queue"


CLASS = "import celery\nclass Own(celery.Celery):\n    pass\n\napp = Own('config')\n"
FACTORY = "from celery import Celery\n\ndef make(name: str) -> Celery:\n    return Celery(name)\n"


@pytest.mark.parametrize(
    ("files", "application"),
    [
        ({"config/celery.py": CLASS}, "config"),
        ({"config/celery.py": f"{FACTORY}\ncelery_app: Celery = make('config')\n"}, "config"),
        ({"config/worker.py": f"{FACTORY}\nqueue = make('config')\n"}, "config.worker:queue"),
        (
            {"config/factory.py": FACTORY, "notes/jobs.py": "from config import factory\ncelery = factory.make('x')\n"},
            "notes.jobs",
        ),
    ],
)
def test_celery_application_of_a_subclass_or_a_function(
    tmp_path: Path, files: dict[str, str], application: str
) -> None:
    report = inspect(tmp_path, without("config/celery.py", "config/__init__.py") | {"config/__init__.py": ""} | files)
    assert values(report)["app_celery_app"] == application
    assert texts(report, "needs") == ""


@pytest.mark.parametrize("name", ["demo", "docs", "testing", "contrib", "server"])
def test_project_with_a_name_of_something_else(tmp_path: Path, name: str) -> None:
    files = {path.replace("config/", f"{name}/"): text.replace("config.", f"{name}.") for path, text in PLAIN.items()}
    report = inspect(tmp_path, files)
    assert texts(report, "needs") == ""
    found = values(report)
    assert found["app_settings_module"] == f"{name}.settings"
    assert (found["app_wsgi_app"], found["app_celery_app"]) == (f"{name}.wsgi:application", name)


def test_development_settings_of_a_project_named_server(tmp_path: Path) -> None:
    files = {path.replace("config/", "server/"): text.replace("config.", "server.") for path, text in PLAIN.items()}
    settings = files.pop("server/settings.py")
    files["manage.py"] = files["manage.py"].replace("server.settings", "server.settings.local")
    files |= {f"server/settings/{name}.py": settings for name in ("__init__", "local", "production")}
    assert values(inspect(tmp_path, files))["app_settings_module"] == "server.settings.production"


@pytest.mark.parametrize("given", [{}, {"app_project_dir": "demo"}])
def test_project_in_a_folder_named_demo(tmp_path: Path, given: dict[str, str]) -> None:
    report = inspect(tmp_path, {f"demo/{path}": text for path, text in PLAIN.items()}, **given)
    assert texts(report, "needs") == ""
    assert values(report)["app_project_dir"] == "demo"


def test_example_project_beside_the_project_does_not_count(tmp_path: Path) -> None:
    example = {f"example/{path}": text for path, text in PLAIN.items()}
    example |= {"example/notes/apps.py": "", "example/notes/migrations/__init__.py": ""}
    example |= {"example/notes/views.py": 'send.apply_async(queue="no")\n'}
    application = {
        "docs/apps.py": "",
        "docs/migrations/__init__.py": "",
        "docs/views.py": 'f.apply_async(queue="mail")\n',
    }
    report = inspect(tmp_path, PLAIN | example | application)
    assert values(report)["app_project_dir"] == ""
    assert texts(report, "decided", "queues").endswith(": celery (the default queue), mail (docs/views.py).")


def test_settings_module_in_a_comment_is_not_taken(tmp_path: Path) -> None:
    wsgi = '# os.environ["DJANGO_SETTINGS_MODULE"] = "config"\n' + PLAIN["config/wsgi.py"]
    report = inspect(tmp_path, PLAIN | {"config/wsgi.py": wsgi})
    assert values(report)["app_settings_module"] == "config.settings"
    assert "There are also" not in texts(report, "fine")


@pytest.mark.parametrize(
    "line", ['sys.path.insert(0, os.path.join(BASE_DIR, "apps"))', 'sys.path.append(str(BASE_DIR / "apps"))']
)
def test_folder_that_the_settings_add_to_the_path(tmp_path: Path, line: str) -> None:
    files = with_settings(f"import sys\n{line}\n") | {
        "config/urls.py": 'from django.urls import include, path\nurlpatterns = [path("", include("pages.urls"))]\n',
        "apps/pages/__init__.py": "",
        "apps/pages/urls.py": 'from django.urls import path\nurlpatterns = [path("health/", None)]\n',
    }
    assert values(inspect(tmp_path, files))["app_health_path"] == "/health/"


def test_no_celery(tmp_path: Path) -> None:
    assert "No Celery application" in texts(inspect(tmp_path, without("config/celery.py")), "needs")


def test_websockets_need_asgi(tmp_path: Path) -> None:
    asgi = "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({'websocket': x})\n"
    found = values(inspect(tmp_path, PLAIN | {"config/asgi.py": asgi}))
    assert found["app_web"] == {"worker": "asgi"}
    assert found["app_asgi_app"] == "config.asgi:application"


PLAIN_ASGI = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
ROUTING = "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({})\n"


@pytest.mark.parametrize(
    ("files", "settings", "asgi"),
    [
        ({"config/asgi.py": "from .routing import application\n", "config/routing.py": ROUTING}, "", "config.asgi"),
        (
            {
                "config/asgi.py": "from config import routing\napplication = routing.application\n",
                "config/routing.py": ROUTING,
            },
            "",
            "config.asgi",
        ),
        (
            {"config/asgi.py": PLAIN_ASGI, "live/__init__.py": "", "live/routing.py": ROUTING},
            'ASGI_APPLICATION = "live.routing.application"\n',
            "live.routing",
        ),
        ({"config/asgi.py": PLAIN_ASGI}, 'INSTALLED_APPS += ["channels"]\n', "config.asgi"),
        ({"config/asgi.py": PLAIN_ASGI}, 'INSTALLED_APPS += ["daphne"]\n', "config.asgi"),
    ],
    ids=["import", "import-of-module", "setting", "channels", "daphne"],
)
def test_websockets_elsewhere_need_asgi(tmp_path: Path, files: dict[str, str], settings: str, asgi: str) -> None:
    found = values(inspect(tmp_path, with_settings(settings) | files))
    assert found["app_web"]["worker"] == "asgi"
    assert found["app_asgi_app"] == f"{asgi}:application"


@pytest.mark.parametrize("begin", ["async def application(scope, receive, send):", "def app(scope):"])
def test_the_callable_may_be_a_function(tmp_path: Path, begin: str) -> None:
    asgi = f"from x import get\ninner = get()\n\n{begin}\n    return inner(scope)  # for 'websocket', too\n"
    found = values(inspect(tmp_path, PLAIN | {"config/asgi.py": asgi}))
    name = "application" if "application" in begin else "app"
    assert found["app_asgi_app"] == f"config.asgi:{name}"


@pytest.mark.parametrize("web", [{"processes": 4}, {"worker": "auto"}, {"worker": "asgi"}])
def test_asgi_application_that_is_set(tmp_path: Path, web: dict[str, object]) -> None:
    asgi = "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({'websocket': x})\n"
    given = {"app_asgi_app": "config.asgi:application", "app_web": web}
    report = inspect(tmp_path, PLAIN | {"config/asgi.py": asgi}, **given)
    assert texts(report, "needs", "web") == ""
    assert "uvicorn-worker" in str(values(report)["app_extra_requirements"])


def test_websockets_without_asgi_in_the_users_file_are_a_need(tmp_path: Path) -> None:
    asgi = "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({'websocket': x})\n"
    files = PLAIN | {"config/asgi.py": asgi}
    assert "set app_asgi_app to config.asgi:application" in texts(inspect(tmp_path, files, app_name="x"), "needs")
    answered = inspect(tmp_path, files, app_web={"worker": "gthread"})
    assert texts(answered, "needs", "web") == ""


def test_what_is_not_written_is_a_need(tmp_path: Path) -> None:
    """What `make init` would write to the user's file, in a file that a user wrote without it."""
    files = PLAIN | {"requirements.txt": "celery[redis]\ndjango\n"}
    assert texts(inspect(tmp_path, files), "needs") == ""
    needs = texts(inspect(tmp_path, files, app_name="notes"), "needs", "requirements")
    assert "Add gunicorn>=23,<26 to app_extra_requirements in group_vars/ENV/app.yml." in needs
    assert "psycopg" in needs


@pytest.mark.parametrize(("gunicorn", "missing"), [("25.1.0", False), ("27.0.1", False), ("23.0.0", True)])
def test_gunicorn_needs_no_package_for_asgi_from_version_25_on(tmp_path: Path, gunicorn: str, missing: bool) -> None:
    files = PLAIN | {"requirements.txt": f"celery[redis]\ndjango\npsycopg\ngunicorn=={gunicorn}\n"}
    found = values(inspect(tmp_path, files, app_asgi_app="config.asgi:application"))
    assert ("app_extra_requirements" in found) is missing


@pytest.mark.parametrize(
    ("lines", "extra"),
    [
        (["celery[redis]"], None),
        (["celery[redis]>=5.4,<6"], None),
        (["celery[redis]~=5.4"], None),
        (["celery[redis]~=5.4.0"], ["kombu[redis]"]),
        (["celery", "kombu[redis]"], None),
        (["celery==5.4.0", "kombu==5.4.2", "redis==5.0.7"], None),
        # The newest kombu would be installed, which refuses this redis when it connects.
        (["celery==5.4.0", "redis==5.0.7"], ["kombu[redis]"]),
        (["celery[redis]==5.4.0"], ["kombu[redis]"]),
        (["celery", "django-redis"], ["kombu[redis]"]),
        (["celery"], ["celery[redis]"]),
        (["celery==5.4.0"], ["kombu[redis]"]),
    ],
)
def test_redis_fits_kombu(tmp_path: Path, lines: list[str], extra: list[str] | None) -> None:
    files = PLAIN | {"requirements.txt": "\n".join([*lines, "django", "psycopg", "gunicorn"])}
    assert values(inspect(tmp_path, files)).get("app_extra_requirements") == extra


def test_unused_asgi_module_of_startproject(tmp_path: Path) -> None:
    for name in ("config.asgi.application", "elsewhere.application"):
        files = with_settings(f'ASGI_APPLICATION = "{name}"\n') | {"config/asgi.py": PLAIN_ASGI}
        assert "app_web" not in values(inspect(tmp_path, files))


def test_django_configurations(tmp_path: Path) -> None:
    files = dict(PLAIN)
    files["manage.py"] += 'os.environ.setdefault("DJANGO_CONFIGURATION", "Production")\n'
    assert values(inspect(tmp_path, files))["app_environment"] == {"DJANGO_CONFIGURATION": "Production"}


@pytest.mark.parametrize(
    ("file", "text", "command"),
    [
        ("poetry.lock", "", "poetry self add poetry-plugin-export && poetry export --output requirements.txt;"),
        ("Pipfile.lock", "", "pipenv requirements --hash > requirements.txt;"),
        ("pdm.lock", "", "pdm export --prod --output requirements.txt;"),
        ("pyproject.toml", "[project]\nname = 'notes'\n", "uv lock;"),
        ("pyproject.toml", "[tool.poetry.dependencies]\ndjango = '^5'\n", "poetry lock && poetry self add"),
        ("pyproject.toml", "[tool.ruff]\nline-length = 120\n", "pip freeze > requirements.txt;"),
        ("Pipfile", "", "pipenv lock && pipenv requirements --hash > requirements.txt;"),
        ("requirements.in", "django\n", "uv pip compile requirements.in --output-file requirements.txt;"),
        ("setup.cfg", "", "pip freeze > requirements.txt;"),
    ],
)
def test_export_command(tmp_path: Path, file: str, text: str, command: str) -> None:
    report = inspect(tmp_path, without("requirements.txt") | {file: text})
    assert f"Type in the project: {command}" in texts(report, "needs")


def test_requirements_of_production(tmp_path: Path) -> None:
    folder = {
        "requirements/base.txt": "django",
        "requirements/local.txt": "",
        "requirements/production.txt": "-r base.txt",
    }
    assert (
        values(inspect(tmp_path, without("requirements.txt") | folder))["app_requirements"]
        == "requirements/production.txt"
    )


def test_requirements_with_other_names(tmp_path: Path) -> None:
    names = ("requirements/common.txt", "requirements/live.txt", "requirements/test.txt", "docs/notes.txt")
    files = without("requirements.txt") | dict.fromkeys(names, "django\n")
    assert values(inspect(tmp_path, files))["app_requirements"] == "requirements/live.txt"


def test_files_that_git_ignores_do_not_count(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    report = inspect(tmp_path, PLAIN | {".gitignore": "config/settings.py\n"})
    assert "app_settings_module" in [finding.setting for finding in report.findings if finding.kind == "needs"]
