"""GeoDjango with its packages under src/, pyproject.toml and uv.lock, without manage.py and without a schedule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from user_projects import Project


def move_and_lock(folder: Path) -> None:
    """Move the packages into src/, remove manage.py, and replace requirements.txt by uv.lock.

    The lock is not kept with the project, since it names the package index of the machine that it is made on.
    """
    (folder / "src").mkdir()
    for name in ("config", "notes", "places"):
        (folder / name).rename(folder / "src" / name)
    (folder / "manage.py").unlink()
    (folder / "requirements.txt").unlink()
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {"UV_SYSTEM_CERTS": "true"}
    subprocess.run([str(uv), "lock", "--quiet"], cwd=folder, env=environment, check=True)


def test_geodjango_in_a_source_folder_with_uv_lock(project: Project) -> None:
    host, name = project.host, project.app.name
    project.site(project.source("source-folder", "geo", prepare=move_and_lock)).succeeded()
    assert "The project has no schedule, so it gets no beat." in " ".join(project.listing.split())
    assert "Django's commands run as `python -m django`" in " ".join(project.listing.split())
    assert "0001_initial" in host.check_output(f"{name}ctl manage showmigrations places")
    visitor = project.visitor()
    assert visitor.get("/").json == {"version": "one", "notes": []}
    assert visitor.get("/static/notes/a.css").status == 200
    project.writes_notes("first")

    assert visitor.get("/near?x=13.4&y=52.5").json == {"places": [[13.4, 52.5, 0]]}
    berlin, paris = visitor.get("/near?x=2.35&y=48.86").json["places"]
    assert berlin[:2] == [13.4, 52.5]
    assert 850 < berlin[2] < 900, "kilometers, which PostGIS computes"
    assert paris == [2.35, 48.86, 0]

    assert {one["process"] for one in project.deployments.status()["running"]} == {"web", "worker-main"}
    assert not host.service(f"{name}-beat").is_running
    assert host.run(f"pgrep -u {name} -f 'celery.* beat'").stdout == ""
