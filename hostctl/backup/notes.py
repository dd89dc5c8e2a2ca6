"""What a person must know of the backups: sentences for `status` and the summary of every run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from ..settings import ReleaseError, Settings
from .configuration import Configuration
from .listing import ago
from .state import State, is_held

# Seconds after which a copy is late: of the write-ahead log, of uploads and base backups, of a drill.
LATE = {"ship": 180, "files": 3600, "backups": 26 * 3600, "drill": 9 * 86400}
# Seconds from a boot until one was made, at the latest: by the timers in roles/backup.
TIME_NEEDED = {"ship": 300, "files": 1800, "backups": 2 * 3600, "drill": 3 * 3600}
UPTIME = Path("/proc/uptime")
WHAT = {
    "ship": "The database was last copied",
    "files": "Uploads were last copied",
    "backups": "A base backup was last made",
    "drill": "A restore was last rehearsed",
}

# What runs each.
COMMAND = {"ship": ["ship"], "files": ["files"], "backups": [], "drill": ["drill"]}


def notes(settings: Settings, uptime: float | None = None) -> list[str]:
    """Return the sentences; none where this host has no backups, or all is well."""
    try:
        configuration = Configuration.load(settings)
    except ReleaseError:
        return []
    lines = [] if configuration.target else [no_target(configuration)]
    kinds = ["ship", "backups"] if configuration.version else []
    kinds += ["files"] if configuration.target else []
    kinds += ["drill"] if configuration.version or configuration.target else []
    time_for = seconds_for(settings) if uptime is None else min(uptime, age_of(settings.etc / "backup.json"))
    for kind in kinds:
        state = State(configuration, kind).read()
        last = state.get("ok_at", 0)
        # A server that was just set up or started has had no time for it, also one that was off for long.
        age = time.time() - last if last else time_for
        is_late = age > LATE[kind] and time_for >= TIME_NEEDED[kind]
        if was_killed(configuration, kind):
            words = " ".join([configuration.program, "backup", *COMMAND[kind]])
            killed = ", and the run after that was killed" if last else ": the last run was killed"
            lines.append(f"{last_run(kind, last)}{killed}. To run it again: {words}")
        elif state.get("problem"):
            lines.append(f"{last_run(kind, last)}{', and then failed' if last else ''}: {state['problem']}")
        elif is_late:
            lines.append(f"{last_run(kind, last)}. See journalctl -u {configuration.name}-backup-*.")
    if text := unfinished_restore(configuration):
        lines.insert(0, text)
    if text := missing_kit(configuration):
        lines.append(text)
    return lines


def last_run(kind: str, at: float) -> str:
    """Return when a kind of run has last succeeded; `at` is 0 if none has."""
    return f"{WHAT[kind]} {ago(at)}" if at else WHAT[kind].replace(" last ", " never ")


def was_killed(configuration: Configuration, kind: str) -> bool:
    """Return whether the last run of a kind has ended without a word."""
    state = State(configuration, kind)
    since = state.read().get("running_since")
    if not since or is_held(configuration, kind if kind in ("ship", "drill") else "work"):
        return False
    # One that has ended between the two looks has removed it.
    return state.read().get("running_since") == since


def no_target(configuration: Configuration) -> str:
    """Return what to know of backups that do not leave the server."""
    what = "The backups are" if configuration.version else "Uploads are"
    return f"{what} on this server only, and are lost with it: set app_backup_target in group_vars/ENV/app.yml."


def missing_kit(configuration: Configuration) -> str:
    """Return what to do about the recovery kit that only the control machine has, or ""."""
    if not configuration.kit or not configuration.target:
        return ""
    return (
        f"Without {configuration.kit} the backups cannot be opened. Put a copy where you keep your passwords, then set "
        "backup_kit_kept: true in group_vars/ENV/app.yml, and run site.yml."
    )


def unfinished_restore(configuration: Configuration) -> str:
    """Return what to know of a restore that runs or has ended in the middle, or ""."""
    if not has_unfinished_restore(configuration):
        return ""
    if restore_is_running(configuration):
        return "A restore is running, and the application is stopped meanwhile."
    return (
        "A restore was killed. This brings the former database back, or completes it: "
        f"{configuration.program} backup restore"
    )


def has_unfinished_restore(configuration: Configuration) -> bool:
    state = State(configuration, "restore").read()
    return bool(state) and (not state.get("accepted") or bool(state.get("undoing") or state.get("completing")))


def restore_is_running(configuration: Configuration) -> bool:
    """Return whether a restore is under way, and not killed."""
    if not has_unfinished_restore(configuration):
        return False
    return is_held(configuration, "work")


def seconds_for(settings: Settings) -> float:
    """Return for how long there was time for a backup: the server runs, and its backups have these settings."""
    return min(seconds_up(), age_of(settings.etc / "backup.json"))


def age_of(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def seconds_up() -> float:
    """Return the seconds since this host has booted: since systemd began, as /proc/uptime may be that of another host.

    (A container has that of the host it runs on.)
    """
    command = ["systemctl", "show", "--property=UserspaceTimestampMonotonic", "--value"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        return time.monotonic() - int(shown) / 1e6
    except (OSError, subprocess.SubprocessError, ValueError):
        return float(UPTIME.read_text().split()[0])
