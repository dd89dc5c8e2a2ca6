"""Where projects collect their static files, as the inspector finds it, and the collecting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BASE = """
SECRET_KEY = "only-for-tests"
INSTALLED_APPS = ["django.contrib.staticfiles"]
STATIC_URL = "static/"
STATICFILES_DIRS = ["files"]
"""
STORAGES = 'STORAGES = {{"staticfiles": {{"BACKEND": "{}", "OPTIONS": {}}}}}'
MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
PLAIN = "django.contrib.staticfiles.storage.StaticFilesStorage"
# Storages without files on this host, as those of S3.
REMOTE = "storages_under_test.Remote"
STORAGE_CLASSES = """
import os
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core.files.base import ContentFile
from django.core.files.storage import Storage

class Remote(Storage):
    files = {}

    def __init__(self, name=""):
        self.name = name

    def exists(self, name):
        return name in self.files

    def _open(self, name, mode="rb"):
        if name not in self.files:
            raise FileNotFoundError(name)
        return ContentFile(self.files[name])

    def _save(self, name, content):
        self.files[name] = content.read()
        return name

class Shared(ManifestFilesMixin, Remote):
    pass

class Own(Shared):
    manifest_name = f"staticfiles-{os.environ.get('RELEASE_ID')}.json"
"""
ASK = """
import json, sys, django
django.setup()
from hostctl.in_app.questions import QUESTIONS
print(json.dumps([QUESTIONS[question]() for question in sys.argv[1:]]))
"""


def ask(folder: Path, settings: str, *questions: str) -> list[dict[str, Any]]:
    (folder / "settings_under_test.py").write_text(BASE + settings)
    (folder / "storages_under_test.py").write_text(STORAGE_CLASSES)
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files/a.css").write_text("body {}")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    command = [sys.executable, "-c", ASK, *questions]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("settings", "folders", "path"),
    [
        ('STATIC_ROOT = "collected"', ["collected"], "static"),
        ('STATIC_ROOT = "/srv/collected"; STATIC_URL = "/my/assets/"', ["/srv/collected"], "my/assets"),
        ('STATIC_ROOT = "collected"; STATIC_URL = "https://cdn.example.org/static/"', ["collected"], "static"),
        ('STATIC_ROOT = "collected"; STATIC_URL = "https://cdn.example.org/"', ["collected"], ""),
        (STORAGES.format(PLAIN, '{"location": "own"}'), ["own"], "static"),
        (STORAGES.format(PLAIN, '{"location": "own"}') + '; STATIC_ROOT = "served"', ["own", "served"], "static"),
        (STORAGES.format(REMOTE, "{}") + '; STATIC_ROOT = "collected"', [], "static"),
    ],
)
def test_folders_and_path(tmp_path: Path, settings: str, folders: list[str], path: str) -> None:
    [found] = ask(tmp_path, settings, "static_files")
    expected = [str(tmp_path / folder) for folder in folders]
    assert found == {"missing": "", "folders": expected, "path": path, "problems": [], "absent": []}


def test_folders_of_static_files_that_do_not_exist(tmp_path: Path) -> None:
    settings = 'STATIC_ROOT = "collected"; STATICFILES_DIRS = ["files", "dist", ("js", "built")]'
    [found] = ask(tmp_path, settings, "static_files")
    assert found["absent"] == ["dist", "built"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [("", "STATIC_ROOT is not set"), ("INSTALLED_APPS = []", "django.contrib.staticfiles is not in INSTALLED_APPS")],
)
def test_projects_without_static_files(tmp_path: Path, settings: str, reason: str) -> None:
    [found] = ask(tmp_path, settings, "static_files")
    assert found["missing"] == reason


@pytest.mark.parametrize(
    ("settings", "path", "folder"),
    [
        ("", "", ""),
        ('MEDIA_URL = "media/"; MEDIA_ROOT = "/srv/media"', "media", "/srv/media"),
        ('MEDIA_URL = "/my/uploads/"; MEDIA_ROOT = "/srv/media"', "my/uploads", "/srv/media"),
        ('MEDIA_URL = "https://cdn.example.org/media/"', "", ""),
        ('MEDIA_URL = "media/"; MEDIA_ROOT = "uploads"', "media", "{release}/uploads"),
        # One that cannot be made fails nothing here.
        ('MEDIA_ROOT = "uploads"; STORAGES = {"default": {"BACKEND": "not.installed"}}', "", ""),
        # What is stored elsewhere has no folder here.
        ('MEDIA_ROOT = "uploads"; STORAGES = {"default": {"BACKEND": "storages_under_test.Remote"}}', "", ""),
        (
            'STORAGES = {"default": {"BACKEND": "django.core.files.storage.FileSystemStorage", '
            '"OPTIONS": {"location": "own"}}}',
            "",
            "{release}/own",
        ),
    ],
)
def test_uploads(tmp_path: Path, settings: str, path: str, folder: str) -> None:
    found = {"path": path, "folder": folder.format(release=tmp_path), "fields": {}, "written": {}}
    assert ask(tmp_path, settings, "media_files") == [found]


def test_folders_that_settings_have_processes_write_to(tmp_path: Path) -> None:
    [found] = ask(tmp_path, 'FILE_UPLOAD_TEMP_DIR = "temporary"', "media_files")
    assert found["written"] == {"FILE_UPLOAD_TEMP_DIR": f"{tmp_path}/temporary"}


MODELS = """
from django.core.files.storage import FileSystemStorage
from django.db import models
from storages_under_test import Remote

