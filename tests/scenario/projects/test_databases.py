"""A project with two databases: both are created, migrated by their owner, and compared with a release."""

from __future__ import annotations

import shlex

from user_projects import Project

TABLES = "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
MIGRATIONS = "SELECT app || '.' || name FROM django_migrations WHERE app = 'visits' ORDER BY 1"


def query(project: Project, database: str, sql: str) -> list[str]:
    """Return the lines that a database answers to its superuser."""
    psql = f"cd / && runuser -u postgres -- psql --no-psqlrc -tA -v ON_ERROR_STOP=1 -d {database} -c"
    return project.host.check_output(f"{psql} {shlex.quote(sql)}").split()


def test_both_databases_are_created_migrated_and_compared(project: Project) -> None:
    name, deployments = project.app.name, project.deployments
    project.site(project.source("databases")).succeeded()
    assert project.settings["app_databases"] == [{"name": "analytics", "environment": "ANALYTICS_URL"}]
    visitor, one = project.visitor(), deployments.current
    project.writes_notes("first")
    assert visitor.get("/visit?page=a").json == {"visits": ["a"]}
    owner = f"{name}_owner"
    assert query(project, f"{name}_analytics", TABLES) == [f"django_migrations|{owner}", f"visits_visit|{owner}"]
    assert f"notes_note|{owner}" in query(project, name, TABLES)
    assert f"visits_visit|{owner}" not in query(project, name, TABLES)

    # A migration of the second database. (Django records it in both.)
    deployments.deploy(project.source("databases", "databases-two")).succeeded()
    two = deployments.current
    assert two != one
    assert visitor.get("/visit?page=b").json == {"visits": [["a", None], ["b", "lynx"]]}
    assert query(project, f"{name}_analytics", MIGRATIONS) == ["visits.0001_initial", "visits.0002_browser"]
    assert project.host.file(f"/var/backups/{name}/analytics/before-{two}.dump").size > 0

    # As for the first database: the older release does not have the newer migration.
    refused = deployments.rollback().failed()
    assert "it has applied visits.0002_browser" in refused.output
    assert deployments.current == two
    deployments.rollback("--force").succeeded().says(f"the database analytics is ahead of release {one}")
    assert deployments.current == one
    assert visitor.get("/visit?page=c").json == {"visits": ["a", "b", "c"]}
    assert visitor.get("/").json["notes"] == ["first"]
