"""What is written is off the host within a minute, complete and unreadable there."""

from __future__ import annotations

import time
import uuid
from datetime import datetime

import pytest
from backups import Backups
from installation import Installation
from probes import wait_for
from testinfra.host import Host

# The promise: seconds after which a row is off the host.
RPO = 60


def test_a_row_is_off_the_host_within_a_minute(backups: Backups, record_property: pytest.RecordProperty) -> None:
    """The timers do it: nothing is called here."""
    backups.write()
    written = time.time()
    backups.wait_shipped(written, RPO)
    record_property("seconds until a row was off the host", round(time.time() - written, 1))
    # As the record says; the segment with it is there.
    shipped = backups.shipped()
    assert any(shipped["segment"] in file for file in backups.at_target("archive")), shipped


def test_the_target_has_everything_that_the_host_has(backups: Backups) -> None:
    wait_for(lambda: backups.list()["sent"], 60, "a base backup is at the target", pause=1)
    with backups.timers_stopped():
        backups.run("ship").succeeded()
        there = backups.at_target()
        assert {f"archive/{file}" for file in backups.in_repository("archive")} <= there
        # The history is for people only.
        bases = {file for file in backups.in_repository("backup") if "/backup.history/" not in file}
        assert {f"backup/{file}" for file in bases} <= there


def test_nothing_is_readable_at_the_target(backups: Backups, app: Installation, host: Host) -> None:
    """Neither a row, nor an upload, nor a secret, nor a file's name."""
    word, upload = backups.write(), f"upload{uuid.uuid4().hex}"
    media = f"/srv/{app.name}/shared/media"
    host.check_output(f"mkdir -p {media}/{upload} && echo {upload} >{media}/{upload}/{upload}.txt")
    host.check_output(f"chown -R {app.name}: {media}/{upload}")
    backups.run().succeeded()

    backups.rclone("copy REMOTE /var/tmp/seen")
    try:
        secrets = [app.secret(name) for name in ("django_key", "backup_key", "backup_files_key", "database_password")]
        for text in (word, upload, *secrets):
            found = host.run(f"grep --recursive --fixed-strings --files-with-matches -e '{text}' /var/tmp/seen")
            assert (found.rc, found.stdout) == (1, ""), text
            assert not host.check_output(f"find /var/tmp/seen -name '*{text}*'"), text
        assert int(host.check_output("find /var/tmp/seen -type f | wc -l")) > 20, "this test sees nothing"
        # As it would find them: the row is in the database's files, the upload in its folder.
        for text, place in ((word, "/var/lib/postgresql"), (upload, media)):
            host.check_output("runuser -u postgres -- psql -qc CHECKPOINT")
            assert host.run(f"grep -rqF {text} {place}").rc == 0, "this test sees nothing"
    finally:
        host.check_output("rm -r /var/tmp/seen")


def test_list_says_what_can_be_restored(backups: Backups) -> None:
    found = backups.run("list").succeeded()
    found.says("Base backups of the database on this host", "full", "off the host", "Restorable from", "Uploads: ")
    assert datetime.fromisoformat(backups.list()["offsite"]["at"])
    assert "Failed" not in found.output, found.output
    assert "Problem" not in found.output, found.output


@pytest.mark.parametrize(
    ("file", "rights"),
    {
        "/etc/APP/backup.env": "600 root root",
        "/etc/pgbackrest.conf": "640 root postgres",
        "/var/lib/pgbackrest": "750 postgres postgres",
    }.items(),
)
def test_secrets_are_not_readable_by_others(host: Host, app: Installation, file: str, rights: str) -> None:
    assert host.check_output(f"stat --format='%a %U %G' {file.replace('APP', app.name)}") == rights


# Debian's version makes no difference, and this host has less to do.
@pytest.mark.os("debian13")
def test_another_run_changes_nothing(backups: Backups) -> None:
    run = backups.deployments.playbook("playbooks/provision.yml", tags="backup").wait().succeeded()
    assert run.changed == 0, run.output
    run.says("backup : Enable and start the timers")