class Letter(models.Model):
    scan = models.ImageField()
    text = models.FileField(storage=FileSystemStorage(location="letters/texts"))
    copy = models.FileField(storage=Remote())
"""


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ('MEDIA_ROOT = "/srv/media"', {"{release}/letters/texts": "letters.Letter.text"}),
        ("", {"{release}": "letters.Letter.scan", "{release}/letters/texts": "letters.Letter.text"}),
    ],
)
def test_fields_that_store_files_outside_of_media(tmp_path: Path, settings: str, fields: dict[str, str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/models.py").write_text(MODELS)
    [found] = ask(tmp_path, f'{settings}\nINSTALLED_APPS = ["letters"]', "media_files")
    assert found["fields"] == {folder.format(release=tmp_path): field for folder, field in fields.items()}


def test_a_manifest_that_releases_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEASE_ID", "a-1")
    [found] = ask(tmp_path, STORAGES.format("storages_under_test.Shared", "{}"), "static_files")
    assert "manifest_name = " in found["problems"][0]
    [found] = ask(tmp_path, STORAGES.format("storages_under_test.Own", "{}"), "static_files")
    assert found["problems"] == []


def test_the_overlay_gives_each_release_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEASE_ID", "a-1")
    settings = STORAGES.format("storages_under_test.Shared", '{"name": "files"}')
    overlay = "\nfrom hostctl.in_app import environment\nSTORAGES = environment.storages(STORAGES)\n"
    show = """
import django
django.setup()
from django.contrib.staticfiles.storage import staticfiles_storage as storage
print(storage.manifest_name, storage.__class__.__name__, storage.name)
"""
    [found] = ask(tmp_path, settings + overlay, "static_files")
    assert found["problems"] == []
    command = [sys.executable, "-c", show]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings_under_test"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "staticfiles-a-1.json Shared files\n"


# What static_files.py uses of django-compressor.
COMPRESSOR = {
    "__init__.py": "",
    "exceptions.py": "class OfflineGenerationError(Exception): pass",
    "storage.py": "from django.conf import settings\n"
    "from django.utils.module_loading import import_string\n"
    "default_storage = import_string(settings.COMPRESS_STORAGE)()",
    "management/__init__.py": "",
    "management/commands/__init__.py": "",
    "management/commands/compress.py": """
from compressor.exceptions import OfflineGenerationError
from django.conf import settings
from django.core.management import BaseCommand

class Command(BaseCommand):
    def handle(self, **options):
        if settings.REASON:
            raise OfflineGenerationError(settings.REASON)
""",
}
COMPRESSES = f"""
INSTALLED_APPS += ["compressor"]
STATIC_ROOT = COMPRESS_ROOT = "collected"
COMPRESS_ENABLED, COMPRESS_OFFLINE, COMPRESS_STORAGE = True, False, "{PLAIN}"
COMPRESS_OUTPUT_DIR, COMPRESS_OFFLINE_MANIFEST = "CACHE", "manifest.json"
REASON = ""
"""


@pytest.fixture
def compressor(tmp_path: Path) -> Path:
    """A folder with a project's stand-in for django-compressor."""
    for name, text in COMPRESSOR.items():
        file = tmp_path / "compressor" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ("", True),
        ("COMPRESS_OFFLINE = True", False),
        ("COMPRESS_ENABLED = False", False),
        (f'COMPRESS_STORAGE = "{REMOTE}"', False),
    ],
)
def test_compressing_while_pages_are_served_is_refused(compressor: Path, settings: str, refused: bool) -> None:
    [found] = ask(compressor, COMPRESSES + settings, "static_files")
    assert bool(found["problems"]) is refused
    assert all("Write COMPRESS_OFFLINE = True" in problem for problem in found["problems"])


@pytest.mark.parametrize(
    ("reason", "compressed"), [("", True), ("No 'compress' template tags found in templates.Try", False)]
)
def test_nothing_to_compress_is_no_error(compressor: Path, reason: str, compressed: bool) -> None:
    settings = f'{COMPRESSES}\nCOMPRESS_OFFLINE = True\nREASON = "{reason}"\n'
    assert ask(compressor, settings, "collect_static") == [{"compressed": compressed}]


def test_other_errors_of_the_compressor_are_errors(compressor: Path) -> None:
    settings = f'{COMPRESSES}\nCOMPRESS_OFFLINE = True\nREASON = "Invalid templating engine specified."\n'
    with pytest.raises(subprocess.CalledProcessError):
        ask(compressor, settings, "collect_static")


def test_files_are_collected_with_their_manifest(tmp_path: Path) -> None:
    settings = STORAGES.format(MANIFEST, "{}") + '; STATIC_ROOT = "collected"'
    assert ask(tmp_path, settings, "static_files", "collect_static")[1] == {"compressed": False}
    names = {file.name for file in (tmp_path / "collected").iterdir()}
    assert {"a.css", "staticfiles.json"} < names
    assert len(names) == 3


def test_files_of_a_remote_storage_are_not_collected_here(tmp_path: Path) -> None:
    ask(tmp_path, STORAGES.format(REMOTE, "{}") + '; STATIC_ROOT = "collected"', "collect_static")
    assert not (tmp_path / "collected").exists()
