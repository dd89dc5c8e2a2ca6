"""What a restored database must be, before it counts: it is read as it stands at the target of its recovery."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..settings import ReleaseError
from .configuration import Configuration
from .listing import Point
from .server import Server
from .tools import ACCOUNT, call

# Seconds without the canary before a moment, after which the state is not that of the moment.
SILENT_SECONDS = 900
MIGRATIONS = """
SELECT to_regclass('public.django_migrations') IS NOT NULL AS migrated \\gset
\\if :migrated
SELECT coalesce(json_agg(json_build_array(app, name, extract(epoch FROM applied))), '[]') FROM public.django_migrations;
\\else
SELECT '[]';
\\endif
"""
TABLES = """
SELECT coalesce(json_object_agg(name, rows), '{}') FROM (
  SELECT format('%I.%I', nspname, relname) AS name,
         (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM %I.%I', nspname, relname),
                                              false, true, '')))[1]::text::bigint AS rows
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
   WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'seedbed')
   ORDER BY relpages DESC LIMIT 10) AS largest;
"""


def check_canary(configuration: Configuration, server: Server, point: Point) -> float:
    """Return by how many seconds the restored state is older than the point. Raises ReleaseError when it is another."""
    age = server.canary_age(point.seconds)
    if age is None:
        raise ReleaseError("The restored database has no canary: it is not the one that was backed up.")
    if point.is_newest and abs(age) > 0.01:
        raise ReleaseError(
            f"The restored database is as it was {age:.0f} s before {point.at}: the write-ahead log is not complete."
        )
    if not point.is_newest and age > SILENT_SECONDS:
        raise ReleaseError(
            f"The restored database shows no sign of life for {age / 60:.0f} minutes before {point.at}, although one "
            "is written every minute: that moment cannot be trusted. Choose another one."
        )
    return max(0.0, age)


def migrations(server: Server, database: str) -> dict[tuple[str, str], float]:
    """Return when each migration was applied."""
    return {(app, name): applied for app, name, applied in json.loads(server.run(MIGRATIONS, database))}


def check_migrations(restored: Iterable[tuple[str, str]], known: Iterable[tuple[str, str]], release: str) -> None:
    """Raise ReleaseError when a restored database has migrations of the project that the release lacks."""
    known = set(known)
    applications = {app for app, _ in known}
    if unknown := sorted(f"{app}.{name}" for app, name in set(restored) - known if app in applications):
        raise ReleaseError(
            f"The restored database has migrations that the release {release} lacks: {', '.join(unknown[:5])}. Deploy "
            "a release that has them (app_git_ref, then site.yml), and restore again."
        )


def count_rows(server: Server, database: str) -> dict[str, int]:
    """Return the rows of the ten largest tables."""
    return server.ask(TABLES, database)


def check_rows(now: dict[str, int], before: dict[str, int]) -> list[str]:
    """Return a sentence for each table that has lost more than a fifth of its rows since the last drill."""
    return [
        f"{name} has {now[name]:,} rows; {count:,} at the last drill"
        for name, count in before.items() if name in now and now[name] < 0.8 * count
    ]  # fmt: skip


def check_readable(configuration: Configuration, server: Server) -> None:
    """Have pg_dump read the catalogs. Raises ReleaseError."""
    command = [str(configuration.programs / "pg_dump"), "--schema-only", f"--dbname={configuration.database}"]
    call(command, seconds=600, user=ACCOUNT, environment=server.connection)
