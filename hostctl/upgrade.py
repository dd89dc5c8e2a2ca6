"""Bring the files of an earlier version on this host to today's names.

Runs at every start of the program and does nothing once it is complete. Killed at any point, it is repeated: what marks
the earlier version, its state file, is removed last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .settings import Settings

# Names of commit 7e689fa, and today's.
STEPS = {
    "gate": "health_check",
    "warm": "warm_up",
    "handover": "stop_consuming",
    "probe": "smoke_test",
    "watch": "bake",
    "beat": "restart_beat",
    "compare": "check_schema",
    "workers": "start_workers",
}
PROGRAMS, UNITS, SUPERVISOR = Path("/usr/local/sbin"), Path("/etc/systemd/system"), Path("/etc/supervisor/conf.d")
OLD_STATE, OLD_BARRIERS = "rollout.json", "rollout.until"  # language-lint: allow rollout
OLD_LOGS = "rollouts"  # language-lint: allow rollouts
OLD_REQUEUED = "handed_back"  # language-lint: allow handed_back


def upgrade(settings: Settings) -> None:
    """Rename state files, unless a deployment of the earlier version is still running."""
    home = settings.home
    if not (home / OLD_STATE).exists():
        return
    handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        rename_state(home)
    finally:
        os.close(handle)


def rename_state(home: Path) -> None:
    for mark in (home / "releases").glob("*/release.json"):
        if not mark.with_name("build.json").exists():
            mark.rename(mark.with_name("build.json"))
    move_logs(home)
    rewrite_history(home)
    (home / OLD_BARRIERS).unlink(missing_ok=True)
    state = read_json(home / OLD_STATE)
    if state:
        replace(home / "deployment.json", json.dumps(new_state(state, home)))
    (home / OLD_STATE).unlink(missing_ok=True)


def move_logs(home: Path) -> None:
    old, new = home / OLD_LOGS, home / "deployments"
    if not old.exists():
        return
    new.mkdir(mode=0o750, exist_ok=True)
    for log in old.iterdir():
        log.rename(new / log.name)
    old.rmdir()


def rewrite_history(home: Path) -> None:
    file = home / "history.jsonl"
    if not file.exists():
        return
    entries = [
        json.loads(line) for line in file.read_text().splitlines() if line.startswith("{") and line.endswith("}")
    ]
    replace(file, "".join(f"{json.dumps(new_state(entry, home))}\n" for entry in entries))


def new_state(state: dict[str, Any], home: Path) -> dict[str, Any]:
    """Translate a deployment's state, or an entry of the history; today's form stays as it is."""
    new = dict(state)
    for name in ("step", "waits_at"):
        if name in new:
            new[name] = STEPS.get(new[name], new[name])
    if "steps" in new:
        new["steps"] = {STEPS.get(step, step): seconds for step, seconds in new["steps"].items()}
    for old, name in {"taken": "stopped_consuming", "log_from": "access_log_offset"}.items():
        if old in new:
            new[name] = new.pop(old)
    if "log" in new:
        new["log"] = new["log"].replace(f"{home}/{OLD_LOGS}/", f"{home}/deployments/")
    if OLD_REQUEUED in new.get("tasks", {}):
        tasks = dict(new["tasks"])
        requeued = tasks.pop(OLD_REQUEUED)
        new["tasks"] = tasks | {"requeued": requeued}
    if "outcome" in new:
        new["outcome"] = new_outcome(new["outcome"])
    return new


def new_outcome(outcome: str) -> str:
    """Translate the outcome of a deployment: serves, failed at STEP: …, broke off at STEP."""
    if outcome == "serves":
        return "succeeded"
    start, at, rest = outcome.partition(" at ")
    if not at or start not in ("failed", "broke off"):
        return outcome
    step, colon, reason = rest.partition(":")
    return f"{'failed' if start == 'failed' else 'interrupted'} at {STEPS.get(step, step)}{colon}{reason}"


def remove_old_files(settings: Settings) -> None:
    """Remove the programs, modules and settings of the earlier version, once no unit starts its programs any more."""
    library = settings.library
    old = [PROGRAMS / f"{settings.name}-release", PROGRAMS / f"{settings.name}-manage"]
    modules = ("celery_service", "inspect_release", "migrations", "flower_service")
    old += [library / "release", *(library / f"{name}.py" for name in modules), library / "__pycache__"]
    old += [settings.etc / "release.json", settings.etc / "release.env"]
    old = [path for path in old if path.exists()]
    if not old or units_use(settings, old):
        return
    for path in old:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def units_use(settings: Settings, paths: list[Path]) -> bool:
    """Return whether a unit or a program of Supervisor mentions one of the paths."""
    patterns = {
        UNITS: f"{settings.name}*",
        SUPERVISOR: f"{settings.name}*",
        settings.etc / "supervisor": "*",
    }
    files = [file for folder, pattern in patterns.items() for file in folder.glob(pattern) if file.is_file()]
    text = "\n".join(file.read_text(errors="replace") for file in files)
    return any(str(path) in text for path in paths)


def remove_unlisted_modules(settings: Settings) -> None:
    """Remove modules of this package that roles/hostctl no longer installs, and folders that this leaves empty."""
    package = settings.library / "hostctl"
    modules = package / "modules.txt"
    if not modules.exists():
        return
    wanted = {package / line for line in modules.read_text().split()}
    for module in package.rglob("*.py"):
        if module not in wanted:
            module.unlink()
    for folder in [path for path in package.iterdir() if path.is_dir()]:
        if not list(folder.glob("*.py")) and folder.name != "__pycache__":
            shutil.rmtree(folder)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def replace(path: Path, text: str) -> None:
    """Replace a file in one step, keeping its mode."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    if path.exists():
        new.chmod(path.stat().st_mode & 0o777)
    new.rename(path)
