"""Several databases: each is compared, dumped and migrated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostctl.application import Application
from hostctl.database import Database
from hostctl.host import Host
from tests.hostctl.fakes import NEW, SCHEMA, Answers, deploy

DEFAULT, ANALYTICS = "postgresql://owner@db/shop", "postgresql://owner@db/shop_analytics"


@pytest.fixture
def done(live: Host, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is done to the databases of a project with two; the file of settings has the second one."""
    live.settings = dataclasses.replace(live.settings, databases={"analytics": "ANALYTICS_URL"})
    done: list[tuple[str, ...]] = []
    urls = {"DATABASE_URL": DEFAULT, "ANALYTICS_URL": ANALYTICS}
    monkeypatch.setattr(Application, "environment", lambda self, owner=False: urls)
    monkeypatch.setattr(Application, "manage", lambda self, *words, **_: done.append(("manage", *words)) or "")

    def snapshot(self: Database, path: Path) -> None:
        done.append(("dump", self.connection["PGDATABASE"], str(path)))

    def migrate(self: Database, manage: Callable[..., str], pending: list[str], *_: Any) -> None:
        manage("migrate", "--noinput", environment={}, stop=None)
        done.append(("migrated", self.connection["PGDATABASE"], *pending))

    monkeypatch.setattr(Database, "snapshot", snapshot)
    monkeypatch.setattr(Database, "migrate", migrate)
    return done


def test_each_database_with_pending_migrations_is_dumped_and_migrated(
    live: Host, answers: Answers, done: list[tuple[str, ...]]
) -> None:
    pending = {"pending": ["shop.0002_b"]}
    answers.override["migrations"] = {"default": SCHEMA | pending, "analytics": SCHEMA | pending}
    assert deploy(live) == 0
    assert ("migrations", ["analytics"]) in answers.asked
    assert done == [
        ("dump", "shop", f"/var/backups/shop/before-{NEW}.dump"),
        ("dump", "shop_analytics", f"/var/backups/shop/analytics/before-{NEW}.dump"),
        ("manage", "migrate", "--noinput"),
        ("migrated", "shop", "shop.0002_b"),
        ("manage", "migrate", "--noinput", "--database=analytics"),
        ("migrated", "shop_analytics", "shop.0002_b"),
    ]


def test_a_database_without_pending_migrations_is_left(
    live: Host, answers: Answers, done: list[tuple[str, ...]]
) -> None:
    answers.override["migrations"] = {"default": SCHEMA, "analytics": SCHEMA | {"pending": ["shop.0002_b"]}}
    assert deploy(live) == 0
    assert [what[:2] for what in done] == [
        ("dump", "shop_analytics"),
        ("manage", "migrate"),
        ("migrated", "shop_analytics"),
    ]


@pytest.mark.usefixtures("done")
def test_a_further_database_that_is_newer_is_refused(live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["migrations"] = {"default": SCHEMA, "analytics": SCHEMA | {"unknown": ["shop.0009_later"]}}
    assert deploy(live) == 1
    assert (
        f"the database analytics is ahead of release {NEW}: it has applied shop.0009_later" in capsys.readouterr().out
    )


@pytest.mark.usefixtures("done")
def test_the_databases_are_recorded_with_the_release(live: Host, answers: Answers) -> None:
    answers.override["migrations"] = {"default": SCHEMA, "analytics": SCHEMA}
    assert deploy(live) == 0
    recorded = json.loads((live.settings.configuration(NEW) / "settings.json").read_text())
    assert recorded["databases"] == {"analytics": "ANALYTICS_URL"}
