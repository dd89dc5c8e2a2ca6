#!/usr/bin/env python3
"""Versions of the project for the scenarios: a copy of app_src, the overlay's application, and changes by name.

By hand: python -m traffic.versions FOLDER NAME [CHANGE ...], then ansible-playbook ... -e app_source=FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OVERLAY = Path(__file__).parent / "overlay"
LEFT_OUT = shutil.ignore_patterns(".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "var", ".env", "tests")

SETTINGS = """
# --- What the scenarios add ---

INSTALLED_APPS.insert(0, "ledger")
MIDDLEWARE.insert(0, "ledger.middleware.name_release")
ROOT_URLCONF = "ledger.urls"
HEAVY, IO = {"queue": "heavy"}, {"queue": "io"}
CELERY_TASK_ROUTES |= {"ledger.sleep": HEAVY, "ledger.wait": HEAVY, "ledger.kill": HEAVY}
CELERY_TASK_ROUTES |= {"ledger.effect_io": IO}
LEDGER_HEALTH = ""
"""
MIGRATION = """\
from django.db import migrations, models
{before}

class Migration(migrations.Migration):
    dependencies = (("ledger", "{after}"),)
    operations = ({operation},)
"""
FAIL = """

def fail(apps, schema_editor):
    raise RuntimeError("this migration fails on purpose")
"""
COLUMN = 'models.CharField(default="", db_default="", max_length=20)'
NEW_TASK = """

@shared_task(name="ledger.novelty", ignore_result=True)
def novelty() -> None:
    \"\"\"A task that other versions do not know.\"\"\"


OFFERED["ledger.novelty"] = (novelty, lambda args: args == [])
"""
A_MODULE = "a_module_that_is_not_there"
DIES = """

import os
import sys
import threading
import time


def die_when_told() -> None:
    while not os.path.exists(os.path.join(MEDIA_ROOT, "die")):
        time.sleep(0.2)
    os._exit(3)


if "gunicorn" in sys.argv[0] or "worker" in sys.argv:
    threading.Thread(target=die_when_told, daemon=True).start()
"""


BEAT_DIES = """

import os
import sys

if "celery_runner" in sys.argv[0] and "beat" in sys.argv and not os.path.exists(os.path.join(MEDIA_ROOT, "beat-lives")):
    sys.exit("beat ends on purpose")
"""


def append(file: Path, text: str) -> None:
    assert file.is_file(), f"{file} is not there: the version would not be what its name says"
    file.write_text(file.read_text() + text)


def migrate(folder: Path, name: str, operation: str, before: str = "") -> None:
    """Add a migration after the newest one of the overlay; `before` is code that it needs."""
    place = folder / "ledger/migrations"
    after = sorted(place.glob("[0-9]*.py"))[-1].stem
    (place / f"{int(after[:4]) + 1:04d}_{name}.py").write_text(
        MIGRATION.format(after=after, operation=operation, before=before)
    )


def add_column(folder: Path, name: str) -> None:
    """Add a column that the previous release can ignore, and its migration."""
    append(folder / "ledger/models.py", f"    {name} = {COLUMN}\n")
    migrate(folder, name, f'migrations.AddField("effect", "{name}", {COLUMN})')


def failing_migration(folder: Path) -> None:
    """Add a migration that fails after it has changed something."""
    operations = f'migrations.AddField("effect", "half", {COLUMN}), migrations.RunPython(fail)'
    migrate(folder, "fails", operations, before=FAIL)


def new_task(folder: Path) -> None:
    append(folder / "ledger/tasks.py", NEW_TASK)
    append(folder / "core/settings.py", 'CELERY_TASK_ROUTES["ledger.novelty"] = {"queue": "heavy"}\n')


def style(folder: Path) -> None:
    """Change a stylesheet, whose path contains a hash of its content."""
    append(folder / "shop/static/shop/shop.css", "\n/* another */\n")


def import_error(folder: Path) -> None:
    append(folder / "core/urls.py", f"\nimport {A_MODULE}\n")


def import_error_in_web(folder: Path) -> None:
    """Fail in gunicorn only, and in no check before it."""
    append(folder / "core/wsgi.py", f'\nimport sys\n\nif "gunicorn" in sys.argv[0]:\n    import {A_MODULE}\n')


def import_error_in_worker(folder: Path) -> None:
    append(folder / "ledger/tasks.py", f'\nimport sys\n\nif "worker" in sys.argv:\n    import {A_MODULE}\n')


def missing_dependency(folder: Path) -> None:
    """Pin a version of the first package that was never published."""
    file = folder / "requirements.txt"
    lines = file.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if "==" in line and not line.startswith("#"))
    lines[first] = lines[first].replace("==", "==9999.", 1)
    file.write_text("".join(lines))


def health(answer: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        append(folder / "core/settings.py", f'LEDGER_HEALTH = "{answer}"\n')

    return change


def dies_when_told(folder: Path) -> None:
    """End every web and worker process, again and again, while the file `die` is in the folder of uploads."""
    append(folder / "core/settings.py", DIES)


def beat_dies(folder: Path) -> None:
    """End beat, and nothing else, while it loads the application; not if `beat-lives` is in the folder of uploads."""
    append(folder / "core/settings.py", BEAT_DIES)


CHANGES: dict[str, Callable[[Path], None]] = {
    "new-task": new_task,
    "style": style,
    "import-error": import_error,
    "import-error-in-web": import_error_in_web,
    "import-error-in-worker": import_error_in_worker,
    "missing-dependency": missing_dependency,
    "failing-migration": failing_migration,
    "dies-when-told": dies_when_told,
    "beat-dies": beat_dies,
    "health-500": health("500"),
    "health-hangs": health("hangs"),
    "health-names-another": health("names another"),
    "health-500-once-current": health("500 once current"),
}


def make(folder: Path, name: str, *changes: str, source: Path = ROOT / "app_src") -> Path:
    """Make the version of that name (its answers carry it as X-Version) in a new folder, and return the folder.

    The changes are names of CHANGES, and column=NAME for a column that a migration of that name adds. The folder must
    not be one that git ignores: of such a folder the release would be empty.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=LEFT_OUT)
    shutil.copytree(OVERLAY, folder, ignore=LEFT_OUT, dirs_exist_ok=True)
    append(folder / "core/settings.py", SETTINGS)
    (folder / "ledger/version.py").write_text(f'VERSION = "{name}"\n')
    for change in changes:
        word, _, column = change.partition("=")
        if column:
            assert word == "column", f"{change} is no change; there are column=NAME, {', '.join(CHANGES)}"
            add_column(folder, column)
        else:
            CHANGES[change](folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("change", nargs="*", help=f"column=NAME, {', '.join(CHANGES)}")
    chosen = parser.parse_args()
    print(make(chosen.folder, chosen.name, *chosen.change))
