"""Another value of app_git_ref deploys another version, and the host stays as it is otherwise.

Both playbooks together are site.yml. Odd characters are passed on exactly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deployments import Deployments, Run
from installation import Installation, query
from probes import Visitor, wait_for
from testinfra.host import Host

SCENARIO = Path(__file__).parents[4] / "molecule/other-project"
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def provisioning(deployments: Deployments) -> Run:
    """Commit the second version, provision the host again, and deploy the version; return the run that provisions."""
    command = [SCENARIO / "commit.sh", "v2", SCENARIO / "second-version", os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, check=True, env=environment)
    run = deployments.playbook_as_molecule("playbooks/provision.yml").wait().succeeded()
    deployments.playbook("playbooks/deploy.yml", app_git_ref="v2").wait().succeeded()
    return run


def test_provisioning_again_changes_nothing(provisioning: Run) -> None:
    assert provisioning.changed == 0, provisioning.output


def test_site_shows_the_new_version(visitor: Visitor) -> None:
    assert visitor.get("/").body == "<h1>Notes, version 2</h1>"


def test_release_is_the_new_commit(release: str, commits: dict[str, str]) -> None:
    assert commits["v1"] != commits["v2"]
    assert release.startswith(commits["v2"][:12] + "-")


def test_odd_characters_are_passed_on_exactly(visitor: Visitor) -> None:
    """Quotes, $, %, #, backslashes, spaces at the end, and letters beyond ASCII."""
    host = yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text())["all"]["hosts"]["other-project"]
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


def test_deploying_the_same_version_again_changes_nothing(deployments: Deployments, release: str) -> None:
    """From git, where the commit names the release."""
    run = deployments.playbook("playbooks/deploy.yml", app_git_ref="v2").wait().succeeded()
    assert run.changed == 0, run.output
    assert deployments.current == release
