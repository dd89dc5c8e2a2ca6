"""Ask an application what only its own interpreter knows; APP-release runs this with the release's Python.

    check WSGI CELERY              import what the services will, run Django's checks, collect static files
    migrations                     the migrations that the database still lacks
    ping CELERY SECONDS WORKER...  which of the workers do not answer

The last line of the output is the answer as JSON. Exits with 1 and the reason when the application is at fault.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

# Django's own manage.py does the same: the project's folder is where its modules are.
sys.path[0] = str(Path.cwd())


def check(wsgi: str, celery: str) -> dict[str, Any]:
    """Import the WSGI callable and the Celery application, run the checks, put static files in place."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    call_command("check", "--deploy", "--fail-level", "ERROR")
    module, _, name = wsgi.partition(":")
    getattr(importlib.import_module(module), name or "application")
    find_celery(celery)
    if settings.STATIC_ROOT:
        call_command("collectstatic", "--noinput", verbosity=0)
    packages = [name for name in ("django", "celery", "gunicorn") if installed(name)]
    return {"versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}}


def migrations() -> dict[str, Any]:
    """Name the migrations that would be applied now."""
    import django
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    django.setup()
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return {"pending": [f"{migration.app_label}.{migration.name}" for migration, _ in plan]}


def ping(celery: str, seconds: str, *workers: str) -> dict[str, Any]:
    """Ping workers until all have answered or the time is over; name the silent ones."""
    application = find_celery(celery)
    deadline = time.monotonic() + float(seconds)
    silent = set(workers)
    while silent and time.monotonic() < deadline:
        answers = application.control.ping(destination=sorted(silent), timeout=0.5, limit=len(silent))
        silent -= {name for answer in answers for name in answer}
    return {"silent": sorted(silent)}


def find_celery(name: str) -> Any:
    """The Celery application, found the way `celery -A` finds it."""
    from celery.app.utils import find_app

    return find_app(name)


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    question, *rest = sys.argv[1:]
    answer = {"check": check, "migrations": migrations, "ping": ping}[question](*rest)
    print(json.dumps(answer))
