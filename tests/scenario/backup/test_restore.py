"""A restore in place: to a point between two writes, and back; the newest state from the target; refusals."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from backups import Backups
from installation import Installation
from probes import Visitor, wait_for

# Restores cost half a minute each, and Debian's versions of the tools are also in test_disaster.py.
pytestmark = pytest.mark.os("debian12")


def login(visitor: Visitor, app: Installation) -> None:
    visitor.post("/admin/login/", {"username": app.admin, "password": app.secret("admin_password")})
    assert is_logged_in(visitor)


def is_logged_in(visitor: Visitor) -> bool:
    return visitor.get("/admin/").url.endswith("/admin/")


def assert_application_runs(backups: Backups, visitor: Visitor) -> None:
    """Pages, workers and beat."""
    assert visitor.finished_order(visitor.order(), 60)
    status = backups.deployments.status()
    assert status["problems"] == [], status
    assert status["beat"], status


@contextmanager
def unchanged(backups: Backups) -> Iterator[None]:
    """The database is the same afterwards, and its server has not been restarted."""
    before = backups.words(), backups.server_process()
    yield
    assert (backups.words(), backups.server_process()) == before


def test_a_point_between_two_writes_and_back(backups: Backups, app: Installation, visitor: Visitor) -> None:
    login(visitor, app)
    first = backups.write()
    time.sleep(1)  # What the test is about: a moment between two writes.
    moment = datetime.now(UTC).isoformat()
    time.sleep(1)
    second = backups.write()
    # It waits for its time in a worker, and in the queue when that has stopped.
    send = "from shop.tasks import add; add.apply_async((1, 2), countdown=3600)"
    backups.host.check_output(f"{app.name}ctl manage shell -c '{send}'")
    backups.run("ship").succeeded()

    done = backups.run("restore", "--at", moment, "--yes").succeeded()
    assert backups.words()[-1] == first
    done.says("tasks parked list", "backup restore --undo")
    # Beat's own tasks may wait, too.
    assert re.search(r"^Parked \d+ tasks that waited, .*shop\.tasks\.add 1\b", done.output, re.MULTILINE), done.output
    parked = json.loads(backups.host.check_output(f"{app.name}ctl tasks parked list --json"))
    assert [one["kind"] for one in parked if one["task"] == "shop.tasks.add"] == ["waiting"]
    backups.host.check_output(f"{app.name}ctl tasks parked drop --all --yes")
    assert_application_runs(backups, visitor)
    assert is_logged_in(visitor), "the session, and the database's passwords, must go on"
    # The new history begins at once, here and at the target.
    assert re.search(r"^Copied to .* and read back: \S+F", done.output, re.MULTILINE), done.output
    third = backups.write()
    backups.run("ship").succeeded()
    backups.run("drill", "--local").succeeded()

    backups.run("restore", "--undo", "--yes").succeeded()
    assert backups.words()[-2:] == [first, second], f"{third} is of the restored database"
    assert_application_runs(backups, visitor)
    assert is_logged_in(visitor)
    backups.run("ship").succeeded()
    backups.run("drill", "--offsite").succeeded()


def test_the_newest_state_from_the_target(backups: Backups, app: Installation, visitor: Visitor) -> None:
    """The repository of this host is gone, as after the loss of its disk; the application's key is another one."""
    file = f"/etc/{app.name}/backup.json"
    other_key = 'sed -i \'s/"django_key": "...../"django_key": "00000/\' FILE'
    with backups.timers_stopped():
        word = backups.write()
        backups.run("ship").succeeded()
        lost = backups.write()
        backups.host.check_output("rm -r /var/lib/pgbackrest/archive /var/lib/pgbackrest/backup")
        with backups.damaged(file, other_key):
            backups.run("restore", "--yes").failed().says("django_key", "--other-secrets")
            done = backups.run("restore", "--yes", "--other-secrets").succeeded()
    done.says("The backups of this host cannot be used", "from the target")
    assert backups.words()[-1] == word, f"{lost} was not off the host"
    assert_application_runs(backups, visitor)
    backups.wait_shipped(time.time())
    backups.run("drill", "--offsite").succeeded()


def test_refused_moments(backups: Backups) -> None:
    now = datetime.now(UTC)
    # A command that waits for a run of a timer says so.
    with unchanged(backups), backups.timers_stopped():
        for moment, sentence in {
            "2026-11-28T18:59:30": "has no time zone",
            "yesterday": "is not a date with a time",
            (now + timedelta(hours=1)).isoformat(): "is after the newest state that can be restored",
            (now - timedelta(days=900)).isoformat(): "is before that",
        }.items():
            done = backups.run("restore", "--at", moment, "--yes").failed().says(sentence)
            assert len(done.output.strip().splitlines()) <= 3, done.output


def test_without_a_yes_nothing_changes(backups: Backups) -> None:
    with unchanged(backups):
        backups.run("restore").failed().says("To restore: the database as it was at", "add --yes")
        backups.run("restore", "--show").succeeded().says("It replaces the present database")
        backups.run("restore", "--undo").failed().says("add --yes")


def test_backups_of_another_server_are_refused(backups: Backups) -> None:
    """They stay as they are, and nothing is copied there."""
    wait_for(lambda: not backups.state("ship").get("problem"), 60, "copies work", pause=1)
    with backups.timers_stopped():
        own = backups.shipped()
        other = json.dumps(own | {"system_id": "7123456789012345678", "host": "another"})
        backups.host.check_output(f"printf %s '{other}' >/root/other.json")
        backups.rclone("copyto /root/other.json REMOTE/shipped.json")
        try:
            # As after five minutes.
            backups.edit_state("ship", checked_at=0)
            before = backups.at_target()
            backups.run("ship").failed().says("has the backups of another database or server: that of another")
            backups.run().failed().says("has the backups of another database or server: that of another")
            assert "has the backups of another database" in backups.notes()
            assert backups.at_target() == before
            with unchanged(backups):
                backups.run("restore", "--offsite", "--yes").failed().says("two servers copy there")
        finally:
            backups.host.check_output(f"printf %s '{json.dumps(own)}' >/root/other.json")
            backups.rclone("copyto /root/other.json REMOTE/shipped.json")
        backups.run("ship").succeeded()
