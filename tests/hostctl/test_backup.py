"""hostctl/backup: what needs neither PostgreSQL nor a target. The scenario `backup` has the rest."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl.backup import drill, files, history, listing, notes, prepare, restore, run, ship
from hostctl.backup.checks import check_migrations, check_rows
from hostctl.backup.configuration import LOCAL, OFFSITE, Configuration
from hostctl.backup.state import State, lock
from hostctl.backup.tools import Backup, Repository, Target, ToolError, lsn_number, tied
from hostctl.host import Host
from hostctl.settings import BusyError, ReleaseError, Settings

RECORD = {
    "at": "2026-11-28T19:00:00.000000Z", "seconds": 1795892400.0, "lsn": "0/5000028", "system_id": "7",
    "segment": "000000020000000000000005", "fingerprints": {"django_key": "a"},
}  # fmt: skip
RESTORE = "ansible-playbook -i INVENTORY playbooks/restore.yml -e restore_offsite=true"


def backup(label: str, stopped: float, lsn_stop: str = "0/3000000", **more: Any) -> Backup:
    values = {"kind": "full", "wal_start": "000000010000000000000002", "size": 10, "needs": [], "failed": False} | more
    return Backup(label, started=int(stopped) - 1, stopped=int(stopped), lsn_stop=lsn_number(lsn_stop), **values)


class Backups(Repository):
    def __init__(self, *backups: Backup) -> None:
        self.found = list(backups)

    def backups(self, info: Any = None) -> list[Backup]:
        return self.found


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(
        "shop", version="17", data=str(tmp_path / "main"), database="shop", target="keeper@storage:shop",
        repository=tmp_path / "repository", state=tmp_path, fingerprints={"django_key": "a"},
    )  # fmt: skip


# --- Which state is restored ---------------------------------------------------------------------------------------


def test_the_newest_state_is_restored_up_to_its_position() -> None:
    repository = Backups(backup("old", 1000), backup("new", 2000), backup("later", 3000, "0/6000000"))
    point = listing.choose(None, repository, "the target", RECORD, None)
    assert point.backup.label == "new"
    assert point.target == ["--type=lsn", "--target=0/5000028", "--target-timeline=2"]
    assert point.is_newest


def test_a_moment_is_restored_from_the_last_backup_before_it() -> None:
    moment = listing.parse_moment("2026-11-28 18:59:30.25+00")
    repository = Backups(backup("old", moment - 100), backup("at that second", moment), backup("new", moment + 1))
    point = listing.choose(None, repository, "the target", RECORD, moment)
    assert point.backup.label == "old"
    assert point.target[:2] == ["--type=time", "--target=2026-11-28 18:59:30.250000+00"]


def test_a_backup_with_damaged_pages_is_not_used() -> None:
    repository = Backups(backup("good", 1000), backup("damaged", 2000, failed=True))
    assert listing.choose(None, repository, "this host", RECORD, None).backup.label == "good"


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (RECORD["seconds"] + 1, "is after the newest state that can be restored from this host: 2026-11-28T19:00:00"),
        (500.0, "The oldest backup at this host ended at 1970-01-01T00:16:40Z: 1970-01-01T00:08:20Z is before that"),
    ],
)
def test_a_moment_that_the_backups_do_not_have_is_refused(moment: float, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        listing.choose(None, Backups(backup("only", 1000)), "this host", RECORD, moment)


def test_a_moment_that_a_restore_gave_up_is_refused(configuration: Configuration) -> None:
    record = RECORD | {"gaps": [[2000.0, 3000.0]]}
    repository = Backups(backup("only", 1000))
    with pytest.raises(listing.GivenUpError, match="an earlier restore gave up what was written between"):
        listing.choose(configuration, repository, "this host", record, 2500.0)
    assert listing.choose(configuration, repository, "this host", record, 1999.0).backup.label == "only"
    assert listing.choose(configuration, repository, "this host", record, 3001.0).backup.label == "only"


def test_without_a_backup_or_a_record_it_is_said(configuration: Configuration) -> None:
    with pytest.raises(ReleaseError, match="There is no backup of the database at this host"):
        listing.choose(configuration, Backups(), "this host", RECORD, None)
    with pytest.raises(ReleaseError, match=r"up to where.*type shopctl backup ship"):
        listing.choose(configuration, Backups(backup("only", 1000)), "this host", {}, None)


@pytest.mark.parametrize("text", ["2026-11-28T18:59:30Z", "2026-11-28 18:59:30+00", "2026-11-28T19:59:30+01:00"])
def test_a_moment_has_a_time_zone(text: str) -> None:
    assert listing.parse_moment(text) == 1795892370


@pytest.mark.parametrize(("text", "message"), [("2026-11-28 18:59:30", "no time zone"), ("yesterday", "not a date")])
def test_another_text_is_refused_with_an_example(text: str, message: str) -> None:
    with pytest.raises(ReleaseError, match=f"{message}.*2026-11-28T18:59:30"):
        listing.parse_moment(text)


def test_folders_of_later_segments_are_matched() -> None:
    import fnmatch

    patterns = listing.from_digits("000000A9")
    matches = [
        number for number in range(0x200)
        if any(fnmatch.fnmatchcase(f"{number:08X}", pattern) for pattern in patterns)
    ]  # fmt: skip
    assert matches == list(range(0xA9, 0x200))


# --- Copies --------------------------------------------------------------------------------------------------------


def test_files_of_before_the_last_copy_are_not_copied_again(tmp_path: Path) -> None:
    folder = tmp_path / "shop/17-1/0000000100000000"
    folder.mkdir(parents=True)
    for name, age in (("old", 100), ("new", 0)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "new.tmp").touch()
    (tmp_path / "shop/archive.info").touch()
    assert list(ship.new_files(tmp_path, time.time() - 50)) == ["shop/17-1/0000000100000000/new"]


def test_a_new_target_has_nothing_yet(configuration: Configuration) -> None:
    state = State(configuration, "ship")
    state.write(copied_from=5.0, target=configuration.target)
    assert ship.sent_before(configuration, state)["copied_from"] == 5.0
    assert ship.sent_before(replace(configuration, target="elsewhere"), state) == {}


@pytest.fixture
def files_there(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The small files at the target, by their names."""
    found: dict[str, str] = {}
    monkeypatch.setattr(Target, "read", lambda self, name, seconds=60: found.get(name))
    monkeypatch.setattr(Target, "write", lambda self, name, text: found.update({name: text}))
    monkeypatch.setattr(Target, "copy", lambda self, *arguments: None)
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [{"system-id": 7}]})
    return found


