"""Roll out releases of one application on this host.

Installed as APPctl; its settings are /etc/APP/hostctl.json, written by Ansible. A rollout is one transaction that
outlives the connection which began it: whatever fails puts back what served before.

    deploy ID ARCHIVE    build, check, migrate, start beside the old, switch, watch, let the old finish
    rollback [ID]        the release before the current one, or another that is still here
    previous [--json]    the release that a rollback without ID goes back to
    status [--json]      what is here, what runs, what a rollout is at
    follow               what the rollout at work, or the last one, says
    releases [--json]    who rolled out what, when, for how long, with which outcome
    cancel               stop the rollout at work; it puts things back
    boot                 start the processes of the current release (systemd calls this)
    halt                 stop every process of the application (systemd calls this, where Supervisor keeps them)

Exits with 0 when it is done, 1 when the release is at fault (whatever served before still serves), 2 when it was called
wrongly, 3 when another rollout is at work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

from . import __version__
from .deploy import detach
from .host import Host
from .deploy.record import Record, history, who
from .deploy.deployment import FINAL, MEETINGS, Order, Rollout, until_file
from .settings import BusyError, ReleaseError, Settings, say

ID_FORM = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{3,63}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = Path(sys.argv[0]).name.removesuffix("ctl")
    parser.add_argument("--settings", type=Path, default=Path(f"/etc/{name}/hostctl.json"), help="default: %(default)s")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    deploy = actions.add_parser("deploy")
    deploy.add_argument("release", metavar="ID")
    deploy.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .tar.gz of the project; - reads it from stdin")
    deploy.add_argument("--bytes", type=int, help="the length of the archive on stdin")
    rollback = actions.add_parser("rollback")
    rollback.add_argument("release", metavar="ID", nargs="?", default="")
    for action in (deploy, rollback):
        action.add_argument("--by", default=who(), help="who asks for it")
        action.add_argument("--force", action="store_true", help="also where the database is ahead of the release")
        action.add_argument("--call", type=UUID, default=uuid4(), help="the same again looks on, and begins nothing")
        action.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
        action.add_argument("--log", default="", help=argparse.SUPPRESS)
    follow = actions.add_parser("follow")
    follow.add_argument("--log", default="", help="default: that of the rollout at work, or of the last one")
    follow.add_argument("--from", dest="offset", type=int, default=0, help="bytes of it that were read before")
    follow.add_argument("--until", choices=[*MEETINGS, "end"], default="", help="the other hosts have come as far")
    for action in (deploy, rollback, follow):
        action.add_argument("--seconds", type=float, help="look on for so long; default: to the end")
        action.add_argument("--json", action="store_true")
    actions.add_parser("previous").add_argument("--json", action="store_true")
    actions.add_parser("cancel").add_argument("--log", default="", help="only the rollout that writes this log")
    actions.add_parser("boot")
    actions.add_parser("halt")
    actions.add_parser("status").add_argument("--json", action="store_true")
    actions.add_parser("releases").add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if getattr(chosen, "release", "") and not ID_FORM.fullmatch(chosen.release):
        parser.error(f"{chosen.release!r} cannot name a release: 4 to 64 letters, digits, dots and dashes")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = parse(arguments)
    settings = Settings.load(chosen.settings)
    host = Host(settings)
    try:
        if chosen.action in ("deploy", "rollback"):
            return carry_out(host, chosen) if chosen.here else begin(host, chosen, arguments)
        if chosen.action == "follow":
            return follow(host, chosen)
        if chosen.action == "previous":
            release = release_before(host)
            say(json.dumps({"release": release}) if chosen.json else release)
            return 0
    except BusyError as error:
        return refuse(chosen, 3, str(error))
    except ReleaseError as error:
        return refuse(chosen, 1, str(error))
    if chosen.action == "status":
        say(json.dumps(status(host)) if chosen.json else describe(status(host)))
    elif chosen.action == "releases":
        entries = history(settings)
        say(json.dumps(entries) if chosen.json else table(entries))
    elif chosen.action == "cancel":
        return cancel(settings, chosen.log)
    elif chosen.action == "halt":
        host.halt()
    else:
        host.boot()
    return 0


def refuse(chosen: argparse.Namespace, status: int, text: str) -> int:
    """Say why nothing was begun; as JSON, the exit status is in it."""
    if not getattr(chosen, "json", False):
        say(text)
        return status
    if status == 0:
        say(json.dumps({"text": f"{text}\n", "running": False, "status": 0}))
    else:
        say(json.dumps({"error": text, "status": status}))
    return status


def begin(host: Host, chosen: argparse.Namespace, arguments: list[str]) -> int:
    """Start the rollout in a unit of its own, and look on; where this very call has started it before, only look on."""
    # Read even where it is not needed: whoever sends it must not find the line closed.
    data = sys.stdin.buffer.read() if chosen.action == "deploy" and str(chosen.archive) == "-" else None
    if log := detach.begun(host.settings, chosen.call):
        return detach.show(host.settings, log, 0, chosen.seconds, chosen.json)
    if data is not None and chosen.bytes not in (None, len(data)):
        raise ReleaseError(f"The archive came in part: {len(data)} of {chosen.bytes} bytes. Run the same again.")
    if chosen.action == "rollback" and not chosen.release:
        chosen.release = release_before(host)
        arguments = [*arguments, chosen.release]
    if chosen.release == host.serving() and not Record(host.settings).unfinished():
        return refuse(chosen, 0, f"Release {chosen.release} serves already.")
    if log := waiting_for_the_same(host.settings, chosen):
        return detach.show(host.settings, log, 0, chosen.seconds, chosen.json)
    if data is not None:
        path = take_in(host, chosen.release, data)
        arguments = [str(path) if argument == "-" else argument for argument in arguments]
    arguments = [*without(arguments, "--json", "--seconds", "--by", "--call", "--bytes"), "--by", chosen.by]
    try:
        log = detach.launch(host.settings, arguments, chosen.call)
    except (BusyError, ReleaseError):
        if data is not None:
            path.unlink()
        raise
    return detach.show(host.settings, log, 0, chosen.seconds, chosen.json)


def waiting_for_the_same(settings: Settings, chosen: argparse.Namespace) -> Path | None:
    """With several hosts: the log of a rollout at work that is asked for again, since its control machine was killed.

    It would wait for that machine at the next meeting; whoever asks again leads it on from there.
    """
    record = Record(settings)
    state = record.unfinished()
    same = state and (state["action"], state["release"]) == (chosen.action, chosen.release)
    return Path(state["log"]) if settings.barriers and same and record.held() else None


def take_in(host: Host, release: str, data: bytes) -> Path:
    """Keep the archive that came on stdin where the release's builder can read it."""
    path = host.settings.home / "incoming" / f"{release}.{os.getpid()}.tar.gz"
    path.touch(0o640)
    shutil.chown(path, "root", host.settings.name)
    path.write_bytes(data)
    return path


