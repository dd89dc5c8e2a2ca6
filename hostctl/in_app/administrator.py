"""The first administrator: which command of the project creates it, if any."""

from __future__ import annotations

from typing import Any

# The variables of createsuperuser are DJANGO_SUPERUSER_ and the name of a field.
PREFIX = "DJANGO_SUPERUSER_"
ENSURE, CREATE = "ensure_admin", "createsuperuser"


def administrator(variables: list[str]) -> dict[str, Any]:
    """Return the `command` that creates the first administrator; or none, and the `reason`.

    Where superusers exist, the reason is "", and `superusers` has the names of the first three.
    `variables` are those that the command will have; `line` are those that it lacks, as app.yml takes them. A project's
    own command `ensure_admin` takes precedence.
    """
    from django.apps import apps
    from django.core.management import get_commands

    commands = get_commands()
    if ENSURE in commands:
        return {"command": [ENSURE], "reason": "", "line": "", "superusers": []}
    if not apps.is_installed("django.contrib.auth") or CREATE not in commands:
        return skipped("the project does not use django.contrib.auth")

    from django.contrib.auth import get_user_model

    user = get_user_model()
    if not hasattr(user, "USERNAME_FIELD") or not hasattr(user._meta.default_manager, "create_superuser"):
        return skipped(f"{user.__name__} has no create_superuser")
    if names := superusers(user):
        return skipped("", names=names)
    needed = list(dict.fromkeys([user.USERNAME_FIELD, *user.REQUIRED_FIELDS, "password"]))
    missing = [name for field in needed if (name := f"{PREFIX}{field.upper()}") not in variables]
    if missing:
        lines = ", ".join(f"{name}: ..." for name in missing)
        return skipped(f"{user.__name__} also needs {', '.join(missing)}", f"app_migration_environment: {{{lines}}}")
    return {"command": [CREATE, "--noinput"], "reason": "", "line": "", "superusers": []}


def superusers(user: Any) -> list[str]:
    """Return the names of the first three superusers; of the first users, where the model has no such flag."""
    fields = {field.name for field in user._meta.get_fields()}
    conditions = {"is_superuser": True} if "is_superuser" in fields else {}
    found = user._meta.default_manager.filter(**conditions).order_by("pk")
    return [str(name) for name in found.values_list(user.USERNAME_FIELD, flat=True)[:3]]


def skipped(reason: str, line: str = "", names: list[str] | None = None) -> dict[str, Any]:
    return {"command": [], "reason": reason, "line": line, "superusers": names or []}
