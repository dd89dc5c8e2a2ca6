"""Damaged backups, lost access and a full disk are named, and leave the database as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from backups import DELETE, FLIP, TRUNCATE, Backups
from installation import Installation
from probes import Visitor, wait_for

from hostctl.backup.drill import PARTS, part_of

# A drill costs several seconds.
pytestmark = pytest.mark.os("debian12")
REPOSITORY = "/var/lib/pgbackrest"


@pytest.fixture(scope="module", autouse=True)
def _one_full_backup(backups: Backups, app: Installation) -> None:
    """The newest backup depends on no other one, and what follows it is two segments."""
    backups.run("--full").succeeded()
    backups.write()
    backups.run("ship").succeeded()


def segment(backups: Backups) -> str:
    """Return the file of the segment that the newest restorable state is in, here and at the target."""
    name = backups.shipped()["segment"]
    return "archive/" + next(file for file in backups.in_repository("archive") if f"/{name}-" in file)


def bundle(backups: Backups, which: int = -1) -> str:
    """Return the largest file of the newest backup, or of another one."""
    label = backups.list()["backups"][which]["label"]
    folder = f"{REPOSITORY}/backup/{backups.app.name}/{label}"
    largest = f"find {folder} -type f -size +20k -printf '%s %p\\n' | sort -n | tail -n 1 | cut -d' ' -f2"
    return backups.host.check_output(largest).removeprefix(f"{REPOSITORY}/")


@pytest.mark.parametrize(
    ("place", "how", "problem"),
    [
        ("segment", DELETE, "are missing in /var/lib/pgbackrest"),
        ("segment", FLIP, "PostgreSQL did not recover to the target"),
        ("segment", TRUNCATE, "PostgreSQL did not recover to the target"),
        ("bundle", FLIP, "pgbackrest failed"),
    ],
    ids=["deleted", "flipped", "truncated", "flipped-base"],
)
def test_damage_in_the_repository(backups: Backups, place: str, how: str, problem: str) -> None:
    with backups.timers_stopped():
        file = segment(backups) if place == "segment" else bundle(backups)
        words, process = backups.words(), backups.server_process()
        with backups.damaged(f"{REPOSITORY}/{file}", how):
            found = backups.run("drill", "--local").failed().says(problem)
            if place == "segment":
                found.says(file.rpartition("/")[2][:24])
        assert (backups.words(), backups.server_process()) == (words, process)
        assert "rehearsed" in backups.notes()


def test_a_hole_is_named_by_the_next_copy(backups: Backups) -> None:
    """The copies go on, and do not say that they can restore what they cannot."""
    with backups.timers_stopped():
        before, file = backups.shipped(), segment(backups)
        with backups.damaged(f"{REPOSITORY}/{file}", DELETE):
            backups.write()
            backups.run("ship").failed().says("are missing", file.rpartition("/")[2][:24])
            assert backups.shipped() == before
            assert {f"archive/{one}" for one in backups.in_repository("archive")} <= backups.at_target()
            assert "are missing" in backups.notes()
            # As the message says.
            backups.run().succeeded()
            assert backups.shipped()["seconds"] > before["seconds"]
            backups.run("drill", "--local").failed().says("Moments from there up to the next base backup")


@pytest.mark.parametrize(("place", "how"), [("segment", DELETE), ("segment", FLIP), ("bundle", TRUNCATE)])
def test_damage_at_the_target(backups: Backups, place: str, how: str) -> None:
    with backups.timers_stopped():
        file = segment(backups) if place == "segment" else bundle(backups)
        folder = f"/srv/sftp/{backups.configuration()['folder']}"
        words, process = backups.words(), backups.server_process()
        with backups.damaged(f"{folder}/{file}", how, host=backups.storage):
            backups.run("drill", "--offsite").failed().says(file.rpartition("/")[2][:24])
        assert (backups.words(), backups.server_process()) == (words, process)


def test_damage_in_an_older_backup_at_the_target(backups: Backups) -> None:
    """The newest state does not need it: a drill finds it in the part of the copies that it reads, here this one."""
    folder = f"/srv/sftp/{backups.configuration()['folder']}"
    with backups.timers_stopped():
        backups.run("ship").succeeded()
        file = bundle(backups, 0)
        backups.edit_state("drill", part=(part_of(file.removeprefix("backup/")) - 1) % PARTS)
        with backups.damaged(f"{folder}/{file}", FLIP, host=backups.storage):
            found = backups.run("drill", "--offsite").failed().says("does not return what was copied to it", file)
            # As it says.
            command = re.search(r"\((set -a; .*)\)$", found.output, re.MULTILINE)
            assert command, found.output
            backups.host.check_output(command[1])
            backups.run("drill", "--offsite").succeeded()


@pytest.mark.parametrize(("how", "problem"), [(FLIP, "invalid checksum"), (DELETE, "are damaged")])
def test_damage_in_an_older_backup_of_this_host(backups: Backups, how: str, problem: str) -> None:
    with backups.timers_stopped():
        file = bundle(backups, 0)
        with backups.damaged(f"{REPOSITORY}/{file}", how):
            # It reads another part of the copies, where the file of this host is not compared.
            part = part_of(file.removeprefix("backup/"))
            backups.edit_state("drill", part=part, parts=PARTS, unread=False)
            backups.run("drill", "--offsite").succeeded()
            found = backups.run("drill", "--local").failed().says("are damaged", problem, "expire")
            assert file in backups.at_target()
            # As it says.
            command = re.search(r"\(set -a; .*\) && chown -R \S+ \S+(?=\. )", found.output)
            assert command, found.output
            backups.host.check_output(command[0])
            backups.run("drill", "--local").succeeded()


def test_a_restore_from_damaged_backups_is_reverted(backups: Backups, visitor: Visitor) -> None:
    """The history ends early: the former database, its repository and the application are back."""
    folder = f"/srv/sftp/{backups.configuration()['folder']}"
    with backups.timers_stopped():
        words, repository = backups.words(), backups.in_repository()
        with backups.damaged(f"{folder}/{segment(backups)}", FLIP, host=backups.storage):
            done = backups.run("restore", "--offsite", "--yes").failed()
        done.says("did not recover to the target", "Nothing was replaced: the database is the former one.")
        assert backups.words() == words
        # (When it was stopped, a segment was added.)
        assert repository <= backups.in_repository()
        wait_for(lambda: visitor.get("/readyz/").status, 60, "the site is ready", lambda seen: seen == 200)
        left = "find /var/lib /var/lib/postgresql/* -maxdepth 1 -name '*.before-*' -newermt '-1 min'"
        assert not backups.host.check_output(left)
        backups.run("ship").succeeded()
        backups.run("drill", "--local").succeeded()


def test_a_wrong_passphrase(backups: Backups) -> None:
    with backups.timers_stopped():
        words, process = backups.words(), backups.server_process()
        with backups.damaged("/etc/pgbackrest.conf", "sed -i s/^repo1-cipher-pass=/repo1-cipher-pass=not-/ FILE"):
            for command in (["ship"], [], ["drill", "--local"], ["restore", "--yes"]):
                backups.run(*command).failed()
            backups.run("list").says("Problem")
        assert (backups.words(), backups.server_process()) == (words, process)
        backups.archive_again()
        backups.run("drill", "--local").succeeded()
        assert "rehearsed" not in backups.notes()


def test_a_changed_host_key(backups: Backups, app: Installation) -> None:
    other = "rm -f /run/other*; ssh-keygen -q -t ed25519 -N '' -f /run/other"
    address = backups.storage.ansible.get_variables()["ansible_host"]
    change = f"{other}; echo {address} $(cut -d' ' -f1,2 /run/other.pub) >FILE"
    with backups.timers_stopped():
        with backups.damaged(f"/etc/{app.name}/backup.hosts", change):
            backups.run("ship").failed().says("key mismatch")
            assert "key mismatch" in backups.notes()
        backups.run("ship").succeeded()


@contextmanager
def small_disk(backups: Backups) -> Iterator[None]:
    """The repository is on a file system of its own, with 8 MiB left. (PostgreSQL sees mounts of before its start.)"""
    host, copy = backups.host, "/var/lib/repository-copy"
    unit = f"postgresql@{backups.configuration()['version']}-main"
    host.check_output(f"systemctl stop {unit} && cp -a {REPOSITORY} {copy}")
    kilobytes = int(host.check_output(f"du -sk {copy}").split()[0])
    host.check_output(f"mount -t tmpfs -o size={kilobytes + 8192}k tmpfs {REPOSITORY}")
    host.check_output(f"cp -a {copy}/. {REPOSITORY}/ && systemctl start {unit}")
    try:
        yield
    finally:
        host.check_output(f"systemctl stop {unit}; cp -a {REPOSITORY}/. {copy}/; umount {REPOSITORY}")
        host.check_output(f"cp -a {copy}/. {REPOSITORY}/; rm -r {copy}; systemctl start {unit}")


def test_a_full_disk(backups: Backups, visitor: Visitor) -> None:
    """The database continues, the copies say what is wrong, and catch up when there is room again."""
    with backups.timers_stopped():
        with small_disk(backups):
            backups.host.run(f"head -c 100m /dev/zero >{REPOSITORY}/ballast")
            written = backups.write()
            backups.run("ship").failed().says("PostgreSQL cannot archive", "df -h")
            assert "PostgreSQL cannot archive" in backups.notes()
            assert visitor.finished_order(visitor.order(), 60)
            backups.host.check_output(f"rm {REPOSITORY}/ballast")
            backups.archive_again()
        assert written in backups.words()
        backups.archive_again()
