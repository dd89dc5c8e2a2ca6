"""S3-compatible storage: it refuses the key or the connection; expired backups leave it, and nothing else."""

from __future__ import annotations

import pytest
from backups import Backups
from installation import Installation

pytestmark = pytest.mark.os("debian13")


def test_a_wrong_access_key(backups: Backups, app: Installation) -> None:
    change = 'sed -i \'s/ACCESS_KEY_ID="keeper"/ACCESS_KEY_ID="other"/\' FILE'
    with backups.timers_stopped():
        words, process = backups.words(), backups.server_process()
        with backups.damaged(f"/etc/{app.name}/backup.env", change):
            backups.run("ship").failed().says("AccessDenied")
            assert "AccessDenied" in backups.notes()
            backups.run("restore", "--offsite", "--yes").failed()
        assert (backups.words(), backups.server_process()) == (words, process)
        backups.run("ship").succeeded()


def test_a_storage_that_refuses_connections(backups: Backups) -> None:
    """Nothing piles up on the host, and the next copy has what is missing."""
    with backups.timers_stopped():
        backups.storage.check_output("systemctl stop nginx")
        try:
            backups.write()
            backups.run("ship").failed().says("connection refused")
            assert "connection refused" in backups.notes()
            backups.run("restore", "--offsite", "--yes").failed()
        finally:
            backups.storage.check_output("systemctl start nginx")
        backups.run("ship").succeeded()
        assert {f"archive/{file}" for file in backups.in_repository("archive")} <= backups.at_target()


def test_expired_backups_leave_the_target(backups: Backups, app: Installation) -> None:
    """After a drill; what the others need stays there."""
    expire = f"runuser -u postgres -- pgbackrest --stanza={app.name} --repo1-retention-full-type=count"
    with backups.timers_stopped():
        backups.deployments.playbook("playbooks/backup.yml", backup_full=True).wait(600).succeeded()
        oldest = backups.list()["backups"][0]["label"]
        assert any(oldest in file for file in backups.at_target("backup"))
        backups.host.check_output(f"cd / && {expire} --repo1-retention-full=1 expire")
        assert oldest not in [one["label"] for one in backups.list()["backups"]]
        backups.run("ship").succeeded()
        assert any(oldest in file for file in backups.at_target("backup")), "only a drill removes"

        log = backups.in_repository("archive")
        backups.run("drill", "--local").succeeded()
        there = backups.at_target()
        copied = {file.removeprefix("archive/") for file in there if file.startswith("archive/")}
        # PostgreSQL may have archived another segment since.
        assert log <= copied <= backups.in_repository("archive")
        assert not any(f"/{oldest}/" in file for file in there)
        backups.run("drill", "--local").succeeded()