def without(arguments: list[str], *options: str) -> list[str]:
    """The arguments less options that concern only the one who looks on."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = argument != "--json"
        else:
            kept.append(argument)
    return kept


def carry_out(host: Host, chosen: argparse.Namespace) -> int:
    """Be the rollout."""
    record = Record(host.settings)
    record.hold()
    if host.settings.barriers:
        # Only now: another rollout might have been reading it.
        until_file(host).write_text("")

    def stop(number: int, frame: FrameType | None) -> None:
        # Once is enough: what puts things back must not be stopped by a second one.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ReleaseError("It was cancelled.")

    signal.signal(signal.SIGTERM, stop)
    order = Order(
        action=chosen.action, release=chosen.release, by=chosen.by, archive=getattr(chosen, "archive", None),
        force=chosen.force, log=chosen.log,
    )  # fmt: skip
    return Rollout(host, record, order).run()


def follow(host: Host, chosen: argparse.Namespace) -> int:
    log = Record(host.settings).read().get("log", "")
    if chosen.until and chosen.log in ("", log):
        passed = MEETINGS if chosen.until == "end" else MEETINGS[: MEETINGS.index(chosen.until)]
        until_file(host).write_text(" ".join(passed))
    log = chosen.log or log
    if not log or not Path(log).exists():
        raise ReleaseError("No rollout has been at work on this host.")
    return detach.show(host.settings, Path(log), chosen.offset, chosen.seconds, chosen.json, chosen.until)


def cancel(settings: Settings, log: str = "") -> int:
    """Stop the rollout at work; with `log`, only if it is that one and what served before can still be put back."""
    record = Record(settings)
    state = record.unfinished()
    if not state or not record.held() or (log and (state["log"] != log or state["step"] in FINAL)):
        say("No rollout is at work." if not log else "It is not at work any more, or lets the old processes finish.")
        return 0
    os.kill(state["pid"], signal.SIGTERM)
    say(f"Told the rollout of {state['release']} to stop (it is at {state['step']}); it puts things back.")
    return 0


def release_before(host: Host) -> str:
    """The release that served when the current one was rolled out; where it is gone, one rolled out earlier."""
    built, serving = host.built(), host.serving()
    for entry in reversed(history(host.settings)):
        if entry["action"] == "deploy" and entry["status"] == 0 and entry["release"] == serving:
            if entry.get("previous") in built and entry["previous"] != serving:
                return entry["previous"]
            break
    older = built[built.index(serving) + 1 :] if serving in built else built
    if not older:
        here = ", ".join(built) or "none"
        raise ReleaseError(f"No release before {serving or 'the first'} is on this host; these are: {here}.")
    return older[0]


def status(host: Host) -> dict[str, Any]:
    record = Record(host.settings)
    serving = host.serving()
    return {
        "current": serving,
        "releases": host.built(),
        "running": [host.describe(process) for process in host.manager.states()],
        "beat": host.manager.beat_runs(),
        "versions": host.facts(serving).get("versions", {}),
        "deployment": record.unfinished() or None,
        "configuration": host.configuration(),
        "version": __version__,
    }


def describe(found: dict[str, Any]) -> str:
    lines = [f"current   {found['current'] or 'none'}", f"built     {', '.join(found['releases']) or 'none'}"]
    lines += [f"running   {process['unit']}" for process in found["running"]]
    lines += ["running   beat"] if found["beat"] else []
    if state := found["deployment"]:
        asked = f"{state['action']} {state['release']} by {state['by']} since {state['since']}"
        lines.append(f"rollout   {asked}, at {state['step']}")
    return "\n".join(lines)


def table(entries: list[dict[str, Any]]) -> str:
    """The history, the newest first."""
    rows = [("when", "what", "release", "by", "seconds", "outcome")]
    for entry in reversed(entries):
        row = [entry["since"], entry["action"], entry["release"], entry["by"], str(entry["seconds"]), entry["outcome"]]
        rows.append(tuple(row))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    )
