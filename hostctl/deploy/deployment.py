"""A deployment as one transaction: take the steps of its plan, and revert when one of them fails."""

from __future__ import annotations

import signal
import subprocess
import time
import traceback
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import causes
from ..host import Host
from ..settings import ReleaseError, say
from . import archive, barriers, builder, recovery, summary, traffic
from .context import Context
from .record import Record
from .steps import DEPLOY, FINAL, RESUME, ROLLBACK, STEPS, Step, undo_order

# Of an output at most so many lines are shown where a command fails: its end.
SHOWN_LINES = 15


@dataclass(frozen=True)
class Request:
    """What was requested: `action` is deploy or rollback."""

    action: str
    release: str
    by: str
    archive: Path | None = None
    force: bool = False
    log: str = ""


class Deployment(Context):
    """A release becomes current, or everything is as it was before."""

    def __init__(self, host: Host, record: Record, request: Request) -> None:
        super().__init__(host, request.release, record.state)
        self.record = record
        self.request = request
        self.live = host.current_release()
        # What a killed deployment persisted; {} when the last one came to its end.
        self.killed = record.unfinished()
        self.migrations: dict[str, Any] = {"default": {"pending": []}}
        # Of the project, where its health page may be: see health.detect.
        self.login_pages: list[str] = []
        self.schema_check: Future[dict[str, Any]] | None = None
        # Settings that a generated module takes from the environment.
        self.overlay: list[str] = []
        self.sync: subprocess.Popen[bytes] | None = None
        # Set by a signal while old processes finish: another deployment wants to begin.
        self.handed_over = False
        # Seconds since 1970, and the workers that messages have ended since then.
        self.began = time.time()
        self.excused: set[str] = set()
        # When the last of the processes had started that run only after the switch; see time.monotonic.
        self.started_after_switch = 0.0
        self.tasks = {"finished": 0, "requeued": 0, "lost": 0}

    # -- plans

    @property
    def is_current(self) -> bool:
        """Was the release current before this deployment began?"""
        return self.release == self.live

    @property
    def pages_first(self) -> bool:
        """Does this run switch before its workers start?"""
        return self.plan is ROLLBACK

    @property
    def plan(self) -> tuple[Step, ...]:
        if self.is_current:
            return RESUME
        return ROLLBACK if self.request.action == "rollback" else DEPLOY

    # -- the transaction

    def run(self) -> int:
        """Take the steps; revert when one fails. Returns the exit status."""
        builder.remove_key(self.host)
        if self.is_current and not self.killed:
            say(f"Release {self.release} is already live.")
            return 0
        self.begin()
        try:
            recovery.recover(self)
            for step in self.plan:
                self.take(step)
            summary.finish(self)
        except ReleaseError as error:
            return self.fail(error)
        except Exception:  # An unexpected error must not leave the host between two releases either.
            return self.fail(ReleaseError(f"Unexpected error:\n{traceback.format_exc()}"))
        finally:
            self.application.close()
        return 0

    def begin(self) -> None:
        """Persist the start, before anything changes."""
        killed = self.killed
        if killed:
            interrupted = {"status": 1, "seconds": "", "outcome": f"interrupted at {killed['step']}"}
            self.record.remember(killed | interrupted)
        previous = killed.get("previous", "") if self.is_current else self.live
        # What old workers and beat were told must stay known, however often a deployment is killed.
        kept = killed if self.is_current or killed.get("release") != self.live else {}
        self.record.begin(
            self.request.action, self.release, self.request.by, previous=previous, log=self.request.log,
            was_built=self.release in self.host.built(), access_log_offset=summary.access_log_size(self.settings),
            **{name: kept[name] for name in ("stopped_consuming", "beat_stopped") if kept.get(name)},
        )  # fmt: skip
        self.state = self.record.state

    def take(self, step: Step) -> None:
        """Take a step, record its duration, and wait for the other hosts at its barrier."""
        self.record.step(step.name)
        began = time.monotonic()
        step.run(self)
        self.state["steps"][step.name] = round(time.monotonic() - began, 2)
        if self.settings.barriers and step.barrier:
            barriers.wait_at(self.host, self.record, step.name)

    # -- failure

    def fail(self, error: ReleaseError) -> int:
        """Revert, say why, and record it."""
        # No signal, not even the first one, may interrupt the revert.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        step = self.state["step"]
        cause = error.cause or str(causes.find(error.output or str(error), str(self.host.path(self.release))) or "")
        what = "Rollback to" if self.request.action == "rollback" else "Deployment of"
        say(f"{what} {self.release} failed at step {step}: {error}")
        self.keep_output(error)
        if step in FINAL and self.host.current_release() == self.release:
            say_cause(cause)
            say(f"Release {self.release} is live. Run the same command again to complete the remaining steps.")
            return 1
        try:
            self.revert()
        except Exception as problem:  # The disk may be full, the database or the broker away.
            say_cause(cause)
            say(f"The revert failed, too: {problem}\nRun the same command again to complete or revert the deployment.")
            return 1
        current = self.host.current_release()
        # Near the end: it is the last thing that the control machine prints.
        say_cause(cause)
        say(f"Release {current} is live, as before." if current else "No release is live.")
        try:
            self.record.end(1, f"failed at {step}: {in_one_line(str(error), cause)}")
        except OSError as problem:
            # The next deployment treats this one as killed, and reverts it again.
            say(f"The outcome could not be recorded: {problem}")
        return 1

    def keep_output(self, error: ReleaseError) -> None:
        """Write an output that was shown in part only to a file beside the log."""
        if len(error.output.splitlines()) > SHOWN_LINES and self.request.log:
            path = Path(self.request.log).with_suffix(".output")
            # On a full disk it is lost.
            with suppress(OSError):
                path.touch(0o640)
                path.write_text(error.output)
                say(f"The whole output is in {path}.")

    def revert(self) -> None:
        """Undo the steps that were taken; see steps.undo_order.

        Raises ReleaseError, before anything is undone, when traffic cannot move back.
        """
        if self.previous == self.release:
            # It was live before this run, whose purpose was only to revert another, killed deployment.
            return
        traffic.require_previous(self)
        for step in undo_order(self.taken()):
            step.undo(self)
        archive.discard(self.host)

    def taken(self) -> tuple[Step, ...]:
        """Return the steps up to the failed one; after a kill every step, since the killed run may have got further."""
        if self.killed:
            return STEPS
        plan = self.plan
        names = [step.name for step in plan]
        return plan[: names.index(self.state["step"]) + 1]

    # -- hooks

    def run_hook(self, name: str) -> None:
        """Run the application's commands of a hook; before_switch on every host, the others only on the leader."""
        if name != "before_switch" and not self.settings.leader:
            return
        for command in self.application.hook(name):
            say(f"Hook {name} ran: {command}")


def say_cause(cause: str) -> None:
    if cause:
        say(f"Cause: {' '.join(cause.split())}")


def in_one_line(error: str, cause: str = "") -> str:
    """Shorten an error to its first line and its cause or, if that line ends with a colon, the last line."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if cause:
        return " ".join([lines[0], *cause.split()])
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
