"""A project as tutorials make it, whose settings read nothing from the environment: deployed without an edit."""

from __future__ import annotations

import json

from user_projects import Project

# What the settings of the project hard-code.
OVERRIDDEN = (
    "Settings from the environment: DATABASES, SECRET_KEY, ALLOWED_HOSTS, STATIC_ROOT, DEBUG, CELERY_BROKER_URL, "
)
SETTINGS = """
import json
from django.conf import settings
from django.contrib.auth.models import User
names = list(User.objects.filter(is_superuser=True).values_list("username", flat=True))
print("found:", json.dumps([settings.DEBUG, settings.SECRET_KEY.startswith("django-insecure-"), names]))
"""


def test_tutorial_project_is_deployed_without_an_edit(project: Project) -> None:
    run = project.site(project.source("tutorial"), whole=True).succeeded()
    assert OVERRIDDEN in run.output
    visitor = project.visitor()
    assert visitor.get("/").json == {"version": "one", "notes": []}
    assert visitor.get("/admin/login/").status == 200
    assert visitor.get("/static/admin/css/base.css").status == 200
    missing = visitor.get("/not-there")
    assert missing.status == 404
    assert "DEBUG" not in missing.body
    project.writes_notes("first")
    output = project.host.check_output(f"{project.app.name}ctl manage shell -c %s", SETTINGS)
    assert json.loads(output.partition("found: ")[2]) == [False, False, ["admin"]]

    run = project.deployments.deploy(project.source("tutorial", "tutorial-two")).succeeded()
    assert OVERRIDDEN in run.output
    assert project.visitor().get("/").json == {"version": "two", "notes": ["first"]}
    project.writes_notes("second")
