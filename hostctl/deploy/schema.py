"""Dump and migrate the database. One host, the leader, does it for all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..database import Database
from ..settings import say

if TYPE_CHECKING:
    from .deployment import Deployment


def database(deployment: Deployment) -> Database:
    return Database(deployment.settings, deployment.application.environment(owner=True), say)


def snapshot(deployment: Deployment) -> None:
    """Dump the database if migrations are pending."""
    settings = deployment.settings
    if not deployment.migrations["pending"] or not settings.leader or not deployment.live:
        return
    if not settings.dump_before_migrate:
        say("Database not dumped: app_dump_before_migrate is false.")
        return
    database(deployment).snapshot(Path("/var/backups") / settings.name / f"before-{deployment.release}.dump")


def migrate(deployment: Deployment) -> None:
    """Apply pending migrations, warn of what may block or outlive them, create the first administrator."""
    settings, application = deployment.settings, deployment.application
    if not settings.leader:
        return
    if deployment.migrations["pending"]:
        apply_migrations(deployment)
    say("The database has every migration of this release.")
    celery = settings.celery_app
    for name, task in application.ask("periodic", celery)["unknown"] if celery else []:
        deployment.warn(f'The periodic task "{name}" sends {task}, which this release lacks: disable it in the admin.')
    if settings.create_admin and not deployment.live:
        say(application.manage("ensure_admin").strip())


def apply_migrations(deployment: Deployment) -> None:
    found = deployment.migrations
    for warning in found["warnings"] if deployment.live else []:
        deployment.warn(warning)
    for one in found["idle"]:
        session = f"Process {one['pid']} of the database (user {one['user']}, {one['application']})"
        deployment.warn(f"{session} has been idle in a transaction for {one['seconds']} s and may block a migration.")
    deployment.run_hook("before_migrate")
    manage = deployment.application.manage
    database(deployment).migrate(manage, found["pending"], found["not_atomic"], found["concurrent"])