def test_a_record_that_is_half_written_is_no_empty_target(
    configuration: Configuration, files_there: dict[str, str]
) -> None:
    """An earlier version made no copy of it."""
    target = Target(configuration)
    assert ship.shipped(target) == {}
    files_there[ship.RECORD] = '{"at'
    with pytest.raises(ReleaseError, match=r"cannot be read: '\{\"at'.*rclone deletefile"):
        ship.require_own(configuration, target)
    files_there[ship.RECORD] = ""
    with pytest.raises(ReleaseError, match=r"cannot be read: ''"):
        ship.require_own(configuration, target)
    files_there[ship.RECORD_COPY] = ship.to_text(RECORD)
    assert ship.shipped(target) == RECORD


def test_records_that_cannot_be_read_are_deleted_by_the_commands_of_the_message(
    configuration: Configuration, files_there: dict[str, str], tmp_path: Path
) -> None:
    configuration = replace(configuration, folder="its backups", config=tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/backup.env").write_text("RCLONE_CONFIG_OFFSITE_TYPE=sftp\n")
    program = tmp_path / "rclone"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$RCLONE_CONFIG_OFFSITE_TYPE" "$@" >>{tmp_path}/typed\n')
    program.chmod(0o755)
    files_there |= {ship.RECORD: "{", ship.RECORD_COPY: ""}
    with pytest.raises(ship.UnreadableError) as found:
        ship.require_own(configuration, Target(configuration))
    command = re.search(r"\(set -a; .*\)(?= and )", str(found.value))
    assert command, found.value
    subprocess.run(["sh", "-ec", command[0]], env={"PATH": f"{tmp_path}:/bin"}, check=True)
    typed = (tmp_path / "typed").read_text()
    for name in re.findall(r"sftp\|deletefile\|--config=/dev/null\|offsite:its backups/([^|]*)\|", typed):
        del files_there[name]
    ship.send(configuration, {"shipped": RECORD}, RECORD, restorable=True)
    assert ship.shipped(Target(configuration)) == RECORD


@pytest.mark.parametrize("written", [0, 5])
def test_a_first_record_that_is_half_written_is_written_again(
    configuration: Configuration, files_there: dict[str, str], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    def killed(target: Target, name: str, text: str) -> None:
        files_there[name] = text[:written]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            ship.send(configuration, {}, RECORD, restorable=True)
    ship.send(configuration, {}, RECORD, restorable=True)
    assert json.loads(files_there[ship.RECORD]) == json.loads(files_there[ship.RECORD_COPY]) == RECORD
    # From then on it is not overwritten when it cannot be read.
    files_there.update({ship.RECORD: "{", ship.RECORD_COPY: "{"})
    with pytest.raises(ReleaseError, match="cannot be read"):
        ship.send(configuration, {}, RECORD, restorable=True)


def test_a_restore_from_the_copy_of_the_record_loses_at_most_a_minute(
    configuration: Configuration, files_there: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is half written when the host dies while it writes it, over SFTP."""
    clock = [1000.0]
    monkeypatch.setattr(ship.time, "time", lambda: clock[0])
    ages: list[float] = []

    def write(target: Target, name: str, text: str) -> None:
        if name == ship.RECORD and ship.RECORD in files_there:
            ages.append(clock[0] - json.loads(files_there[ship.RECORD_COPY])["seconds"])
        files_there[name] = text

    monkeypatch.setattr(Target, "write", write)
    state = State(configuration, "ship")
    for _ in range(40):
        now = RECORD | {"seconds": clock[0]}
        ship.send(configuration, state.read(), now, restorable=True)
        state.write(shipped=now)
        clock[0] += 17  # A timer's 15 s, and a run of 2 s.
    assert 0 < max(ages) <= 60


def test_another_database_at_the_target_is_refused(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "shipped", lambda target: RECORD)
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [{"system-id": 7}, {"system-id": 9}]})
    ship.require_own(configuration, None)
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [{"system-id": 8}]})
    with pytest.raises(ship.ForeignError, match="has the backups of another database") as caught:
        ship.require_own(configuration, None)
    assert str(caught.value).splitlines()[1:] == [
        f"To restore them here: {RESTORE}",
        "To keep this database: set another folder in app_backup_target, then run site.yml.",
    ]


@pytest.mark.parametrize("other", [["backup_key"], ["backup_files_key"]])
def test_another_database_at_the_target_whose_backups_the_passphrases_do_not_open(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, other: list[str]
) -> None:
    monkeypatch.setattr(ship, "shipped", lambda target: RECORD | {"fingerprints": dict.fromkeys(other, "other")})
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [{"system-id": 8}]})
    with pytest.raises(ship.ForeignError, match="has the backups of another database") as caught:
        ship.require_own(configuration, None)
    lines = str(caught.value).splitlines()[1:]
    # pgBackRest's repository is not encrypted with the passphrase of the uploads.
    moved = [line for line in lines if " mv " in line]
    assert bool(moved) == (other == ["backup_key"])
    steps = [re.sub(r"^\d\. ", "", line) for line in lines[1:-1] if line not in moved]
    assert lines[0] == f"The passphrases here do not open them ({other[0]}). To restore them here:"
    assert steps == [
        "Write the secrets that they were made with, which are at the end of the recovery kit, into "
        "inventory/.secrets/ENV/, one file each.",
        "ansible-playbook -i INVENTORY site.yml -e secrets_replace=true",
        RESTORE,
    ]


def test_a_server_restores_backups_of_other_passphrases_by_the_steps_of_the_message(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own repository is encrypted with the present passphrase, which site.yml replaces."""
    folder, passphrase = configuration.repository, "here"

    def pgbackrest(self: Repository, command: str, *options: str, **more: Any) -> str:
        stanza = {"name": "shop", "status": {"code": 0, "message": "ok"}, "backup": [], "archive": []}
        if command == "stanza-create":
            (folder / "archive").write_text(passphrase)
        elif not (folder / "archive").exists():
            stanza["status"] = {"code": 1, "message": "missing stanza path"}
        elif (folder / "archive").read_text() != passphrase:
            stanza["status"] = {"code": 99, "message": "cipher"}
        return json.dumps([stanza | {"db": [{"id": 1, "system-id": 8, "version": "17"}]}])

    monkeypatch.setattr(Repository, "call", pgbackrest)
    monkeypatch.setattr(prepare.Server, "run", lambda self, sql: "on" if "archive_mode" in sql else "8")
    monkeypatch.setattr(prepare, "call", lambda *arguments, **more: "inactive")
    record = RECORD | {"host": "former", "fingerprints": {"backup_key": "there"}}
    for module in (ship, prepare):
        monkeypatch.setattr(module, "shipped", lambda target: record)
    folder.mkdir()
    (folder / "archive").write_text("here")
    inode = folder.stat().st_ino
    configuration = replace(configuration, fingerprints={"backup_key": "here"})
    assert prepare.prepare(host, configuration)["changed"], "the first backup"
    with pytest.raises(ship.ForeignError) as caught:
        ship.require_own(configuration, None)
    secrets, move, site, last = re.findall(r"^\d\. (.*)$", str(caught.value), re.MULTILINE)
    assert secrets.startswith("Write the secrets")
    # What site.yml does, first without the step before it.
    assert "site.yml" in site
    passphrase, configuration = "there", replace(configuration, fingerprints={"backup_key": "there"})
    with pytest.raises(ReleaseError, match=r"cannot be read: cipher\..* but keep the folder\.$") as unread:
        prepare.prepare(host, configuration)
    command = move.partition(": ")[2]
    assert command in str(unread.value)
    subprocess.run(["sh", "-ec", command], check=True)
    assert (folder.with_name("repository.former") / "archive").read_text() == "here"
    assert folder.stat().st_ino == inode, "PostgreSQL cannot write to another folder"
    assert prepare.prepare(host, configuration)["changed"]
    assert (folder / "archive").read_text() == "there"
    with pytest.raises(ship.ForeignError) as caught:
        ship.require_own(configuration, None)
    assert f"To restore them here: {last}" in str(caught.value).splitlines()
    assert last == RESTORE


def test_the_local_state_is_known_although_the_target_is_away(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = ship.Canary("2026-11-28T19:00:00Z", 5.0, "0/1", "000000010000000000000001", "7")
    monkeypatch.setattr(ship.Server, "write_canary", lambda self: canary)
    monkeypatch.setattr(ship.Server, "require_archive", lambda self: None)
    monkeypatch.setattr(ship.Server, "wait_archived", lambda self, segment: None)
    monkeypatch.setattr(ship.Server, "segment_bytes", lambda self: 2**24)
    monkeypatch.setattr(ship, "newest_hole", lambda *arguments: "")

    def away(*arguments: Any, **options: Any) -> None:
        raise ToolError("rclone failed: no route to host", 1)

    monkeypatch.setattr(ship, "send", away)
    with pytest.raises(ToolError):
        ship.ship(configuration)
    found = State(configuration, "ship").read()
    assert found["local"]["at"] == "2026-11-28T19:00:00Z"
    assert found["problem"] == "rclone failed: no route to host"
    assert "shipped" not in found
    assert "copied_from" not in found


def test_restic_must_have_made_a_snapshot() -> None:
    done = {"message_type": "summary", "snapshot_id": "abc", "total_files_processed": 2, "total_bytes_processed": 30}
    assert files.summary(f"noise\n{json.dumps(done)}\n") == {"snapshot": "abc", "count": 2, "bytes": 30}
    with pytest.raises(ReleaseError, match="no snapshot"):
        files.summary('{"message_type": "status"}\n')


@pytest.mark.parametrize("text", ["2026-11-28T19:00:00.123456789Z", "2026-11-28T20:00:00.123456789+01:00"])
def test_times_of_restic(text: str) -> None:
    assert int(files.seconds_of(text)) == RECORD["seconds"]


def test_a_copy_of_a_server_is_refused(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same database; a restore on another server refuses the former one."""
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [{"system-id": 7}]})
    record = RECORD | {"owner": ship.owner(configuration)}
    monkeypatch.setattr(ship, "shipped", lambda target: record)
    ship.require_own(configuration, None)
    elsewhere = replace(configuration, state=configuration.state / "elsewhere")
    with pytest.raises(ship.ForeignError):
        ship.require_own(elsewhere, None)
    ship.take_over(elsewhere, record)
    ship.require_own(elsewhere, None)
    record = RECORD | {"owner": ship.owner(elsewhere)}
    with pytest.raises(ship.ForeignError):
        ship.require_own(configuration, None)


def test_segments_are_copied_whatever_the_clock_says(tmp_path: Path) -> None:
    folder = tmp_path / "shop/17-1/0000000100000000"
    folder.mkdir(parents=True)
    for number in (1, 2):
        path = folder / f"00000001000000000000000{number}-hash.zst"
        path.touch()
        os.utime(path, (1000, 1000))
    found = list(ship.new_files(tmp_path, time.time() + 3600, "000000010000000000000001"))
    assert found == ["shop/17-1/0000000100000000/000000010000000000000002-hash.zst"]


def test_a_backup_of_a_state_that_was_given_up_is_not_used(configuration: Configuration) -> None:
    record = RECORD | {"gaps": [[2000.0, 3000.0]]}
    repository = Backups(backup("before", 1000), backup("given up", 2500))
    for moment in (None, 3500.0):
        assert listing.choose(configuration, repository, "this host", record, moment).backup.label == "before"


def test_segments_of_an_earlier_version_are_not_copied_again(tmp_path: Path) -> None:
    """After a restore and an upgrade its timeline is higher than that of the new version."""
    for name in (
        "15-1/0000000200000000/000000020000000000000001-hash.zst",
        "17-2/0000000100000000/000000010000000000000002-hash.zst",
    ):
        path = tmp_path / "shop" / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000, 1000))
        os.utime(path.parent, (1000, 1000))
    found = list(ship.new_files(tmp_path, time.time(), "000000010000000000000001"))
    assert found == ["shop/17-2/0000000100000000/000000010000000000000002-hash.zst"]


def test_segments_count_on_the_timeline_that_leads_to_the_last() -> None:
    """Timeline 2 was given up, and 3 left the first one in its fourth segment."""
    first = [f"00000001000000000000000{number}" for number in (1, 2, 3, 4, 5)]
    third = [f"00000003000000000000000{number}" for number in (4, 5, 6)]
    given_up = ["000000020000000000000002"]
    text = "1\t0/4000100\tbefore 2026-11-28 19:00:00+00\n\n"
    found = [*first, *given_up, *third]
    assert history.missing(found, first[0], third[-1], 2**24, text) == []
    for lost in (first[1], third[1]):
        assert history.missing(set(found) - {lost}, first[0], third[-1], 2**24, text) == [lost]
    assert history.missing(first[:2], first[0], first[2], 2**24) == [first[2]]
    # To an earlier moment than the restore before: that one's timeline was left before it began.
    text = "1\t0/8000100\tx\n2\t0/5000100\tx\n"
    later = [f"00000003000000000000000{number}" for number in (5, 6, 7, 8, 9)]
    assert history.missing([*first, *later], first[0], later[-1], 2**24, text) == []
    assert history.missing([*first, *later[2:]], first[0], later[-1], 2**24, text) == later[:2]


def test_the_segment_after_one_is_in_the_next_log() -> None:
    assert history.following("0000000200000001000000FE", 2**24) == "0000000200000001000000FF"
    assert history.following("0000000200000001000000FF", 2**24) == "000000020000000200000000"
    # A log of segments of 64 MiB has 64 of them.
    assert history.following("00000002000000010000003F", 2**26) == "000000020000000200000000"


def test_a_folder_that_is_gone_does_not_end_its_copies(configuration: Configuration, tmp_path: Path) -> None:
    State(configuration, "files").write(folders=[str(tmp_path / "media")])
    with pytest.raises(ReleaseError, match="media is not there any more"):
        files.copy_files(replace(configuration, folders=[str(tmp_path / "media")]))


def test_a_full_backup_is_due_after_a_week() -> None:
    now = time.time()
    assert run.full_is_due([])
    assert run.full_is_due([backup("damaged", now, failed=True)])
    assert run.full_is_due([backup("old", now - 8 * 86400), backup("diff", now, kind="diff")])
    assert not run.full_is_due([backup("recent", now - 86400)])


# --- Checks of what was restored -----------------------------------------------------------------------------------


def test_migrations_that_the_release_lacks_are_refused() -> None:
    known = [("shop", "0001"), ("auth", "0001")]
    check_migrations([("shop", "0001"), ("removed_application", "0001")], known, "r1")
    with pytest.raises(ReleaseError, match=r"release r1 lacks: shop\.0002"):
        check_migrations([("shop", "0001"), ("shop", "0002")], known, "r1")


def test_lost_rows_are_warned_of() -> None:
    assert check_rows({"a": 80, "b": 79, "new": 1}, {"a": 100, "b": 100, "dropped": 5}) == [
        "b has 79 rows; 100 at the last drill"
    ]


def test_a_drill_without_room_is_no_success(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration.state_folder.mkdir()
    point = listing.choose(None, Backups(backup("only", 1000, size=2**60)), "this host", RECORD, None)
    with pytest.raises(drill.NoRoomError, match="Whether the backups can be restored is not known"):
        drill.require_room(configuration, point)


def test_a_run_that_ends_during_the_look_was_not_killed(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(configuration, "ship")
    state.write(running_since=1)
    assert notes.was_killed(configuration, "ship")

    def ends(*_: object) -> bool:
        state.write(running_since=0)
        return False

    monkeypatch.setattr(notes, "is_held", ends)
    state.write(running_since=2)
    assert not notes.was_killed(configuration, "ship")


@pytest.mark.parametrize(("listed", "found"), [("shipped.json\n", ""), ("", None)])
def test_an_empty_file_at_the_target_is_not_a_missing_one(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, listed: str, found: str | None
) -> None:
    """As with S3, of which rclone prints nothing in both cases."""
    monkeypatch.setattr(Target, "call", lambda self, command, *words, **more: listed if command == "lsf" else "")
    assert Target(configuration).read("shipped.json") == found


def test_drills_alternate(configuration: Configuration) -> None:
    assert drill.next_source(configuration, {}) == OFFSITE
    assert drill.next_source(configuration, {"source": OFFSITE}) == LOCAL
    assert drill.next_source(configuration, {"source": LOCAL}) == OFFSITE
    assert drill.next_source(replace(configuration, target=""), {"source": LOCAL}) == LOCAL


# As pgBackRest 2.45 prints it, with the exit status 0.
WHOLE = """P00   INFO: verify command begin 2.45: --output=text
P00   INFO: stanza: shop
            status: ok
stanza: shop
status: ok
  archiveId: 15-1, total WAL checked: 5, total valid WAL: 5
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
P00   INFO: verify command end: completed successfully
"""
DAMAGED = """P01   INFO: invalid checksum '15-1/0000000100000000/000000010000000000000003-bd09.zst'
P01   INFO: invalid checksum '20261130-182439F/pg_data/base/1/1255.zst'
stanza: shop
status: error
  archiveId: 15-1, total WAL checked: 5, total valid WAL: 4
    missing: 0, checksum invalid: 1, size invalid: 0, other: 0
"""


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (DAMAGED, "damaged \\(2\\): invalid checksum '15-1.*; invalid checksum '2026.*expire"),
        ("stanza: shop\nstatus: error\n  No usable backup.info file\n", "No usable backup.info file"),
        ("", "damaged"),
    ],
)
def test_damage_that_pgbackrest_ends_well_with_is_named(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, output: str, named: str
) -> None:
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: WHOLE)
    drill.verify(configuration)
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: output)
    with pytest.raises(ReleaseError, match=f"(?s){named}"):
        drill.verify(configuration)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("invalid checksum '15-1/0000000100000000/000000010000000000000003-bd09.zst'",
         "archive/shop/15-1/0000000100000000/000000010000000000000003-bd09.zst"),
        ("invalid checksum '20261130-182439F/pg_data/base/1/1255.zst'", "backup/shop/20261130-182439F"),
        ("file missing '20261130-182439F_20261201-020000D/bundle/1'", "backup/shop/20261130-182439F_20261201-020000D"),
    ],
)  # fmt: skip
def test_what_is_damaged_here_is_copied_back_from_the_target(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, line: str, place: str
) -> None:
    output = f"P01   INFO: {line}\nstanza: shop\nstatus: error\n"
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: output)
    with pytest.raises(ReleaseError) as found:
        drill.verify(replace(configuration, folder="backups"))
    text, here = str(found.value), configuration.repository / place
    command = (
        f"rclone copyto --config=/dev/null --ignore-times offsite:backups/{place} {here}) && chown -R postgres: {here}"
    )
    assert command in text
    assert text.index(command) < text.index("expire"), "the commands that remove the copies, too, are the last resort"
    with pytest.raises(ReleaseError, match=r"^(?!.*rclone).*expire$"):
        drill.verify(replace(configuration, target=""))


def damaged_files(count: int) -> list[str]:
    """Return segments and files of a base backup, as `pgbackrest verify` names them."""
    segments = [f"17-1/0000000100000000/0000000100000000000000{number}-bd09.zst" for number in range(10, 10 + count)]
    return [*segments, "20261130-182439F/bundle/1", "20261130-182439F/bundle/2"]


@pytest.mark.parametrize(
    ("count", "places"),
    [
        (4, [f"archive/shop/{name}" for name in damaged_files(4)[:4]] + ["backup/shop/20261130-182439F"]),
        (5, ["archive/shop", "backup/shop/20261130-182439F"]),
    ],
)
def test_each_of_several_damaged_files_has_its_command(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, count: int, places: list[str]
) -> None:
    output = "".join(f"P01   INFO: invalid checksum '{file}'\n" for file in damaged_files(count))
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: f"{output}status: error\n")
    with pytest.raises(ReleaseError) as found:
        drill.verify(replace(configuration, folder="backups"))
    assert re.findall(r"--ignore-times offsite:backups/(\S+) ", str(found.value)) == places
    assert re.findall(rf"chown -R postgres: {configuration.repository}/([^\s;]+?)[;.] ", str(found.value)) == places


@pytest.mark.parametrize("count", [3, 4])
def test_each_of_several_damaged_copies_has_its_command(
    configuration: Configuration, copied: list[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    wrong = {"backup": copied[:2], "archive": copied[20 : 20 + count]}
    monkeypatch.setattr(Target, "differing", lambda self, folder, name, *rest, **more: wrong[name])
    with pytest.raises(ReleaseError) as found:
        drill.read_part(configuration, 0, is_verified=True)
    wanted = [*wrong["backup"], *wrong["archive"]] if count == 3 else ["backup/shop/20261130-182439F", "archive/shop"]
    assert re.findall(r" offsite:/(\S+)\)", str(found.value)) == wanted


def test_segments_that_are_lost_here_are_copied_back_from_the_target(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Repository, "backups", lambda self: [backup("only", 1000)])
    last = "000000010000000000000003"
    place = f"offsite:/archive/shop {configuration.repository}/archive/shop)"
    text = ship.oldest_hole(configuration, last, 2**24)
    assert text.index(f"--ignore-existing {place}") < text.index("expire")
    assert "rclone" not in ship.oldest_hole(replace(configuration, target=""), last, 2**24)


@pytest.fixture
def copied(configuration: Configuration) -> list[str]:
    """The files that the target has, of a full backup and of the log."""
    names = [f"backup/shop/20261130-182439F/pg_data/{number}" for number in range(20)]
    names += [f"archive/shop/17-1/0000000100000000/0000000100000000000000{number}-hash.zst" for number in range(10, 30)]
    for name in [*names, "backup/shop/20261130-999999F/not sent", "archive/shop/archive.info"]:
        path = configuration.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    State(configuration, "ship").write(shipped=RECORD, target=configuration.target, copied_from=time.time() + 60)
    State(configuration, "backups").write(sent=["20261130-182439F"])
    return names


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What rclone compares, by content; `damaged` is a file that differs, `error` what it fails with (in `slow`)."""
    found: dict[str, Any] = {"files": [], "damaged": "", "error": None, "slow": "", "seconds": []}

    def check(self: Target, command: str, source: str, place: str, *words: str, stdin: str, **more: Any) -> str:
        part = Path(source).name
        if found["error"] and found["slow"] in ("", part):
            raise found["error"]
        found["seconds"].append(more.get("seconds"))
        names = [f"{part}/{name}" for name in stdin.split("\n") if name]
        if "--download" not in words:
            return ""
        assert any(word.startswith("--bwlimit=") for word in words), "a drill must not use all of the network"
        found["files"] += names
        if found["damaged"] in names:
            raise ToolError("rclone failed: 1 differences found", 1, f"* {found['damaged'].removeprefix(f'{part}/')}\n")
        return ""

    monkeypatch.setattr(Target, "call", check)
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: WHOLE)
    return found


def test_each_copied_file_is_read_once_in_as_many_drills_as_there_are_parts(
    configuration: Configuration, copied: list[str], reads: dict[str, Any]
) -> None:
    last: dict[str, Any] = {}
    for _ in range(drill.PARTS):
        before = len(reads["files"])
        last["part"], last["parts"] = drill.next_part(last)
        assert drill.read_part(configuration, last["part"]) == []
        assert before < len(reads["files"]) < before + len(copied), "each drill reads a part only"
    assert sorted(reads["files"]) == sorted(copied)


def test_a_damaged_copy_of_an_older_backup_is_named_with_the_command_that_replaces_it(
    configuration: Configuration, copied: list[str], reads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads["damaged"] = file = copied[3]
    number = drill.part_of(file.partition("/")[2])
    with pytest.raises(ReleaseError, match=rf"does not return.*{file}.*rclone copyto .*/{file} offsite:.*{file}\)"):
        drill.read_part(configuration, number)
    assert drill.read_part(configuration, (number + 1) % drill.PARTS) == [], "another part has other files"
    # It may be the file of this host that is damaged.
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: DAMAGED)
    with pytest.raises(ReleaseError, match=r"^Files of the backups in .*/repository are damaged"):
        drill.read_part(configuration, number)


def test_copies_that_are_read_too_slowly_are_a_warning(
    configuration: Configuration, copied: list[str], reads: dict[str, Any]
) -> None:
    reads["error"] = ToolError("rclone did not end within 14400 s, and was stopped.", None)
    assert "not all of part 1 of 3" in drill.read_part(configuration, 0)[0]
    reads["error"] = ToolError("rclone failed: no route to host", 1)
    with pytest.raises(ToolError):
        drill.read_part(configuration, 0)


@pytest.mark.parametrize("slow", ["backup", "archive"])
def test_damage_is_named_although_there_was_no_time_for_the_rest(
    configuration: Configuration, copied: list[str], reads: dict[str, Any], slow: str
) -> None:
    reads["error"], reads["slow"] = ToolError("rclone did not end within 7200 s, and was stopped.", None), slow
    reads["damaged"] = file = next(name for name in copied if not name.startswith(slow))
    with pytest.raises(ReleaseError, match=f"does not return.*{file}"):
        drill.read_part(configuration, drill.part_of(file.partition("/")[2]))
    assert reads["seconds"][0] > drill.READ_SECONDS / 2 - 60, "half of the time is its own"


def test_what_there_was_no_time_for_is_read_by_smaller_parts(
    configuration: Configuration, copied: list[str], reads: dict[str, Any]
) -> None:
    last: dict[str, Any] = {"part": 0, "unread": True}
    numbers = []
    for _ in range(2 * drill.PARTS):
        last["part"], last["parts"] = drill.next_part(last)
        last["unread"] = False
        numbers.append(last["part"])
        assert drill.read_part(configuration, last["part"], last["parts"]) == []
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert sorted(reads["files"]) == sorted(copied)


def test_the_parts_are_as_few_as_before_after_a_complete_round() -> None:
    last: dict[str, Any] = {}
    reads = []
    # The second one has not enough time.
    for number in range(10):
        last["part"], last["parts"] = drill.next_part(last)
        last["unread"] = number == 1
        reads.append((last["part"], last["parts"]))
    assert reads == [(0, 3), (1, 3), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (0, 3), (1, 3), (2, 3)]


def test_the_parts_are_limited_and_the_next_one_is_read_when_none_gets_smaller() -> None:
    most = drill.MOST_PARTS
    assert drill.next_part({"part": 1, "parts": most // 2, "unread": True}) == (1, most)
    assert drill.next_part({"part": 1, "parts": most, "unread": True}) == (2, most)
    assert drill.next_part({"part": most - 1, "parts": most, "unread": True}) == (0, most)
    assert drill.next_part({"part": most - 1, "parts": most}) == (0, most // 2)


def test_a_repository_that_was_read_is_not_read_again(
    configuration: Configuration, copied: list[str], reads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads["damaged"] = file = copied[3]
    calls: list[str] = []
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: calls.append(command) or WHOLE)
    for is_verified, wanted in ((True, []), (False, ["verify"])):
        with pytest.raises(ReleaseError, match="does not return"):
            drill.read_part(configuration, drill.part_of(file.partition("/")[2]), is_verified=is_verified)
        assert calls == wanted


def test_of_a_new_target_nothing_is_read(
    configuration: Configuration, copied: list[str], reads: dict[str, Any]
) -> None:
    for number in range(drill.PARTS):
        drill.read_part(configuration, number)
    assert sorted(reads["files"]) == sorted(copied)
    reads["files"].clear()
    for number in range(drill.PARTS):
        drill.read_part(replace(configuration, target="elsewhere"), number)
    assert reads["files"] == []


# --- State, locks, notes -------------------------------------------------------------------------------------------


def test_a_failure_is_recorded_and_keeps_what_succeeded(configuration: Configuration) -> None:
    state = State(configuration, "ship")
    with state.recorded() as values:
        values["shipped"] = "first"

    def fail() -> None:
        with state.recorded() as values:
            values["shipped"] = "second"
            raise ReleaseError("away")

    with pytest.raises(ReleaseError):
        fail()
    found = state.read()
    assert (found["shipped"], found["problem"]) == ("first", "away")
    with state.recorded():
        pass
    assert state.read()["problem"] == ""


def test_a_problem_is_recorded_as_a_target_of_another_server(configuration: Configuration) -> None:
    state = State(configuration, "ship")
    for error, is_foreign in ((ship.ForeignError("another"), True), (ReleaseError("away"), False)):
        with pytest.raises(ReleaseError), state.recorded():
            raise error
        assert state.read()["foreign"] == is_foreign
    state.write(foreign=True)
    with state.recorded():
        pass
    assert not state.read()["foreign"]


def test_a_run_that_gives_way_to_another_has_not_failed(configuration: Configuration) -> None:
    def give_way() -> None:
        with State(configuration, "drill").recorded(), lock(configuration, "work"):
            pass

    with lock(configuration, "work"), pytest.raises(BusyError):
        give_way()
    found = State(configuration, "drill").read()
    assert (found.get("problem"), found["running_since"]) == (None, 0)


def test_a_lock_has_one_holder_who_is_named(configuration: Configuration) -> None:
    with lock(configuration, "work"):
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), lock(configuration, "work"):
            pass
        with lock(configuration, "ship"):
            pass
    with lock(configuration, "work"):
        pass


def test_what_excludes_a_drill_says_how_to_stop_it(
    configuration: Configuration, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = "To stop a drill: systemctl stop shop-backup-drill"
    with lock(configuration, "drill"), lock(configuration, "work"), lock(configuration, "ship"):
        with pytest.raises(BusyError, match=rf"process {os.getpid()}\)\. {stop}$"), lock(configuration, "drill"):
            pass
        assert capsys.readouterr().out == "", "nothing was waited for"
        with pytest.raises(BusyError, match=r"process \d+\)\.$"), lock(configuration, "work", wait=1):
            pass
        with pytest.raises(BusyError), lock(configuration, "drill", wait=1):
            pass
        first, second = capsys.readouterr().out.splitlines()
        assert first == f"A backup, restore or drill is running (process {os.getpid()}). Waiting for it, up to 1 s."
        assert second == f"{first} {stop}"
        # The copies of the log, which take seconds, are waited for by each of its timers.
        with pytest.raises(BusyError), lock(configuration, "ship", wait=1):
            pass
        assert capsys.readouterr().out == ""


def noted(settings: Settings, *, age: float = 10**6, uptime: float = 10**6, **values: Any) -> list[str]:
    """Return the notes about a configuration that was written `age` seconds ago."""
    file = settings.etc / "backup.json"
    file.write_text(json.dumps({"name": "shop", "version": "17"} | values))
    os.utime(file, (time.time() - age,) * 2)
    return notes.notes(settings, uptime=uptime)


def test_notes_say_what_is_missing(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notes.notes(settings) == []  # No backups on this host.
    monkeypatch.setattr(Configuration, "state", tmp_path, raising=False)
    monkeypatch.setattr(Configuration, "state_folder", tmp_path / "state")
    texts = noted(settings)
    assert "this server only" in texts[0]
    assert any("A restore was never rehearsed." in text for text in texts)
    assert noted(settings, age=60, target="storage") == [], "a new target has had no time for a copy"
    for name in ("ship", "backups", "files", "drill"):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / f"state/{name}.json").write_text(json.dumps({"ok_at": time.time()}))
    assert noted(settings, target="storage") == []
    assert "backup_kit_kept" in noted(settings, target="storage", kit="/kit.txt")[0]
    (tmp_path / "state/ship.json").write_text(json.dumps({"ok_at": time.time(), "problem": "away"}))
    assert noted(settings, target="storage")[0].endswith("and then failed: away")
    (tmp_path / "state/ship.json").write_text(json.dumps({"problem": "away"}))
    assert noted(settings, target="storage")[0] == "The database was never copied: away"


@pytest.mark.parametrize(("shown", "seconds"), [("5000000", 100.0), ("", 300.0), ("not running; exit 1", 300.0)])
def test_seconds_since_the_boot_are_those_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, seconds: float
) -> None:
    """A container has the /proc/uptime of the host it runs on; it is read only where systemd does not answer."""
    command = tmp_path / "systemctl"
    command.write_text(f"#!/bin/sh\necho {shown}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(notes.time, "monotonic", lambda: 105.0)
    uptime = tmp_path / "uptime"
    uptime.write_text("300.0 500.0\n")
    monkeypatch.setattr(notes, "UPTIME", uptime)
    assert notes.seconds_up() == seconds


@pytest.mark.parametrize(("kind", "before"), [("ship", 60), ("files", 600), ("backups", 3600), ("drill", 7200)])
def test_a_server_that_was_off_for_long_has_time_for_its_copies(
    settings: Settings, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, kind: str, before: float
) -> None:
    monkeypatch.setattr(Configuration, "load", lambda settings: configuration)
    now = time.time()
    for name in notes.WHAT:
        State(configuration, name).replace({"ok_at": now})
    State(configuration, kind).replace({"ok_at": now - 30 * 86400})
    assert noted(settings, uptime=before) == []
    (text,) = noted(settings, uptime=3 * 3600)
    assert text == f"{notes.WHAT[kind]} 30 d ago. See journalctl -u shop-backup-*."


@pytest.mark.parametrize("kind", list(notes.WHAT))
def test_a_killed_run_without_one_before_it(
    settings: Settings, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Configuration, "load", lambda settings: configuration)
    State(configuration, kind).replace({"running_since": time.time() - 60})
    (text,) = [text for text in noted(settings, uptime=60) if "killed" in text]
    never = notes.WHAT[kind].replace(" last ", " never ")
    command = " ".join(["shopctl backup", *notes.COMMAND[kind]])
    assert text == f"{never}: the last run was killed. To run it again: {command}"
    State(configuration, kind).write(ok_at=time.time() - 30 * 3600)
    (text,) = [text for text in noted(settings, uptime=60) if "killed" in text]
    assert text == f"{notes.WHAT[kind]} 30 h ago, and the run after that was killed. To run it again: {command}"


# --- Restore -------------------------------------------------------------------------------------------------------


def options(**values: Any) -> Namespace:
    names = ("offsite", "yes", "undo", "show", "other_secrets", "database_only", "complete", "uploads")
    return Namespace(**({"at": ""} | dict.fromkeys(names, False) | values))


def test_other_secrets_are_refused_and_named(host: Host, configuration: Configuration) -> None:
    record = {"fingerprints": {"django_key": "b", "unknown": "x"}}
    with pytest.raises(
        ReleaseError,
        match=r"not those of the backup: django_key\. .*write the .* then run site\.yml -e secrets_replace",
    ):
        restore.Restore(host, configuration, options()).compare_secrets(record)
    restore.Restore(host, configuration, options(other_secrets=True)).compare_secrets(record)
    restore.Restore(host, configuration, options()).compare_secrets(RECORD)


def test_a_restore_of_what_the_passphrases_do_not_open_says_the_steps(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with --other-secrets: the server's own repository must be moved first."""
    monkeypatch.setattr(restore, "shipped", lambda target: RECORD | {"fingerprints": {"backup_key": "other"}})
    with pytest.raises(ReleaseError, match=r"(?s)\(backup_key\)\. To restore them here:\n1\. .*\n2\. .* mv .*\n3\. .*"):
        restore.Restore(host, configuration, options(offsite=True, other_secrets=True)).find()


def test_nothing_happens_without_a_yes(host: Host, configuration: Configuration) -> None:
    with pytest.raises(ReleaseError, match=r"Nothing was changed.*--yes"):
        restore.Restore(host, configuration, options()).confirm()
    restore.Restore(host, configuration, options(yes=True)).confirm()


def test_a_killed_restore_is_reverted_by_the_next(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "main.before-1"
    (tmp_path / "main").mkdir()
    (tmp_path / "main/restored").touch()
    kept.mkdir()
    (kept / "former").touch()
    State(configuration, "restore").replace({"kept": str(kept), "accepted": False, "was_running": False})
    monkeypatch.setattr(restore.Restore, "systemctl", lambda *arguments: None)
    restore.Restore(host, configuration, options()).finish_killed()
    assert [path.name for path in (tmp_path / "main").iterdir()] == ["former"]
    assert not kept.exists()
    assert State(configuration, "restore").read() == {}
    # Once it was accepted, the restored one stays.
    State(configuration, "restore").replace({"kept": str(kept), "accepted": True})
    restore.Restore(host, configuration, options()).finish_killed()
    assert (tmp_path / "main/former").exists()


@pytest.mark.parametrize("done", ["nothing", "the present one is kept", "everything"])
def test_an_exchange_continues_where_it_was_killed(tmp_path: Path, done: str) -> None:
    present, former, kept = tmp_path / "main", tmp_path / "main.before-1", tmp_path / "main.before-2"
    for folder, name in ((present, "restored"), (former, "former")):
        folder.mkdir()
        (folder / name).touch()
    if done != "nothing":
        restore.move(present, kept)
    if done == "everything":
        restore.move(former, present)
    restore.exchange_folders(present, former, kept)
    assert [path.name for path in present.iterdir()] == ["former"]
    assert [path.name for path in kept.iterdir()] == ["restored"]
    assert not former.exists()


def test_a_folder_moves_to_another_file_system_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "main", tmp_path / "kept"
    source.mkdir()
    (source / "file").write_text("row")
    rename = Path.rename

    def refuse(path: Path, other: Path) -> None:
        if (path, other) == (source, target):
            raise OSError(errno.EXDEV, "another file system")
        # While it is copied, it does not have its name.
        assert not target.exists()
        rename(path, other)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(restore, "remove", shutil.rmtree)
    restore.move(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (target / "file").read_text() == "row"


def test_links_of_the_application_are_not_followed(tmp_path: Path) -> None:
    for folder in ("restored/deep", "media", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "restored/deep/file").touch()
    (tmp_path / "media/deep").symlink_to(tmp_path / "elsewhere")
    assert restore.merge(tmp_path / "restored", tmp_path / "media") == (0, 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_former_database_that_does_not_start_blocks_no_restore(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    State(configuration, "restore").replace({"kept": "/other", "accepted": False})

    def broken(*arguments: Any) -> None:
        if "start" in arguments:
            raise ToolError("it does not start", 1)

    monkeypatch.setattr(restore.Restore, "systemctl", broken)
    restore.Restore(host, configuration, options()).finish_killed()
    assert State(configuration, "restore").read() == {}


def test_a_reverted_restore_keeps_the_way_back_of_the_one_before(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = {"kept": "/kept", "accepted": True}
    State(configuration, "restore").replace({"kept": "/other", "accepted": False, "previous": former})
    monkeypatch.setattr(restore.Restore, "systemctl", lambda *arguments: None)
    restore.Restore(host, configuration, options()).finish_killed()
    assert State(configuration, "restore").read() == former


@pytest.mark.parametrize("several", [False, True])
def test_the_end_says_where_the_former_database_is(
    host: Host, configuration: Configuration, tmp_path: Path, capsys: pytest.CaptureFixture[str], several: bool
) -> None:
    host.settings = replace(host.settings, barriers=several)
    kept, repository = tmp_path / "main.before-1", tmp_path / "pgbackrest.before-1"
    for folder in (kept, repository):
        folder.mkdir()
    (kept / "table").write_bytes(b"1" * 2_000_000)
    State(configuration, "restore").write(kept=str(kept), repository=str(repository), accepted=True)
    ended = restore.Restore(host, configuration, options())
    ended.report(SimpleNamespace(at="2026-11-28T18:59:30Z", seconds=time.time() - 30))
    undo = (
        ": ansible-playbook -i INVENTORY playbooks/restore.yml -e restore_undo=true"
        if several
        else ", as root on this server: shopctl backup restore --undo"
    )
    assert capsys.readouterr().out.splitlines() == [
        "Restored the database as it was at 2026-11-28T18:59:30Z (30 s ago).",
        f"The former database is in {kept} (2 MB).",
        f"To return to it{undo}",
        f"To remove it, when all is well, as root on this server: rm -r {kept} {repository}",
    ]
    # There was none.
    shutil.rmtree(kept)
    assert ended.describe_kept("former") == []


def test_uploads_that_are_there_stay(tmp_path: Path) -> None:
    for name, text in (("restored/a", "old"), ("restored/deep/b", "b"), ("media/a", "new"), ("media/only here", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert restore.merge(tmp_path / "restored", tmp_path / "media") == (2, 1)
    assert (tmp_path / "media/a").read_text() == "new"
    assert (tmp_path / "media/deep/b").read_text() == "b"
    assert (tmp_path / "media/only here").exists()


# --- Preparing -----------------------------------------------------------------------------------------------------


def prepared(
    monkeypatch: pytest.MonkeyPatch, host: Host, configuration: Configuration, mode: str, **info: Any
) -> list[str]:
    calls: list[Any] = []
    monkeypatch.setattr(prepare.Server, "run", lambda self, sql: mode if "archive_mode" in sql else "7")
    monkeypatch.setattr(prepare, "call", lambda command, **more: calls.append(" ".join(command[:2])) or "inactive")
    monkeypatch.setattr(Repository, "info", lambda self: {"db": [], "backup": []} | info)
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: calls.append(command))
    calls.append(prepare.prepare(host, configuration)["changed"])
    return calls


def test_the_repository_and_the_first_backup_are_made_once(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared(monkeypatch, host, configuration, "on") == [
        "stanza-create", "systemctl show", "systemctl start", True
    ]  # fmt: skip
    monkeypatch.setattr(Repository, "backups", lambda self, info=None: [backup("only", 1000)])
    own = [{"id": 1, "system-id": 7, "version": "17"}]
    assert prepared(monkeypatch, host, configuration, "on", db=own) == [False]
    with pytest.raises(ReleaseError, match="has the backups of another database"):
        prepared(monkeypatch, host, configuration, "on", db=[{"id": 1, "system-id": 8, "version": "17"}])
    upgraded = prepared(monkeypatch, host, configuration, "on", db=[{"id": 1, "system-id": 8, "version": "15"}])
    assert upgraded == ["stanza-upgrade", True]


def test_backups_that_the_passphrases_do_not_open_are_named_before_others_are_made(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = replace(configuration, fingerprints={"django_key": "1", "backup_key": "2"})
    record = {"host": "former", "at": "noon", "fingerprints": {"django_key": "9", "backup_key": "2"}}
    monkeypatch.setattr(prepare, "shipped", lambda target: record)
    assert prepared(monkeypatch, host, configuration, "on")[0] == "stanza-create"
    record["fingerprints"]["backup_key"] = "3"
    with pytest.raises(
        ReleaseError, match=r"backups of former, up to noon.* do not open \(backup_key\).* \(or empty this one\)\.$"
    ):
        prepared(monkeypatch, host, configuration, "on")
    # A server with backups of its own says it in its status.
    monkeypatch.setattr(Repository, "backups", lambda self, info=None: [backup("only", 1000)])
    prepared(monkeypatch, host, configuration, "on", db=[{"id": 1, "system-id": 7, "version": "17"}])


def test_a_repository_of_another_passphrase_is_not_replaced_alone(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target, which has the copies of it, would be refused by the next message."""
    stanza = {"name": "shop", "status": {"code": 99, "message": "cipher"}}
    monkeypatch.setattr(Repository, "call", lambda self, command, *words, **more: json.dumps([stanza]))
    with pytest.raises(
        ReleaseError,
        match=r"write the secrets that.* If they are not needed: mkdir .* set another folder in .*; then run site\.yml",
    ):
        Repository(configuration).info()


def test_postgresql_is_not_restarted_under_a_release(
    host: Host, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "systemctl restart" in prepared(monkeypatch, host, configuration, "off")
    monkeypatch.setattr(Host, "current_release", lambda self: "r1")
    assert "systemctl restart" not in prepared(monkeypatch, host, configuration, "off")


def test_the_list_excepts_what_a_restore_gave_up() -> None:
    backup = {"label": "20261128-190000F", "kind": "full", "stopped": 1795892400.0, "size": 1e6, "failed": []}
    gaps = [[1795890000.0, 1795890060.0], [1795892460.0, 1795892520.0]]
    local = {"at": "2026-11-28T19:05:00Z", "seconds": 1795892700.0, "gaps": gaps}
    found = {
        "database": True, "backups": [backup], "sent": [], "ship": {"local": local}, "target": "", "files": {},
        "drill": {}, "kept": [],
    }  # fmt: skip
    said = listing.describe(found)
    assert "any moment from 2026-11-28T19:00:00Z to 2026-11-28T19:05:00Z" in said
    assert "), except 2026-11-28T19:01:00Z to 2026-11-28T19:02:00Z (given up by a restore)." in said


# --- Programs that are called ----------------------------------------------------------------------------------------


def test_a_called_program_ends_with_its_caller(tmp_path: Path) -> None:
    program = ["sh", "-c", f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/process; exec sleep 60"]
    code = f"import subprocess; from hostctl.backup.tools import tied; subprocess.run(tied({program}))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: (tmp_path / "process").exists())
    finally:
        caller.kill()
        caller.wait()
    called = Path("/proc", (tmp_path / "process").read_text().strip(), "cmdline")
    wait_until(lambda: not called.exists() or not called.read_bytes())


def test_a_program_whose_caller_was_killed_before_it_began_does_nothing(tmp_path: Path) -> None:
    """Its parent is init then; here, a shell."""
    command = tied(["touch", str(tmp_path / "ran")])
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *command], check=True)
    assert not (tmp_path / "ran").exists()
    subprocess.run(command, check=True)
    assert (tmp_path / "ran").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
