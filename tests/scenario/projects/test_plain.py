"""A project that reads its settings from the environment."""

from __future__ import annotations

from user_projects import Project


def test_plain_project_is_deployed_and_runs_tasks(project: Project) -> None:
    project.site(project.source()).succeeded()
    assert project.visitor().get("/").json == {"version": "one", "notes": []}
    assert project.visitor().get("/static/notes/a.css").status == 200
    project.writes_notes("first")
