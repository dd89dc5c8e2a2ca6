"""A rollout outlives the connection that began it: it runs as a unit of its own, and whoever began it looks on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from .record import Record
from .deployment import MEETINGS
from ..settings import BusyError, ReleaseError, Settings, say

LOGS = 20


def begun(settings: Settings, call: UUID) -> Path | None:
    """The log of the rollout that a call has started, or None."""
    return next((settings.home / "deployments").glob(f"*-{call.hex}.log"), None)


def launch(settings: Settings, arguments: list[str], call: UUID) -> Path:
    """Run this program with `arguments` in a unit of its own; returns its log, which is named after the call.

    Raises BusyError when a rollout is at work and ReleaseError when the unit cannot be started.
    """
    record = Record(settings)
    if record.held():
        raise BusyError(record.holder())
    folder = settings.home / "deployments"
    folder.mkdir(mode=0o750, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[: -LOGS + 1]:
        old.unlink()
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{call.hex}.log"
    log.touch(0o640)
    unit = f"{settings.name}-deploy"
    properties = ["Type=exec", "KillMode=mixed", "TimeoutStopSec=120"]
    properties += [f"Standard{stream}=append:{log}" for stream in ("Output", "Error")]
    options = ["--quiet", "--collect", f"--unit={unit}", *(f"--property={one}" for one in properties)]
    command = ["systemd-run", *options, sys.argv[0], *arguments, "--here", "--log", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log.unlink()
        if "already" in done.stderr:
            raise BusyError(record.holder())
        raise ReleaseError(f"The rollout could not be started: {done.stderr.strip()}")
    return log


def follow(settings: Settings, log: Path, offset: int, seconds: float, meeting: str) -> tuple[str, int, dict[str, Any]]:
    """What a rollout has said since `offset`, waiting up to `seconds` for its end or until it waits at `meeting`.

    Returns the text, the new offset, and its state; `running` in it says whether it is at work still, `reached` whether
    it waits there.
    """
    record = Record(settings)
    deadline = time.monotonic() + seconds
    while True:
        state, held = record.read(), record.held()
        mine = state.get("log") == str(log)
        ended = (mine and "status" in state) or (not held and not just_begun(settings))
        reached = mine and has_reached(state, meeting)
        if ended or reached or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read()
    if not ended:
        # Whole lines only, while more may come.
        text = text[: text.rfind(b"\n") + 1]
    state = (record.read() if mine else {}) | {"running": not ended, "reached": reached}
    return text.decode(errors="replace"), offset + len(text), state


def has_reached(state: dict[str, Any], meeting: str) -> bool:
    """Does a rollout wait at a meeting, or at a later one? One that goes back, or is taken up, leaves the first out."""
    at = state.get("waits_at")
    return at in MEETINGS and meeting in MEETINGS and MEETINGS.index(at) >= MEETINGS.index(meeting)


def just_begun(settings: Settings) -> bool:
    """Is the unit there, though it may not have come as far as taking the lock?"""
    command = ["systemctl", "is-active", "--quiet", f"{settings.name}-deploy"]
    return subprocess.run(command, check=False).returncode == 0


def show(settings: Settings, log: Path, offset: int, seconds: float | None, as_json: bool, meeting: str = "") -> int:
    """Print what a rollout says until it ends, or for `seconds`; returns its exit status."""
    while True:
        text, offset, state = follow(settings, log, offset, 1 if seconds is None else seconds, meeting)
        if as_json:
            say(json.dumps({"text": text, "offset": offset, "log": str(log)} | state))
            return 0
        print(text, end="", flush=True)
        if not state["running"]:
            return state.get("status", 1)
        if seconds is not None:
            return 0
