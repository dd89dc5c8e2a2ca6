"""Data of an earlier server: its dump, with other roles, becomes the database of a live project; and the way back."""

from __future__ import annotations

import base64
import re

from deployments import Run
from user_projects import Project

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


def notes(project: Project) -> list[str]:
    return project.visitor().get("/").json["notes"]


def test_a_dump_becomes_the_database_of_a_live_project(project: Project) -> None:
    host, name = project.host, project.app.name
    project.site(project.source()).succeeded()
    project.writes_notes("first")
    dump = project.folder / "earlier.dump"
    dump.write_bytes(base64.b64decode(host.check_output(EARLIER.format(name=name))))

    def run(**variables: bool) -> Run:
        playbook = "playbooks/import-database.yml"
        return project.deployments.playbook(playbook, dump=str(dump), **project.settings, **variables).wait()

    refused = run().failed()
    refused.says("notes_note").says("import_replace=true")
    assert notes(project) == ["first"]

    done = run(import_replace=True).succeeded()
    assert notes(project) == ["of the earlier server"]
    project.writes_notes("imported")
    assert not host.file(f"/var/backups/{name}/import.dump").exists, "the copy of the dump is not removed"

    found = re.search(rf"{name}ctl import-database --return \w+", done.output)
    assert found, done.output
    host.check_output(found[0])
    assert notes(project) == ["first"]
    project.writes_notes("returned")
