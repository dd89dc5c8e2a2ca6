"""beat.py, and the questions about periodic tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import Broker, Site, wait_until
from databases import new_database

DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
MIGRATE = ("-m", "django", "migrate", "--verbosity", "0")


@pytest.fixture
def database(site: Site) -> Iterator[dict[str, str]]:
    """Yield the environment of a project with its schedule in PostgreSQL, whose tables exist."""
    with new_database() as url:
        variables = {"DATABASE_URL": url, "SCHEDULER": DATABASE_SCHEDULER}
        site.django(*MIGRATE, **variables)
        yield variables


def wait_until_blocked(connection: psycopg.Connection) -> None:
    """Wait until a session of this database waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: connection.execute(waiting).fetchone() == (1,))


@pytest.mark.core
def test_beat_runs_once(site: Site, broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: site.depth("ticks") >= 1)
    second = site.beat()
    assert second.wait(60) == 1
    assert f"Beat is already running: another process has locked {site.folder}/lock." in site.output(second)
    assert site.stop(beat) == 0
    assert list(site.folder.glob("schedule*"))
    third = site.beat()
    number = site.depth("ticks")
    wait_until(lambda: site.depth("ticks") > number)
    os.kill(third.pid, signal.SIGKILL)
    third.wait()
    number = site.depth("ticks")
    site.beat()
    wait_until(lambda: site.depth("ticks") > number)


@pytest.mark.core
def test_beat_defers_signals_while_it_waits_for_the_database(
    site: Site, broker: Broker, database: dict[str, str]
) -> None:
    # The signal may arrive in another thread, such as that of a connection pool or an error reporter.
    beat = site.beat(**database, THREAD="yes")
    wait_until(lambda: site.depth("ticks") >= 2)
    url = database["DATABASE_URL"]
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as other:
        holder.execute("LOCK TABLE django_celery_beat_periodictasks")
        wait_until_blocked(other)
        beat.terminate()
        # Time to handle the signal, if it was not deferred.
        time.sleep(1)
        holder.rollback()
        assert beat.wait(60) == 0
        # Every tick that was sent is in the schedule.
        counted = other.execute("SELECT total_run_count FROM django_celery_beat_periodictask WHERE name = 'tick'")
        assert counted.fetchone() == (site.depth("ticks"),)


def test_signal_ends_beat_before_it_has_read_its_schedule(site: Site, broker: Broker, database: dict[str, str]) -> None:
    url = database["DATABASE_URL"]
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as other:
        holder.execute("LOCK TABLE django_celery_beat_periodictask")
        beat = site.beat(**database)
        wait_until_blocked(other)
        beat.terminate()
        assert beat.wait(60) == -signal.SIGTERM


@pytest.mark.core
def test_signal_ends_beat_while_it_waits_for_redis(site: Site, stopped_broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: "Trying again in" in site.output(beat))
    beat.terminate()
    assert beat.wait(60) == 0


@pytest.mark.core
@pytest.mark.parametrize("scheduler", ["celery.beat:PersistentScheduler", DATABASE_SCHEDULER])
def test_beat_follows_a_clock_that_goes_a_day_forward_and_back(
    site: Site, broker: Broker, database: dict[str, str], scheduler: str
) -> None:
    clock = site.folder / "clock"
    # The clock of beat alone; what measures intervals is not affected.
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    variables = database | {
        "SCHEDULER": scheduler, "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip

    def set_clock(offset: str) -> None:
        # At once: beat reads the file with every call, and an empty one is no time.
        new = clock.with_name("clock.new")
        new.write_text(offset)
        new.replace(clock)

    def wait_for_ticks() -> None:
        number = site.depth("ticks")
        wait_until(lambda: site.depth("ticks") >= number + 3)

    def corrections(process: subprocess.Popen) -> int:
        return site.output(process).count("The clock was set back by about 86")

    set_clock("+0")
    beat = site.beat(**variables)
    wait_for_ticks()
    set_clock("+86400")
    wait_for_ticks()
    assert not corrections(beat)
    set_clock("+0")
    wait_for_ticks()
    assert corrections(beat) == 1
    set_clock("+86400")
    wait_for_ticks()
    assert site.stop(beat) == 0
    # Set back while beat does not run.
    set_clock("+0")
    beat = site.beat(**variables)
    wait_for_ticks()
    assert corrections(beat) == 1
    assert site.stop(beat) == 0
    # What it wrote is in the past, so the next one has nothing to correct.
    beat = site.beat(**variables)
    wait_for_ticks()
    assert not corrections(beat)


def test_periodic_tasks_without_code_are_reported(site: Site, broker: Broker) -> None:
    rows = """
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every = IntervalSchedule.objects.create(every=1, period="days")
for name, task, enabled in [("a", "sample.tick", 1), ("b", "sample.gone", 1), ("c", "sample.gone", 0)]:
    PeriodicTask.objects.create(name=name, task=task, enabled=enabled, interval=every)
"""
    site.django(*MIGRATE)
    site.django("-c", rows)
    assert site.ask(["periodic", "sample"]) == {"unknown": [["b", "sample.gone"]]}


def test_check_fails_without_beats_scheduler(site: Site, broker: Broker) -> None:
    question = ["check", "sample.celery:app", "sample"]
    variables = {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    for scheduler in ("celery.beat:PersistentScheduler", "django_celery_beat.schedulers:DatabaseScheduler", "django"):
        assert "versions" in site.ask([*question, True], **variables, SCHEDULER=scheduler)
    gone = variables | {"SCHEDULER": "gone.schedulers:Database"}
    assert "versions" in site.ask([*question, False], **gone)
    with pytest.raises(AssertionError, match="Its package must be in the requirements"):
        site.ask([*question, True], **gone)
