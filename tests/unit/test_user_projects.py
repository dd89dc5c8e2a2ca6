"""The projects of the scenario `projects`: what `make init` says of each, without a host."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from user_projects import PROJECTS, Project

# The layers of each project, and the settings that `make init` must write for it.
INITIALIZED = {
    "": {"app_beat": False, "app_health_path": "/up", "app_requirements": "requirements.txt"},
    "asgi": {"app_asgi_app": "config.asgi:application"},
    "configurations no-health-page": {"app_environment": {"DJANGO_CONFIGURATION": "Production"}},
    "geo databases static-one source-folder": {
        "app_build_commands": ["npm ci", "npm run build", "python manage.py compilemessages"],
        "app_database_extensions": ["postgis"],
        "app_databases": [{"name": "analytics", "environment": "ANALYTICS_URL"}],
    },
    "tutorial": {"app_extra_requirements": ["psycopg[binary]>=3.1,<4", "gunicorn>=23,<26"]},
}


@pytest.mark.parametrize("layers", INITIALIZED)
def test_the_projects_need_nothing_of_the_user(layers: str, tmp_path: Path) -> None:
    project = Project(None, SimpleNamespace(name="shop", address="203.0.113.10"), None, tmp_path)
    source = project.source(*layers.split())
    settings = project.init(source)
    assert "Needs you" not in project.listing, project.listing
    assert INITIALIZED[layers].items() <= settings.items()
    answers = {"app_name": "shop", "app_domain": "203.0.113.10", "app_source": str(source)}
    assert answers.items() <= settings.items()


@pytest.mark.parametrize("file", [path for path in PROJECTS.rglob("*") if "lock" in path.name], ids=str)
def test_lock_files_name_no_package_index(file: Path) -> None:
    assert not re.search("https?:", file.read_text())
