"""Beat's schedules tick. The last module, so that most of the minute between two ticks has passed."""

from __future__ import annotations

from installation import Installation, query
from probes import wait_for
from testinfra.host import Host

# A tick is due every 60 s.
SECONDS = 90


def test_heartbeat_passes_through_every_queue(host: Host, app: Installation, release: str) -> None:
    """Newer than this run's first look at the host, so also newer than a reboot before it."""
    sql = f"SELECT name FROM shop_heartbeat WHERE at > '{app.began}' AND release = '{release}'"
    what = f"heartbeats of {', '.join(app.queues)}"
    wait_for(lambda: set(query(host, app, sql).split()), SECONDS, what, lambda seen: seen == set(app.queues))


def test_page_views_reach_the_database(host: Host, app: Installation) -> None:
    """Every test of the home page counts; beat has the counts written every minute."""
    flushed = (
        "SELECT count FROM shop_pageview, django_celery_beat_periodictask "
        f"WHERE page = 'home' AND name = 'flush-page-views' AND last_run_at > '{app.began}'"
    )
    views = wait_for(lambda: query(host, app, flushed), SECONDS, "page views are flushed")
    assert int(views) > 0


def test_schedule_by_the_clock_exists(host: Host, app: Installation) -> None:
    sql = (
        "SELECT hour, minute, enabled FROM django_celery_beat_periodictask AS task "
        "JOIN django_celery_beat_crontabschedule AS crontab ON crontab.id = task.crontab_id WHERE name = 'clean-up'"
    )
    assert query(host, app, sql) == "3|30|t"
