"""What explains a finding for a while, so that no alert is sent: a deployment, maintenance, a restore, a boot."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..backup.configuration import Configuration as BackupConfiguration
from ..backup.notes import restore_is_running, seconds_up
from ..deploy.record import Record
from ..doctor.finding import Context
from ..settings import ReleaseError

# Seconds for which a cause explains findings, each time; and after a boot.
LIMIT, BOOT = 15 * 60, 180
# Written by plugins/host/postgresql_upgrade.py; steps at which nothing is stopped any more.
POSTGRESQL_UPGRADE = Path("/var/lib/seedbed/postgresql-upgrade.json")
UPGRADE_ENDED = ("done", "returned")
# Checks that fail while the database is stopped on purpose.
OF_DATABASE = frozenset({"postgresql", "backup", "offsite"})
DEPLOYMENT = "deployment"


@dataclass(frozen=True)
class Cause:
    """Something that stops processes on purpose. Its name differs each time that it happens.

    `text` says what is going on. `checks` are those that it explains beside the checks with `pauses`.
    """

    name: str
    text: str
    checks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pause:
    """A cause of which no alert is sent, about these checks, until a time in seconds since 1970."""

    text: str
    checks: frozenset[str]
    until: float


def pauses(context: Context, found: list[Cause] | None = None) -> list[Pause]:
    """Return what pauses alerts now. Changes nothing."""
    began = context.memory.get("pauses", {})
    return [
        Pause(cause.text, pausing(context) | cause.checks, until)
        for cause in (causes(context) if found is None else found)
        # A clock that was set back must not prolong a pause.
        if context.now < (until := min(began.get(cause.name, context.now), context.now) + LIMIT)
    ]


def quiet_checks(context: Context) -> frozenset[str]:
    """Return the checks of which no alert is sent now.

    Remembers in memory["pauses"] since when each cause is there.
    """
    now, found = context.now, causes(context)
    quiet = [paused.checks for paused in pauses(context, found)]
    began = context.memory.get("pauses", {})
    context.memory["pauses"] = {cause.name: min(began.get(cause.name, now), now) for cause in found}
    return frozenset().union(*quiet)


def explains_errors(context: Context) -> bool:
    """Return whether a cause explains that requests have failed: one that is there, or was there in the last run.

    A deployment is none: no request may fail because of it. Called before quiet_checks, which remembers this run.
    """
    began, present = context.memory.get("pauses", {}), {cause.name for cause in causes(context)}
    names = {name for name in (*began, *present) if not name.startswith(DEPLOYMENT)}
    return any(name not in present or context.now - began.get(name, context.now) < LIMIT for name in names)


def pausing(context: Context) -> frozenset[str]:
    """Return the names of the checks with `pauses`."""
    # The list of checks imports the modules of this package.
    from ..doctor import checks

    return frozenset(check.name for check in checks.CHECKS if check.pauses)


def causes(context: Context) -> list[Cause]:
    """Return what is going on."""
    of_host = (postgresql_upgrade(), boot())
    found = (deployment(context), maintenance(context), restore(context), stopped(context), *of_host)
    return [cause for cause in found if cause]


def deployment(context: Context) -> Cause | None:
    """A deployment, a rollback, an import, or a rotation of secrets, which is a deployment."""
    record = Record(context.settings)
    try:
        if not record.held():
            return None
    except FileNotFoundError:
        # No application on this host.
        return None
    return Cause(f"{DEPLOYMENT} {record.unfinished().get('began', '')}", "a deployment or an import")


def maintenance(context: Context) -> Cause | None:
    link = context.configuration.web / context.configuration.name / "maintenance"
    if not (link.is_symlink() or link.exists()):
        return None
    return Cause(f"maintenance {link.lstat().st_mtime}", "maintenance mode", frozenset({"release"}))


def restore(context: Context) -> Cause | None:
    try:
        configuration = BackupConfiguration.load(context.settings)
    except ReleaseError:
        return None
    if not restore_is_running(configuration):
        return None
    return Cause("restore", "a restore", OF_DATABASE | {"release"})


def postgresql_upgrade() -> Cause | None:
    try:
        state = json.loads(POSTGRESQL_UPGRADE.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if state.get("step") in (None, *UPGRADE_ENDED):
        return None
    return Cause("upgrade of PostgreSQL", "an upgrade of PostgreSQL", OF_DATABASE | {"release"})


def boot() -> Cause | None:
    if seconds_up() >= BOOT:
        return None
    return Cause("boot", "the server has just started", frozenset({"release", "postgresql", "redis"}))


def stopped(context: Context) -> Cause | None:
    """The application was stopped: by a person, or because a restore runs on the host with the database."""
    if not context.release:
        return None
    command = ["systemctl", "is-active", f"{context.configuration.name}.service"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.stdout.strip() != "inactive":
        return None
    return Cause("stopped", "the application is stopped", frozenset({"release"}))
