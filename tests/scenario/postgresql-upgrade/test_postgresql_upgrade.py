"""After an upgrade of Debian: the databases move to the new PostgreSQL, and back; the release gets a new Python.

The tests follow the life of one host, in the order of this file.
"""

from __future__ import annotations

import signal

import pytest
from deployments import Deployments
from installation import Installation, query, run_python
from probes import wait_for
from testinfra.host import Host

PLAYBOOK = "playbooks/upgrade-postgresql.yml"
STATE = "/var/lib/seedbed/postgresql-upgrade.json"
# A hook of pg_upgradecluster that fails, and one that waits to be killed.
HOOK = "/etc/postgresql-common/pg_upgradecluster.d/zz-test"
# Rows that no process of the application writes to.
NOTES = """
CREATE TABLE upgrade_note (number int PRIMARY KEY, text text);
INSERT INTO upgrade_note SELECT number, md5(number::text) FROM generate_series(1, 5000) AS number
"""
# A visitor on the host itself: name and certificate are those of the snapshot.
PAGE = """
import ssl, urllib.request
request = urllib.request.Request("https://127.0.0.1/", headers={"Host": "HOST"})
print(urllib.request.urlopen(request, context=ssl._create_unverified_context()).status)
"""


def clusters(host: Host) -> dict[str, str]:
    """Return port and state of each cluster by its version."""
    lines = [line.split() for line in host.check_output("pg_lsclusters --no-header").splitlines()]
    return {words[0]: f"{words[2]} {words[3]}" for words in lines}


def rows(host: Host, app: Installation) -> str:
    """Return a checksum of the rows."""
    return query(host, app, "SELECT md5(string_agg(text, ',' ORDER BY number)) FROM upgrade_note")


def install_hook(host: Host, script: str) -> None:
    host.check_output(f"printf '#!/bin/sh\\n%s\\n' '{script}' >{HOOK} && chmod 755 {HOOK}")


@pytest.fixture(scope="module")
def before(host: Host, app: Installation) -> str:
    """The rows in PostgreSQL 15."""
    assert clusters(host) == {"15": "5432 online", "17": "5433 down"}
    query(host, app, NOTES)
    return rows(host, app)


def works(host: Host, deployments: Deployments) -> bool:
    """Return whether visitors get the site, and everything runs."""
    status = deployments.status()
    return not status["problems"] and run_python(host, PAGE.replace("HOST", status["domain"])) == "200"


def test_site_yml_names_the_playbook_and_changes_nothing(deployments: Deployments, before: str) -> None:
    run = deployments.playbook("site.yml").wait().failed()
    run.says("its databases in PostgreSQL 15").says(PLAYBOOK)
    assert run.changed == 0


def test_a_failed_upgrade_leads_back(host: Host, app: Installation, deployments: Deployments, before: str) -> None:
    install_hook(host, "[ $4 != init ]")
    deployments.playbook(PLAYBOOK).wait().failed().says("the application runs as before").says("zz-test")
    host.check_output(f"rm {HOOK}")
    assert clusters(host) == {"15": "5432 online"}
    assert rows(host, app) == before
    assert works(host, deployments)
    assert not host.file(STATE).exists


def test_a_killed_upgrade_is_completed(host: Host, app: Installation, deployments: Deployments, before: str) -> None:
    """The control machine and everything on the host are killed in the middle of the copy."""
    install_hook(host, "touch /run/postgresql/hook; exec sleep 300")
    run = deployments.playbook(PLAYBOOK)
    wait_for(lambda: host.file("/run/postgresql/hook").exists, 180, "pg_upgradecluster runs")
    run.signal(signal.SIGKILL)
    for pattern in ("-f [p]ostgresql-upgrade.json", "pg_upgradeclust", "sleep"):
        host.run(f"pkill -KILL {pattern}")
    host.check_output(f"rm {HOOK}")
    assert "copying" in host.file(STATE).content_string
    deployments.playbook("site.yml").wait().failed().says("their upgrade is unfinished")

    done = deployments.playbook(PLAYBOOK).wait().succeeded()
    done.says("are the same in both").says("drop_old_cluster=true").says("upgrade_back=true")
    assert clusters(host) == {"15": "5433 down", "17": "5432 online"}
    assert rows(host, app) == before
    assert query(host, app, "SELECT setting FROM pg_settings WHERE name = 'hba_file'").endswith("pg_hba.seedbed.conf")
    assert host.run("systemctl is-enabled postgresql@15-main").stdout.strip() == "disabled"
    assert works(host, deployments)


def test_a_second_run_has_nothing_to_do(deployments: Deployments) -> None:
    run = deployments.playbook(PLAYBOOK).wait().succeeded().says("there is nothing to upgrade")
    assert run.changed == 0


def test_the_next_provisioning_changes_nothing_in_postgresql(deployments: Deployments) -> None:
    assert deployments.playbook("playbooks/provision.yml", tags="postgresql").wait().succeeded().changed == 0


def test_the_way_back(host: Host, app: Installation, deployments: Deployments, before: str) -> None:
    query(host, app, "DELETE FROM upgrade_note WHERE number > 1000")
    assert rows(host, app) != before
    deployments.playbook(PLAYBOOK, upgrade_back=True).wait().succeeded().says("which does not run")
    assert clusters(host) == {"15": "5432 online", "17": "5433 down"}
    assert rows(host, app) == before
    assert works(host, deployments)


def test_the_live_release_gets_a_python(host: Host, app: Installation, deployments: Deployments) -> None:
    """As after the upgrade: its packages are of a version that Debian has no more."""
    venv = f"/srv/{app.name}/releases/{deployments.current}/.venv"
    host.check_output(f"mv {venv}/lib/python3.13 {venv}/lib/python3.11")
    [problem] = [one for one in deployments.status()["problems"] if one["process"] == "release"]
    assert "its Python is gone" in problem["text"]
    deployments.control("verify").wait().succeeded()
    assert host.file(f"{venv}/lib/python3.13/site-packages/django").is_directory
    assert works(host, deployments)
