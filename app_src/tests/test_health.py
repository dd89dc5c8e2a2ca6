"""Liveness and readiness."""

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from pytest_django import Settings

from tests.conftest import NOWHERE


def degraded(client: Client) -> list[str]:
    """Return the degraded components, according to /readyz/."""
    response = client.get("/readyz/")
    body = response.json()
    broken = [name for name, state in body["components"].items() if state != "ok"]
    assert body["release"] == "release-under-test"
    assert (response.status_code, body["status"]) == ((503, "degraded") if broken else (200, "ok"))
    return broken


def test_healthz_uses_no_other_service(client: Client, settings: Settings) -> None:
    # No `db`: pytest-django raises on any query.
    settings.CELERY_BROKER_URL = settings.CACHE_URL = NOWHERE
    response = client.get("/healthz/")
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "release": "release-under-test"}


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/"])
def test_health_answers_without_tls(db: None, path: str) -> None:
    assert Client().get(path).status_code == 200


def test_everything_is_ready(db: None, client: Client) -> None:
    assert degraded(client) == []


def test_a_missing_broker_is_named(db: None, client: Client, settings: Settings) -> None:
    settings.CELERY_BROKER_URL = NOWHERE
    assert degraded(client) == ["broker"]


def test_a_missing_cache_is_named(db: None, client: Client, settings: Settings) -> None:
    settings.CACHE_URL = NOWHERE
    assert degraded(client) == ["cache"]


def test_a_pending_migration_is_named(db: None, client: Client) -> None:
    MigrationRecorder(connection).record_unapplied("shop", "0003_schedules")
    assert degraded(client) == ["migrations"]


def test_a_newer_releases_migration_is_fine(db: None, client: Client) -> None:
    MigrationRecorder(connection).record_applied("shop", "9999_of_the_next_release")
    assert degraded(client) == []


@pytest.mark.django_db(transaction=True)
def test_a_missing_database_is_named(client: Client) -> None:
    with pytest.MonkeyPatch.context() as patch:
        connection.close()
        patch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
        patch.setitem(connection.settings_dict, "PORT", "1")
        assert degraded(client) == ["database", "migrations"]
