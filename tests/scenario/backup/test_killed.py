"""Killed runs, as the programs leave them: tests/hostctl/test_backup_killed.py has every step, with stand-ins."""

from __future__ import annotations

import re
import time

import pytest
from backups import Backups
from probes import Visitor, wait_for

# The other host has more to do.
pytestmark = pytest.mark.os("debian13")


@pytest.mark.parametrize(
    ("words", "pattern", "what"),
    [
        (["ship"], "rclone copy", "The database was last copied"),
        (["--full"], "pgbackrest .*backup", "A base backup was last made"),
        (["drill", "--local"], "postgres -D", r"A restore was \w+ rehearsed"),
    ],
    ids=["ship", "backup", "drill"],
)
def test_a_killed_run(backups: Backups, words: list[str], pattern: str, what: str) -> None:
    """It is told, and the next one does what it should."""
    with backups.timers_stopped():
        backups.write()
        backups.kill(pattern, *words)
        # (Another one may have been ended with its timer.)
        told = re.compile(f"^{what}.* was killed", re.MULTILINE)
        assert told.search(backups.notes())
        backups.run(*words).succeeded().says("was killed")
        assert not told.search(backups.notes())
        if words[0] != "drill":
            backups.run("ship").succeeded()


def test_nothing_of_the_killed_runs_is_left(backups: Backups) -> None:
    with backups.timers_stopped():
        left = backups.host.check_output(f"ls /var/lib/{backups.app.name}-backup")
        assert not {"drill", "index", "recovery"} & set(left.split()), left
        assert "postgres -D" not in backups.host.check_output("ps -eo args | grep -v grep | grep recovery || true")


def test_a_killed_restore_is_reverted(backups: Backups, visitor: Visitor) -> None:
    """By the next command, which needs no yes for it."""
    with backups.timers_stopped():
        word = backups.write()
        backups.run("ship").succeeded()
        lost = backups.write()
        backups.kill("postgres -D", "restore", "--yes")
        assert "A restore was killed" in backups.notes()
        backups.run("restore").failed().says("A restore was killed", "the former one", "add --yes")
        assert backups.words()[-2:] == [word, lost]
        wait_for(lambda: visitor.get("/readyz/").status, 60, "the site is ready", lambda seen: seen == 200)
        assert "A restore was killed" not in backups.notes()
        assert backups.host.service(backups.app.name).is_enabled, "the application must start at boot"
    wait_for(lambda: backups.state("ship").get("ok_at", 0) > time.time() - 60, 60, "copies go on", pause=1)
