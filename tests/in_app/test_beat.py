"""beat.py, and the questions about periodic tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import END_SECONDS, PROJECT, Broker, Site, wait_until
from databases import new_database

DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
MIGRATE = ("-m", "django", "migrate", "--verbosity", "0")


@pytest.fixture(scope="session")
def migrated() -> Iterator[str]:
    """The URL of a database with the tables of the project, to be copied: migrations take longer than most tests."""
    with new_database() as url:
        variables = {"DJANGO_SETTINGS_MODULE": "sample.settings", "DATABASE_URL": url}
        # Required by the settings; not used.
        variables |= {"RESULTS": "/", "CELERY_BROKER_URL": "redis://127.0.0.1:1"}
        subprocess.run([sys.executable, *MIGRATE], cwd=PROJECT, env=os.environ | variables, check=True)
        yield url


@pytest.fixture
def database(migrated: str) -> Iterator[dict[str, str]]:
    """Yield the environment of a project with its schedule in PostgreSQL, whose tables exist."""
    with new_database(template=migrated) as url:
        yield {"DATABASE_URL": url, "SCHEDULER": DATABASE_SCHEDULER}


def wait_until_blocked(connection: psycopg.Connection) -> None:
    """Wait until a session of this database waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: connection.execute(waiting).fetchone() == (1,))


@pytest.mark.core
def test_beat_runs_once(site: Site, broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: site.depth("ticks") >= 1)
    second = site.beat()
    assert second.wait(END_SECONDS) == 1
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
        assert beat.wait(END_SECONDS) == 0
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
        assert beat.wait(END_SECONDS) == -signal.SIGTERM


@pytest.mark.core
def test_signal_ends_beat_while_it_waits_for_redis(site: Site, stopped_broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: "Trying again in" in site.output(beat))
    beat.terminate()
    assert beat.wait(END_SECONDS) == 0


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


# --- What is not sent ----------------------------------------------------------------------------------------------


def state(site: Site) -> dict[str, Any]:
    file = site.folder / "state.json"
    return json.loads(file.read_text()) if file.exists() else {"sent": 0}


def look_often(site: Site) -> None:
    site.change("overdue", "LOOK_SECONDS = 15", "LOOK_SECONDS = 1")
    site.change("overdue", "LATE_SECONDS = 60", "LATE_SECONDS = 3")


@pytest.mark.core
def test_beat_says_what_was_due_and_was_not_sent(site: Site, broker: Broker) -> None:
    look_often(site)
    silent = site.beat(SCHEDULER="sample.silent:Scheduler")
    wait_until(lambda: "The periodic task tick was due at" in site.output(silent))
    # It is said before it is written.
    wait_until(lambda: list(state(site)["overdue"]) == ["tick"])
    assert state(site)["sent"] == 0
    assert site.stop(silent) == 0
    site.beat()
    # On a busy machine a tick may be overdue for a moment.
    wait_until(lambda: (found := state(site))["sent"] >= 6 and found["overdue"] == {})


@pytest.mark.core
def test_database_schedule_without_time_zones_is_sent_or_missed(
    site: Site, broker: Broker, database: dict[str, str]
) -> None:
    """The last run is read as UTC there, an hour or two ahead: after a restart nothing would be due."""
    look_often(site)
    naive = database | {"NAIVE": "yes", "TIME_ZONE": "Europe/Berlin"}
    first = site.beat(**naive)
    wait_until(lambda: site.depth("ticks") >= 2)
    assert site.stop(first) == 0
    number = site.depth("ticks")
    site.beat(**naive)
    wait_until(lambda: site.depth("ticks") >= number + 2 or state(site).get("overdue"))
    print("sent" if site.depth("ticks") >= number + 2 else "missed")


# --- The scheduler -------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_database_scheduler_is_used_where_it_is_installed(site: Site, broker: Broker, database: dict[str, str]) -> None:
    beat = site.beat(**database, UNSET="yes")
    wait_until(lambda: site.depth("ticks") >= 1)
    # It saves its counts every three minutes, and when it stops.
    assert site.stop(beat) == 0
    with psycopg.connect(database["DATABASE_URL"]) as connection:
        counted = connection.execute("SELECT total_run_count FROM django_celery_beat_periodictask WHERE name = 'tick'")
        assert counted.fetchone() == (site.depth("ticks"),)


@pytest.mark.core
def test_redbeat_starts_at_once_after_a_kill(site: Site, broker: Broker) -> None:
    """Its lock in Redis would keep it waiting for 25 minutes."""
    variables = {"SCHEDULER": "redbeat.RedBeatScheduler"}
    beat = site.beat(**variables)
    wait_until(lambda: site.depth("ticks") >= 2)
    os.kill(beat.pid, signal.SIGKILL)
    beat.wait()
    number = site.depth("ticks")
    again = site.beat(**variables)
    wait_until(lambda: site.depth("ticks") >= number + 2)
    rows = ["queues", "sample", "redbeat.RedBeatScheduler", True, str(PROJECT)]
    assert site.ask(rows, DJANGO_SETTINGS_MODULE="sample.settings")["queues"]["ticks"] == ["the periodic task tick"]
    assert site.stop(again) == 0


def test_a_redis_that_redbeat_cannot_use_is_refused(site: Site, broker: Broker, database: dict[str, str]) -> None:
    question = ["check", "sample.celery:app", "sample", True, "redbeat.RedBeatScheduler"]
    variables = database | {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    assert site.ask(question, **variables)["beat"] == []
    # Nothing answers there. (The end of the message, since pytest shortens it.)
    with pytest.raises(AssertionError, match=r"Write beside the Celery application: app\.conf\.redbeat_redis_url"):
        site.ask(question, **variables, REDBEAT_URL="redis://127.0.0.1:9/0")


@pytest.mark.core
def test_what_the_start_of_beat_changes_is_said(site: Site, broker: Broker, database: dict[str, str]) -> None:
    question = ["check", "sample.celery:app", "sample", True, ""]
    variables = database | {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    assert site.ask(question, **variables)["beat"] == []
    site.stop(wait_for_tick(site, database))
    assert site.ask(question, **variables)["beat"] == []
    edit = """
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
often = IntervalSchedule.objects.create(every=10, period="minutes")
PeriodicTask.objects.filter(name="tick").update(interval=often)
"""
    site.django("-c", edit, **variables)
    naive, changed = site.ask(question, **variables, NAIVE="yes", TIME_ZONE="Europe/Berlin")["beat"]
    assert naive.startswith('USE_TZ = False beside TIME_ZONE = "Europe/Berlin"')
    assert "is lost: tick from <freq: 10.00 minutes> to <freq: 1.00 second>." in changed


def wait_for_tick(site: Site, variables: dict[str, str]) -> subprocess.Popen:
    beat = site.beat(**variables)
    wait_until(lambda: site.depth("ticks") >= 1)
    return beat
