"""The target does not answer for a while; the site and the database continue, and afterwards it has everything.

For how many seconds, the environment variable BACKUP_OUTAGE_SECONDS says: a minute, without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from backups import Backups
from installation import Installation
from probes import wait_for
from traffic import verdict

# Here, packets are dropped, which takes each run until its timeout. (S3 that refuses connections: test_storage.py.)
pytestmark = pytest.mark.os("debian12")
SECONDS = float(os.environ.get("BACKUP_OUTAGE_SECONDS", "60"))


@contextmanager
def silent(backups: Backups, app: Installation) -> Iterator[None]:
    """The target answers no packet of this host."""
    backups.storage.check_output(f"ip route add blackhole {app.address}/32")
    try:
        yield
    finally:
        backups.storage.check_output(f"ip route del blackhole {app.address}/32")


def waiting(backups: Backups) -> int:
    """Return the number of segments that PostgreSQL has not archived."""
    return int(backups.host.check_output("ls /var/lib/postgresql/*/main/pg_wal/archive_status | grep -c ready || true"))


def test_the_target_is_away_under_load(backups: Backups, app: Installation) -> None:
    # An earlier test may have left a base backup that failed.
    backups.run().succeeded()
    backups.run("ship").succeeded()
    away_from = time.time()
    with backups.deployments.under_load(overlay=False) as traffic, silent(backups, app):
        wait_for(lambda: backups.state("ship").get("failed_at", 0) > away_from, 180, "a copy fails", pause=1)
        notes = backups.notes()
        # Segments go on into the repository of this host.
        for _ in range(8):
            backups.write()
            backups.sql("SELECT pg_switch_wal()")
        wait_for(lambda: waiting(backups), 30, "all segments are archived on this host", lambda seen: seen == 0)
        while time.time() - away_from < SECONDS:
            backups.write()
            time.sleep(min(5, SECONDS / 20))
            assert waiting(backups) < 5, "PostgreSQL keeps what it cannot archive"
        last = backups.write()
        backups.run("list").succeeded().says("Problem")
    assert "The database was last copied" in notes, notes
    assert "rclone failed" in notes, notes
    verdict.no_request_failed(traffic.samples)

    backups.wait_shipped(time.time(), 90)
    # Uploads are copied every ten minutes; a run of that may have failed.
    wait_for(lambda: backups.host.run(f"{app.name}ctl backup files").rc == 0, 120, "uploads are copied", pause=2)
    wait_for(backups.notes, 60, "no copy is said to fail", lambda seen: "copied" not in seen, pause=1)
    with backups.timers_stopped():
        backups.run("ship").succeeded()
        assert {f"archive/{file}" for file in backups.in_repository("archive")} <= backups.at_target()
        backups.run("drill", "--offsite").succeeded()
    assert backups.words()[-1] == last
