"""Start, follow and cancel deployments."""

from __future__ import annotations

import json
import os
import signal
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from ..host import Host
from ..settings import ReleaseError, Settings, say
from ..status import previous_release
from . import archive, barriers, detach
from .configuration import restore
from .deployment import Deployment, Request
from .record import Record
from .steps import FINAL
from .verify import verify

# Seconds that a deployment may take to end when it is taken over: it removes old releases before.
TAKE_OVER_SECONDS = 60

# Options that concern the archive and the following of a deployment.
ONLY_HERE = ("--json", "--seconds", "--by", "--key", "--bytes", "--unpacked", "--offset")


def start(host: Host, options: Namespace, arguments: list[str], stdin: BinaryIO) -> int:
    """Start a deployment in its own unit and follow it.

    A repeated call with the same idempotency key, such as after a lost connection, only follows.
    """
    sends = options.command == "deploy" and str(options.archive) == "-"
    try:
        if not detach.started_log(host.settings, options.key):
            take_over(host.settings)
        if options.command == "rollback" and not options.release and not detach.started_log(host.settings, options.key):
            options.release = previous_release(host)
            arguments = [*arguments, options.release]
        if log := running_log(host, options):
            return detach.show(host.settings, log, 0, options.seconds, options.json)
        if options.release == host.current_release() and not Record(host.settings).unfinished():
            return already_live(host, options)
        log = launch(host, options, arguments, stdin)
    finally:
        if sends:
            archive.skip(stdin)
    return detach.show(host.settings, log, 0, options.seconds, options.json)


def take_over(settings: Settings) -> None:
    """Have a deployment that only waits for old processes end now: these finish their tasks without it."""
    record = Record(settings)
    state = record.unfinished()
    if not state.get("draining") or not record.held():
        return
    # The state may be that of an earlier, killed deployment.
    if detach.main_process(settings) != state["pid"]:
        return
    with suppress(ProcessLookupError):
        os.kill(state["pid"], signal.SIGUSR1)
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    while (record.held() or detach.unit_is_active(settings)) and time.monotonic() < deadline:
        time.sleep(0.1)


def running_log(host: Host, options: Namespace) -> Path | None:
    """Return the log of the deployment that this call only follows."""
    return detach.started_log(host.settings, options.key) or waiting_log(host.settings, options)


def launch(host: Host, options: Namespace, arguments: list[str], stdin: BinaryIO) -> Path:
    """Store the archive and start the deployment; return its log."""
    Record(host.settings).refuse_second()
    stored = None
    if options.command == "deploy":
        stored = archive.store(host, options, stdin)
        # The last one: a release ID may be the same word.
        place = max(number for number, word in enumerate(arguments) if Path(word) == options.archive)
        arguments = [*arguments[:place], str(stored), *arguments[place + 1 :]]
    arguments = [*without(arguments, *ONLY_HERE), "--by", options.by]
    try:
        return detach.launch(host.settings, arguments, options.key)
    except Exception:
        if stored is not None:
            stored.unlink(missing_ok=True)
        raise


def already_live(host: Host, options: Namespace) -> int:
    """Check that the release runs, instead of a deployment. Raises ReleaseError when it does not."""
    started = verify(host)
    text = "\n".join([*started, f"Release {options.release} is already live, and runs."])
    answer = {"text": f"{text}\n", "running": False, "status": 0, "changed": bool(started)}
    say(json.dumps(answer) if options.json else text)
    return 0


def waiting_log(settings: Settings, options: Namespace) -> Path | None:
    """Several hosts: return the log of a running deployment of the same release.

    Its control machine was killed, so it waits at a barrier: this call, from the next run, continues from there.
    """
    record = Record(settings)
    state = record.unfinished()
    same = state and (state["action"], state["release"]) == (options.command, options.release)
    return Path(state["log"]) if settings.barriers and same and record.held() else None


def without(arguments: list[str], *options: str) -> list[str]:
    """Return the arguments without options that concern only the following of a deployment."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = argument != "--json"
        else:
            kept.append(argument)
    return kept


def run_deployment(host: Host, options: Namespace) -> int:
    """Run the deployment in this process, which is the unit's."""
    record = Record(host.settings)
    record.hold()
    if options.command == "rollback" and options.release != host.current_release():
        # A killed deployment of it may have left half a configuration.
        restore(host, options.release)
    if options.command == "rollback" or options.release == host.current_release():
        # A deployment of another release has the settings of the next one.
        host = host.about(options.release)
    if host.settings.barriers:
        # Only now: another deployment might have been reading it.
        barriers.close_all(host)

    def cancel_once(number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the revert.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ReleaseError("it was cancelled.")

    signal.signal(signal.SIGTERM, cancel_once)
    request = Request(
        action=options.command, release=options.release, by=options.by, archive=getattr(options, "archive", None),
        force=options.force, log=options.log,
    )  # fmt: skip
    deployment = Deployment(host, record, request)

    def hand_over(number: int, frame: FrameType | None) -> None:
        deployment.handed_over = True

    signal.signal(signal.SIGUSR1, hand_over)
    return deployment.run()


def follow(host: Host, options: Namespace) -> int:
    """Follow the running deployment, or print the last one; open barriers for the control machine."""
    running = Record(host.settings).read().get("log", "")
    if options.until and options.log in ("", running):
        barriers.open_up_to(host, options.until)
    log = options.log or running
    if not log or not Path(log).exists():
        raise ReleaseError("There has been no deployment on this host.")
    return detach.show(host.settings, Path(log), options.offset, options.seconds, options.json, options.until)


def cancel(settings: Settings, log: str = "", *, as_json: bool = False) -> int:
    """Cancel the running deployment; with `log`, only if it is that one and can still be reverted."""
    record = Record(settings)
    state = record.unfinished()
    cancelled = bool(state) and record.held() and (not log or (state["log"] == log and state["step"] not in FINAL))
    if cancelled:
        os.kill(state["pid"], signal.SIGTERM)
        text = f"Cancelled the deployment of {state['release']} at step {state['step']}; it reverts now."
    elif log:
        text = "That deployment is not running any more, or is past its last barrier."
    else:
        text = "No deployment is running."
    say(json.dumps({"cancelled": cancelled, "text": text}) if as_json else text)
    return 0
