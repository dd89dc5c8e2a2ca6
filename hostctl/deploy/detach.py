"""Run a deployment in a systemd unit of its own, so that it outlives the connection that started it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from ..settings import BusyError, ReleaseError, Settings, say
from .barriers import has_reached
from .record import Record, history

KEPT_LOGS = 20
# Without free memory the kernel kills a program of the deployment first, which then fails and is reverted; the
# application's processes have 500.
WITHOUT_MEMORY = ("OOMScoreAdjust=1000", "OOMPolicy=continue")


def log_folder(settings: Settings) -> Path:
    return settings.home / "deployments"


def started_log(settings: Settings, key: UUID) -> Path | None:
    """Return the log of the deployment that an earlier call with this idempotency key has started, or None."""
    return next(log_folder(settings).glob(f"*-{key.hex}.log"), None)


def launch(settings: Settings, arguments: list[str], key: UUID) -> Path:
    """Run this program with `arguments` in a unit of its own; return its log, which is named after the key.

    Raises BusyError when a deployment is running, and ReleaseError when the unit cannot be started.
    """
    Record(settings).refuse_second()
    log = new_log(settings, key)
    properties = ["Type=exec", "KillMode=mixed", "TimeoutStopSec=120", *WITHOUT_MEMORY]
    properties += [f"Standard{stream}=append:{log}" for stream in ("Output", "Error")]
    options = ["--quiet", "--collect", f"--unit={settings.name}-deploy", *(f"--property={one}" for one in properties)]
    command = ["systemd-run", *options, sys.argv[0], *arguments, "--here", "--log", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log.unlink()
        if "already" in done.stderr:
            raise BusyError(Record(settings).holder())
        raise ReleaseError(f"The deployment could not be started: {done.stderr.strip()}")
    return log


def new_log(settings: Settings, key: UUID) -> Path:
    """Create a log and remove the oldest ones."""
    folder = log_folder(settings)
    folder.mkdir(mode=0o750, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[: -KEPT_LOGS + 1]:
        old.unlink()
        old.with_suffix(".output").unlink(missing_ok=True)
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{key.hex}.log"
    log.touch(0o640)
    return log


def follow(settings: Settings, log: Path, offset: int, seconds: float, barrier: str) -> tuple[str, int, dict[str, Any]]:
    """Wait up to `seconds` for the end of a deployment, or until it waits at `barrier`.

    Returns its output since `offset`, the new offset, and its state: `running` says whether it still runs, `reached`
    whether it waits at the barrier.
    """
    record = Record(settings)
    deadline = time.monotonic() + seconds
    while True:
        state, held = record.read(), record.held()
        own = state.get("log") == str(log)
        past = {} if own else past_state(settings, log)
        ended = (own and "status" in state) or bool(past) or (not held and not unit_is_active(settings))
        reached = own and has_reached(state, barrier)
        if ended or reached or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read()
    if not ended:
        # Only whole lines while more may follow.
        text = text[: text.rfind(b"\n") + 1]
    state = (record.read() if own else past) | {"running": not ended, "reached": reached}
    return text.decode(errors="replace"), offset + len(text), state


def past_state(settings: Settings, log: Path) -> dict[str, Any]:
    """Return the outcome of a deployment that another one has followed; {} when it has none, or was killed."""
    found = [entry for entry in history(settings) if entry.get("log") == str(log)]
    return found[-1] if found and not found[-1]["outcome"].startswith("interrupted") else {}


def unit_is_active(settings: Settings) -> bool:
    """Return whether the unit runs; it may not hold the lock yet."""
    command = ["systemctl", "is-active", "--quiet", f"{settings.name}-deploy"]
    return subprocess.run(command, check=False).returncode == 0


def main_process(settings: Settings) -> int:
    """Return the process ID of the unit's main process; 0 when it does not run."""
    command = ["systemctl", "show", "--property=MainPID", "--value", f"{settings.name}-deploy"]
    return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout or 0)


def show(settings: Settings, log: Path, offset: int, seconds: float | None, as_json: bool, barrier: str = "") -> int:
    """Print a deployment's output until it ends, or for `seconds`; return its exit status, 0 while it runs."""
    while True:
        text, offset, state = follow(settings, log, offset, 1 if seconds is None else seconds, barrier)
        if as_json:
            say(json.dumps({"text": text, "offset": offset, "log": str(log)} | state))
            return 0
        print(text, end="", flush=True)
        if not state["running"]:
            return state.get("status", 1)
        if seconds is not None:
            return 0
