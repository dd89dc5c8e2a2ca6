"""The lock: one deployment at a time, and none outlives its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hostctl.deploy import record
from hostctl.settings import BusyError, Settings


def test_a_second_deployment_is_refused_with_facts_about_the_first(settings: Settings) -> None:
    first, second = record.Record(settings), record.Record(settings)
    first.hold()
    first.begin("deploy", "abcd-1", "anna@laptop")
    first.step("migrate")
    with pytest.raises(BusyError, match=r"deploy abcd-1, started \d+ s ago by anna@laptop, now at step migrate"):
        second.hold()
    assert second.held()
    os.close(first.handle)
    assert not second.held()
    second.hold()


def test_a_deployment_that_has_ended_is_not_named_as_the_holder(settings: Settings) -> None:
    """The lock may be that of one that has not begun, or of `verify`."""
    first, second = record.Record(settings), record.Record(settings)
    first.hold()
    first.begin("deploy", "abcd-1", "anna@laptop")
    first.end(0, "succeeded")
    with pytest.raises(
        BusyError, match=r"^Another deployment or an import is running\. Wait until it has ended, then run again\.$"
    ):
        second.hold()


def test_the_lock_ends_with_its_process(settings: Settings) -> None:
    path = settings.home / "lock"
    lock = f"file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True)"
    code = f"import fcntl, time; {lock}; time.sleep(60)"
    book = record.Record(settings)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BusyError):
            book.hold()
        process.kill()
    book.hold()
