"""Dump and migrate the databases. One host, the leader, does it for all."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..database import Database
from ..settings import ReleaseError, say

if TYPE_CHECKING:
    from .deployment import Deployment


def databases(deployment: Deployment) -> dict[str, Database]:
    """Return every database that is migrated, by its name in DATABASES; the first is `default`."""
    environment = deployment.application.environment(owner=True)
    found = {"default": Database(deployment.settings, environment, say)}
    for name, variable in deployment.settings.databases.items():
        url = {"DATABASE_URL": environment.get(variable, "")}
        found[name] = Database(deployment.settings, environment | url, say)
    return found


def snapshot(deployment: Deployment) -> None:
    """Dump each database that has pending migrations."""
    settings = deployment.settings
    pending = [name for name, found in deployment.migrations.items() if found["pending"]]
    if not pending or not settings.leader or not deployment.live:
        return
    if not settings.dump_before_migrate:
        say("Database not dumped: app_dump_before_migrate is false.")
        return
    folder, every = Path("/var/backups") / settings.name, databases(deployment)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in pending:
        place = folder if name == "default" else folder / name
        every[name].snapshot(place / f"before-{deployment.release}.dump")


def migrate(deployment: Deployment) -> None:
    """Apply pending migrations, warn of what may block or outlive them, run a hook, create the first administrator."""
    settings, application = deployment.settings, deployment.application
    if not settings.leader:
        return
    if any(found["pending"] for found in deployment.migrations.values()):
        apply_migrations(deployment)
    say(
        "Every database has every migration of this release."
        if settings.databases
        else "The database has every migration of this release."
    )
    celery = settings.celery_app
    for name, task in application.ask("periodic", celery)["unknown"] if celery else []:
        deployment.warn(f'The periodic task "{name}" sends {task}, which this release lacks: disable it in the admin.')
    # Before the administrator, who may refer to rows that the project needs.
    deployment.run_hook("after_migrate")
    if settings.create_admin and not deployment.live:
        create_administrator(deployment)


def create_administrator(deployment: Deployment) -> None:
    """Create the first administrator with what its user model requires; a project that cannot have one is told why."""
    application, program = deployment.application, f"{deployment.settings.name}ctl"
    variables = application.environment(owner=True)
    by_hand = f"Create one: {program} manage createsuperuser"
    try:
        answer = application.ask("administrator", sorted(variables))
    except ReleaseError as error:
        deployment.warn(f"No administrator was created: {str(error).splitlines()[-1].strip()} {by_hand}")
        return
    if not answer["command"] and not answer["reason"]:
        names = answer.get("superusers") or ["NAME"]
        deployment.warn(
            f"No administrator was created: there is a superuser already ({', '.join(names)}). Unless an earlier "
            "deployment or an import brought it, the project's migrations did, and its password may be public. Set "
            f"another one: {program} manage changepassword {shlex.quote(names[0])}"
        )
        return
    if not answer["command"]:
        if line := answer["line"]:
            by_hand = f"{by_hand}, or write into group_vars/ENV/app.yml before the first deployment: {line}"
        deployment.warn(f"No administrator was created: {answer['reason']}. {by_hand}")
        return
    try:
        say(application.manage(*answer["command"]).strip())
    except ReleaseError as error:
        deployment.warn(f"No administrator was created: {str(error).splitlines()[-1].strip()} {by_hand}")


def apply_migrations(deployment: Deployment) -> None:
    """Migrate each database that has pending migrations, one after another."""
    pending = {name: found for name, found in deployment.migrations.items() if found["pending"]}
    for found in pending.values():
        for warning in found["warnings"] if deployment.live else []:
            deployment.warn(warning)
        for one in found["idle"]:
            session = f"Process {one['pid']} of the database (user {one['user']}, {one['application']})"
            deployment.warn(
                f"{session} has been idle in a transaction for {one['seconds']} s and may block a migration."
            )
    deployment.run_hook("before_migrate")
    every = databases(deployment)
    for name, found in pending.items():
        manage = deployment.application.manage
        if name != "default":
            say(f"The database {name}:")
            manage = partial(manage_database, manage, name)
        every[name].migrate(manage, found["pending"], found["not_atomic"], found["concurrent"])


def manage_database(manage: Callable[..., str], name: str, *arguments: str, **options: Any) -> str:
    """Call a command of manage.py for another database than `default`."""
    return manage(*arguments, f"--database={name}", **options)
