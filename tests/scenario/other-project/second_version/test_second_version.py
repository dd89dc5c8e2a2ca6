"""Another value of app_git_ref has deployed another version; odd characters are passed on exactly."""

from __future__ import annotations

from pathlib import Path

import yaml
from installation import Installation, query
from probes import Visitor, wait_for
from testinfra.host import Host

INVENTORY = Path(__file__).parents[4] / "molecule/other-project/inventory/hosts.yml"
SECONDS = 60


def test_site_shows_the_new_version(visitor: Visitor) -> None:
    assert visitor.get("/").body == "<h1>Notes, version 2</h1>"


def test_release_is_the_new_commit(release: str, commits: dict[str, str]) -> None:
    assert commits["v1"] != commits["v2"]
    assert release.startswith(commits["v2"][:12] + "-")


def test_odd_characters_are_passed_on_exactly(visitor: Visitor) -> None:
    """Quotes, $, %, #, backslashes, spaces at the end, and letters beyond ASCII."""
    host = yaml.safe_load(INVENTORY.read_text())["all"]["hosts"]["other-project"]
    wanted = host["app_environment"]
    assert set("\"'$%#\\`é🌱") < set(wanted["MOTTO"])
    assert wanted["MOTTO"].endswith(" ")
    assert visitor.get("/motto/").json == {"MOTTO": wanted["MOTTO"], "NUMBER": "7", "EMPTY": ""}


def test_its_migration_ran(host: Host, app: Installation) -> None:
    assert query(host, app, "SELECT count(*) FROM pg_indexes WHERE indexname = 'notes_by_words'") == "1"


def test_its_worker_works(app: Installation, visitor: Visitor, release: str) -> None:
    url = visitor.post_json("/notes/", {"text": "hello"}).json["url"]
    worker = wait_for(lambda: visitor.get(url).json["worker"], SECONDS, "the word is counted")
    assert worker == f"main.{release}@{app.hostname}"


def test_data_of_the_first_version_is_kept(host: Host, app: Installation) -> None:
    assert query(host, app, "SELECT count(*) FROM notes_note WHERE text = 'four words, no more' AND words = 4") == "1"


def test_only_the_second_version_runs(host: Host, app: Installation, release: str) -> None:
    output = host.check_output("systemctl list-units --plain --no-legend 'notes-*@*'")
    assert {line.split()[0] for line in output.splitlines()} == set(app.units(release))
