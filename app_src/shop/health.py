"""Liveness (`/healthz/`) and readiness (`/readyz/`).

`/healthz/` uses no other service, so that a broken database does not cause restarts of a healthy process. `/readyz/`
checks everything that a request or a task needs, with timeouts of a few seconds.
"""

import logging
from collections.abc import Callable
from functools import cache

from django.conf import settings
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from shop.redis import client

logger = logging.getLogger(__name__)


def check_database() -> None:
    """Raises django.db.Error."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def check_broker() -> None:
    """Raises redis.RedisError."""
    client(settings.CELERY_BROKER_URL).ping()


def check_cache() -> None:
    """Raises redis.RedisError."""
    client(settings.CACHE_URL).ping()


@cache
def known_migrations() -> frozenset[tuple[str, str]]:
    """Return the migrations of this release; read once, since a release never changes."""
    return frozenset(MigrationLoader(None).graph.nodes)


def check_migrations() -> None:
    """Raises RuntimeError if the database lacks a migration of this release.

    Additional ones are fine: a newer release is being deployed.
    """
    waiting = known_migrations() - MigrationRecorder(connection).applied_migrations().keys()
    if waiting:
        raise RuntimeError(f"{len(waiting)} not applied: {sorted(waiting)}")


CHECKS: dict[str, Callable[[], None]] = {
    "database": check_database,
    "migrations": check_migrations,
    "broker": check_broker,
    "cache": check_cache,
}


def passes(name: str, check: Callable[[], None]) -> bool:
    """Return whether the check succeeds; the reason is logged, not published."""
    try:
        check()
    except Exception as error:  # Every failure of a component is to be reported.
        logger.warning("Not ready, %s: %s", name, error)
        return False
    return True


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """200 as long as the process answers."""
    return JsonResponse({"status": "ok", "release": settings.RELEASE_ID})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """200 when every component works, otherwise 503; the body names each."""
    components = {name: "ok" if passes(name, check) else "degraded" for name, check in CHECKS.items()}
    ready = all(state == "ok" for state in components.values())
    return JsonResponse(
        {"status": "ok" if ready else "degraded", "release": settings.RELEASE_ID, "components": components},
        status=200 if ready else 503,
    )
