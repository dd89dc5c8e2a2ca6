"""GeoDjango with its packages under src/, pyproject.toml and uv.lock, without manage.py and without a schedule.

Its build makes files (npm, translations, django-compressor; whitenoise, a URL of its own): each release has its own.
It has two databases: both are created, migrated by their owner, and compared with a release.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from probes import Visitor, wait_for
from user_projects import Project

# Asks the application itself, without nginx.
GET = """python3 -c 'import http.client, socket
connection = http.client.HTTPConnection("{app.address}")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/srv/{app.name}/current/run/web.sock")
connection.request("GET", "{path}", headers={{"X-Forwarded-Proto": "https"}})
print(connection.getresponse().read())'"""


TABLES = "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
MIGRATIONS = "SELECT app || '.' || name FROM django_migrations WHERE app = 'visits' ORDER BY 1"


def move_and_lock(folder: Path) -> None:
    """Move the packages into src/, remove manage.py, and replace requirements.txt by uv.lock.

    The lock is not kept with the project, since it names the package index of the machine that it is made on.
    """
    (folder / "src").mkdir()
    for name in ("config", "locale", "notes", "places", "templates", "visits"):
        (folder / name).rename(folder / "src" / name)
    (folder / "manage.py").unlink()
    (folder / "requirements.txt").unlink()
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {"UV_SYSTEM_CERTS": "true"}
    subprocess.run([str(uv), "lock", "--quiet"], cwd=folder, env=environment, check=True)


def query(project: Project, database: str, sql: str) -> list[str]:
    """Return the lines that a database answers to its superuser."""
    psql = f"cd / && runuser -u postgres -- psql --no-psqlrc -tA -v ON_ERROR_STOP=1 -d {database} -c"
    return project.host.check_output(f"{psql} {shlex.quote(sql)}").split()


def assets(visitor: Visitor) -> list[str]:
    """Return the addresses of the page's style sheets. Each file of the page is there, and its text is translated."""
    page = visitor.get("/page")
    assert page.status == 200, page.body
    found = re.findall(r'href="(/assets/notes/[ab]\.[0-9a-f]{12}\.css)"', page.body)
    assert len(found) == 1, page.body
    assert "<style" in page.body, "what is compressed offline"
    assert "<h1>Guten Tag</h1>" in page.body, "what compilemessages has compiled"
    (script,) = re.findall(r'src="(/assets/main\.[0-9a-f]{12}\.js)"', page.body)
    assert "built by node v" in visitor.get(script).body
    for asset in found:
        assert "immutable" in visitor.get(asset).headers["Cache-Control"]
    return found


def is_as_the_project_says(project: Project) -> None:
    """Without manage.py and beat, and with PostGIS."""
    host, name, visitor = project.host, project.app.name, project.visitor()
    assert "The project has no schedule, so it gets no beat." in " ".join(project.listing.split())
    assert "Django's commands run as `python -m django`" in " ".join(project.listing.split())
    assert "0001_initial" in host.check_output(f"{name}ctl manage showmigrations places")
    assert visitor.get("/").json == {"version": "one", "notes": []}

    assert visitor.get("/near?x=13.4&y=52.5").json == {"places": [[13.4, 52.5, 0]]}
    berlin, paris = visitor.get("/near?x=2.35&y=48.86").json["places"]
    assert berlin[:2] == [13.4, 52.5]
    assert 850 < berlin[2] < 900, "kilometers, which PostGIS computes"
    assert paris == [2.35, 48.86, 0]

    assert {one["process"] for one in project.deployments.status()["running"]} == {"web", "worker-main"}
    assert not host.service(f"{name}-beat").is_running
    assert host.run(f"pgrep -u {name} -f 'celery.* beat'").stdout == ""


def test_each_release_with_its_own_files_and_both_databases(project: Project) -> None:
    host, deployments, name = project.host, project.deployments, project.app.name
    layers = ("geo", "databases", "static-one", "source-folder")
    changed = (*layers, "databases-two", "static-two")
    broken = project.source(*changed, "static-broken", prepare=move_and_lock)
    project.site(project.source(*layers, prepare=move_and_lock)).succeeded()
    assert project.settings["app_databases"] == [{"name": "analytics", "environment": "ANALYTICS_URL"}]
    is_as_the_project_says(project)
    visitor, one = project.visitor(), deployments.current
    first = assets(visitor)
    assert visitor.get("/static/notes/a.css").status == 404
    assert "green" in host.check_output(GET.format(app=project.app, path=first[0])), "whitenoise serves it too"
    project.writes_notes("first")
    assert visitor.get("/visit?page=a").json == {"visits": ["a"]}
    owner = f"{name}_owner"
    assert query(project, f"{name}_analytics", TABLES) == [f"django_migrations|{owner}", f"visits_visit|{owner}"]
    assert f"notes_note|{owner}" in query(project, name, TABLES)
    assert f"visits_visit|{owner}" not in query(project, name, TABLES)

    # Other files, and a migration of the second database. (Django records it in both.)
    deployments.deploy(project.source(*changed, prepare=move_and_lock)).succeeded()
    two, second = deployments.current, assets(visitor)
    assert two != one
    assert second != first
    assert visitor.get(first[0]).body == "body { color: green; }\n", "a page of the first release asks for it"
    assert visitor.get("/visit?page=b").json == {"visits": [["a", None], ["b", "lynx"]]}
    assert query(project, f"{name}_analytics", MIGRATIONS) == ["visits.0001_initial", "visits.0002_browser"]
    assert host.file(f"/var/backups/{name}/analytics/before-{two}.dump").size > 0

    with deployments.settings(health_check_timeout=3):
        deployments.deploy(broken).failed().says("failed at step health_check")
    assert assets(visitor) == second
    assert host.run(f"grep -rlF 'body {{ color: gray' /srv/{name}/shared /srv/{name}/releases").stdout == ""

    # As for the first database: the older release does not have the newer migration.
    refused = deployments.rollback().failed()
    assert "it has applied visits.0002_browser" in refused.output
    assert deployments.current == two
    deployments.rollback("--force").succeeded().says(f"the database analytics is ahead of release {one}")
    assert deployments.current == one
    assert assets(visitor) == first
    assert visitor.get(second[0]).status == 200
    assert visitor.get("/visit?page=c").json == {"visits": ["a", "b", "c"]}
    assert visitor.get("/").json["notes"] == ["first"]
    host.check_output(f"systemctl restart {name}")
    wait_for(lambda: visitor.get("/page").status == 200, 60, "the older release serves again")
    assert assets(visitor) == first
