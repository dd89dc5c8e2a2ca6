"""A project as tutorials make it, whose settings read nothing from the environment: deployed without an edit.

Then data of an earlier server: its dump, with other roles, becomes the database of the live project; and the way back.
"""

from __future__ import annotations

import base64
import json
import re

import pytest
from deployments import Run
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

# A dump as an earlier server has it: the tables of the project with other rows, and roles that are not here.
EARLIER = """
set -eu
cd /
as_postgres() {{ runuser -u postgres -- "$@"; }}
as_postgres createuser earlier
as_postgres createuser reports
as_postgres createdb --owner=earlier earlier
{{ echo 'SET ROLE earlier;'; as_postgres pg_dump --no-owner --no-privileges {name}; }} |
    as_postgres psql --quiet --set=ON_ERROR_STOP=1 --output=/dev/null earlier
as_postgres psql --quiet --set=ON_ERROR_STOP=1 earlier <<'END'
UPDATE notes_note SET text = 'of the earlier server';
GRANT SELECT ON ALL TABLES IN SCHEMA public TO reports;
END
as_postgres pg_dump --format=custom earlier | base64 --wrap=0
as_postgres dropdb earlier
as_postgres dropuser earlier
as_postgres dropuser reports
"""


@pytest.fixture(scope="module")
def first_run(project: Project) -> Run:
    """The run that has deployed the project on a host without it."""
    return project.site(project.source("tutorial"), whole=True).succeeded()


def notes(project: Project) -> list[str]:
    return sorted(project.visitor().get("/").json["notes"])


def test_tutorial_project_is_deployed_without_an_edit(project: Project, first_run: Run) -> None:
    assert OVERRIDDEN in first_run.output
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

    run = project.deployments.deploy(project.source("tutorial", "second")).succeeded()
    assert OVERRIDDEN in run.output
    assert project.visitor().get("/").json == {"version": "two", "notes": ["first"]}
    project.writes_notes("second")


def test_a_dump_becomes_the_database_of_a_live_project(project: Project, first_run: Run) -> None:
    host, name = project.host, project.app.name
    project.writes_notes("here")
    before = notes(project)
    dump = project.folder / "earlier.dump"
    dump.write_bytes(base64.b64decode(host.check_output(EARLIER.format(name=name))))

    def run(**variables: bool) -> Run:
        playbook = "playbooks/import-database.yml"
        return project.deployments.playbook(playbook, dump=str(dump), **project.settings, **variables).wait()

    refused = run().failed()
    refused.says("notes_note").says("import_replace=true")
    assert notes(project) == before

    done = run(import_replace=True).succeeded()
    assert notes(project) == ["of the earlier server"] * len(before)
    project.writes_notes("imported")
    assert not host.file(f"/var/backups/{name}/import.dump").exists, "the copy of the dump is not removed"

    found = re.search(rf"{name}ctl import-database --return \w+", done.output)
    assert found, done.output
    host.check_output(found[0])
    assert notes(project) == before
    project.writes_notes("returned")
