"""Start, follow and cancel deployments."""

from __future__ import annotations

import json
import os
import shutil
import signal
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from ..host import Host
from ..settings import ReleaseError, Settings, say
from ..status import previous_release
from . import barriers, detach
from .deployment import Deployment, Request
from .record import Record
from .steps import FINAL


def start(host: Host, options: Namespace, arguments: list[str], stdin: BinaryIO) -> int:
    """Start a deployment in its own unit and follow it.

    A repeated call with the same idempotency key, such as after a lost connection, only follows.
    """
    # Read in any case, or the sender would see a broken pipe.
    data = read_archive(options.archive, stdin) if options.command == "deploy" else None
    if log := detach.started_log(host.settings, options.key):
        return detach.show(host.settings, log, 0, options.seconds, options.json)
    if data is not None and options.bytes not in (None, len(data)):
        raise ReleaseError(
            f"The archive is incomplete: {len(data)} of {options.bytes} bytes. Run the same command again."
        )
    if options.command == "rollback" and not options.release:
        options.release = previous_release(host)
        arguments = [*arguments, options.release]
    if options.release == host.current_release() and not Record(host.settings).unfinished():
        return already_live(options)
    if log := waiting_log(host.settings, options):
        return detach.show(host.settings, log, 0, options.seconds, options.json)
    archive = None
    if data is not None:
        archive = store_archive(host, options.release, data)
        # The last one: a release ID may be the same word.
        place = max(number for number, word in enumerate(arguments) if Path(word) == options.archive)
        arguments = [*arguments[:place], str(archive), *arguments[place + 1 :]]
    arguments = [*without(arguments, "--json", "--seconds", "--by", "--key", "--bytes"), "--by", options.by]
    try:
        log = detach.launch(host.settings, arguments, options.key)
    except Exception:
        if archive is not None:
            archive.unlink(missing_ok=True)
        raise
    return detach.show(host.settings, log, 0, options.seconds, options.json)


def already_live(options: Namespace) -> int:
    text = f"Release {options.release} is already live."
    say(json.dumps({"text": f"{text}\n", "running": False, "status": 0}) if options.json else text)
    return 0


def waiting_log(settings: Settings, options: Namespace) -> Path | None:
    """Several hosts: return the log of a running deployment of the same release.

    Its control machine was killed, so it waits at a barrier: this call, from the next run, continues from there.
    """
    record = Record(settings)
    state = record.unfinished()
    same = state and (state["action"], state["release"]) == (options.command, options.release)
    return Path(state["log"]) if settings.barriers and same and record.held() else None


def read_archive(path: Path, stdin: BinaryIO) -> bytes:
    """Return the archive, from stdin if its path is "-". Raises ReleaseError when the file cannot be read."""
    if str(path) == "-":
        return stdin.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"Cannot read the archive {path}: {error.strerror}.") from None


def store_archive(host: Host, release: str, data: bytes) -> Path:
    """Store an archive where the build user can read it."""
    path = host.settings.home / "incoming" / f"{release}.{os.getpid()}.tar.gz"
    path.touch(0o640)
    shutil.chown(path, "root", host.settings.name)
    path.write_bytes(data)
    return path


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
    return Deployment(host, record, request).run()


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
