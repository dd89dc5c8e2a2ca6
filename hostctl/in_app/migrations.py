"""Compare a release's migrations with the database: which are pending, unknown, or harmful while the site is up.

Reads only. Works with Django 4.2 and later; on another database than PostgreSQL no locks are reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .migration_review import Review, is_concurrent, label

# Sessions that are idle in a transaction for longer are reported.
IDLE_SECONDS = 60


def databases(names: list[str]) -> dict[str, dict[str, Any]]:
    """Compare the release with `default` and with each of the named databases; see `migrations`.

    Raises ImproperlyConfigured for a name that DATABASES lacks.
    """
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    for name in names:
        if name not in settings.DATABASES:
            raise ImproperlyConfigured(
                f"app_databases in group_vars/ENV/app.yml has {name}, and DATABASES in the settings has only "
                f"{', '.join(settings.DATABASES)}."
            )
    return {name: migrations(database=name) for name in ("default", *names)}


def migrations(targets: list[str] | None = None, database: str = "default") -> dict[str, Any]:
    """Compare the release's migrations with those applied to a database, and review the pending ones.

    `targets` are names like "shop.0004_slug"; without them, every migration of the release. Returns

        pending     migrations to apply, in order
        known       migrations of the release, including those that its squashed migrations replace
        unknown     applied, and newer than every known one of the same app: the release is older than the database
        orphaned    applied, but irrelevant: the app was removed, or the migration was squashed and deleted
        not_atomic  those of `pending` that do not run in one transaction
        concurrent  those of `not_atomic` whose operations block neither reads nor writes
        warnings    sentences, of one or two lines each
        idle        sessions idle in a transaction for over a minute: pid, user, seconds, application
    """
    import django
    from django.db import connections
    from django.db.migrations.executor import MigrationExecutor

    django.setup()
    connection = connections[database]
    try:
        executor = MigrationExecutor(connection)
        loader = executor.loader
        goals = [tuple(target.split(".", 1)) for target in targets] if targets else loader.graph.leaf_nodes()
        pending = [migration for migration, backwards in executor.migration_plan(goals) if not backwards]
        known = set(loader.disk_migrations)
        for migration in loader.disk_migrations.values():
            known |= {tuple(key) for key in migration.replaces}
        rows = applied(executor.recorder)
        unknown, orphaned = split_unknown(rows, known, loader.migrated_apps)
        not_atomic = [migration for migration in pending if not migration.atomic]
        # An empty database has no data that could be locked or lost.
        steps = executor.migration_plan(goals, clean_start=True) if rows and pending else []
        return {
            "pending": [label(migration) for migration in pending],
            "known": sorted(".".join(key) for key in known),
            "unknown": unknown,
            "orphaned": orphaned,
            "not_atomic": [label(migration) for migration in not_atomic],
            "concurrent": [label(migration) for migration in not_atomic if is_concurrent(migration)],
            "warnings": Review(connection).of(pending, [migration for migration, _ in steps]),
            "idle": idle_sessions(connection),
        }
    finally:
        connection.close()


def applied(recorder: Any) -> list[tuple[str, str]]:
    """Return the applied migrations, oldest first."""
    if not recorder.has_table():
        return []
    return list(recorder.migration_qs.order_by("id").values_list("app", "name"))


def split_unknown(
    rows: list[tuple[str, str]], known: set[tuple[str, str]], apps: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Split the applied migrations that the release does not know into those newer than the release, and orphaned ones.

    A row older than a known one of the same app is left over from a squash (`migrate --prune` removes it).
    """
    latest = {app: place for place, (app, name) in enumerate(rows) if (app, name) in known}
    unknown, orphaned = [], []
    for place, (app, name) in enumerate(rows):
        if (app, name) not in known:
            (unknown if app in apps and place > latest.get(app, -1) else orphaned).append(f"{app}.{name}")
    return unknown, orphaned


def idle_sessions(connection: Any) -> list[dict[str, Any]]:
    """Return the sessions of this database that are idle in a transaction, as far as the role may see them."""
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT pid, usename, extract(epoch FROM clock_timestamp() - state_change)::int, application_name
                 FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%%'
                  AND state_change < clock_timestamp() - make_interval(secs => %s)
                ORDER BY state_change""",
            [IDLE_SECONDS],
        )
        return [dict(zip(("pid", "user", "seconds", "application"), row, strict=True)) for row in cursor.fetchall()]
