"""The steps of a rollout and of a rollback, in order, and what puts things back when one of them fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import build
from ..application import Application
from ..database import Database
from .health import answers, health_problem, wait_until_idle, warm_up
from ..host import Host
from .record import Record
from ..settings import ReleaseError, say

DEPLOY = (
    "preflight", "build", "check", "snapshot", "migrate", "start", "gate", "warm", "handover", "switch",
    "probe", "watch", "beat", "drain", "prune",
)  # fmt: skip
# What is left to do for a release that serves already: a rollout that was killed after its switch is taken up here.
RESUME = ("preflight", "start", "gate", "warm", "handover", "probe", "watch", "beat", "drain", "prune")
# A release that has served before is built and migrated for; pages come back first, then its workers.
ROLLBACK = (
    "preflight", "start", "gate", "warm", "compare", "switch", "workers", "handover",
    "probe", "watch", "beat", "drain", "prune",
)  # fmt: skip
# From here on the old processes end, and there is no way back to them.
FINAL = ("beat", "drain", "prune")
# Where a host of several waits for the others. Until the last of them, whatever fails anywhere is put back everywhere.
MEETINGS = ("check", "migrate", "gate", "watch")
MEETING_SECONDS = 600
# One host dumps and migrates the database for all; the others wait for it.
MIGRATE_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    action: str
    release: str
    by: str
    archive: Path | None = None
    force: bool = False
    log: str = ""


class Rollout:
    """One transaction: a release becomes the one that serves, or everything is as it was."""

    def __init__(self, host: Host, record: Record, order: Order) -> None:
        self.host = host
        self.settings = host.settings
        self.manager = host.manager
        self.record = record
        self.order = order
        self.release = order.release
        self.application = Application(host, order.release)
        self.previous = host.serving()
        self.warnings: list[str] = []
        self.migrations: dict[str, Any] = {"pending": []}
        self.tasks = {"finished": 0, "handed_back": 0, "lost": 0}
        self.sync: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Take the steps; put things back when one fails. Returns the exit status."""
        left_behind = self.record.unfinished()
        serves = self.release == self.previous
        if serves and not left_behind:
            say(f"Release {self.release} serves already.")
            return 0
        before = left_behind.get("previous", "") if serves else self.previous
        if left_behind:
            broke_off = {"status": 1, "seconds": "", "outcome": f"broke off at {left_behind['step']}"}
            self.record.remember(left_behind | broke_off)
        # What the old workers and beat were told stays known, however often it is killed.
        kept = left_behind if serves or left_behind.get("release") != self.previous else {}
        told = {name: kept[name] for name in ("taken", "beat_stopped") if kept.get(name)}
        self.record.begin(self.order.action, self.release, self.order.by, previous=before, log=self.order.log, **told)
        self.record.note(log_from=self.log_size(), was_built=self.release in self.host.built())
        try:
            self.recover(left_behind)
            for step in self.steps(serves):
                # What was told before the switch need not be told again to workers that are on their way out.
                if step != "handover" or not (serves and self.record.state.get("taken")):
                    self.take(step)
            self.finish()
        except ReleaseError as error:
            return self.fail(str(error))
        except Exception:  # Whatever it is, what served must serve on.
            return self.fail(f"This was not expected:\n{traceback.format_exc()}")
        finally:
            self.application.close()
        return 0

    def steps(self, serves: bool) -> tuple[str, ...]:
        if serves:
            return RESUME
        return ROLLBACK if self.order.action == "rollback" else DEPLOY

    def take(self, step: str) -> None:
        """Take a step, note how long it took, and wait for the other hosts where they meet."""
        self.record.step(step)
        began = time.monotonic()
        method: Callable[[], None] = getattr(self, step)
        method()
        self.record.state["steps"][step] = round(time.monotonic() - began, 2)
        if self.settings.barriers and step in MEETINGS:
            self.meet(step)

    def meet(self, step: str) -> None:
        """Wait until the control machine says that every host has come as far.

        Raises ReleaseError when it says nothing for ten minutes, or for six hours where another host migrates.
        """
        self.record.note(waits_at=step)
        seconds = MIGRATE_SECONDS if step == "migrate" and not self.settings.leader else MEETING_SECONDS
        deadline = time.monotonic() + seconds
        while step not in until_file(self.host).read_text().split():
            if time.monotonic() > deadline:
                raise ReleaseError(
                    f"Nothing has been heard for {seconds // 60} minutes: another host has not come as far as the "
                    f"end of {step}, or the control machine is gone."
                )
            time.sleep(0.1)
        self.record.note(waits_at="")

    # -- before anything changes

    def recover(self, left_behind: dict[str, Any]) -> None:
        """Undo what a killed rollout of another release left, as far as it was not completed."""
        if not left_behind:
            return
        other = left_behind["release"]
        say(f"The rollout of {other} by {left_behind['by']} was killed at the step {left_behind['step']}.")
        taken = left_behind.get("taken", {})
        if other == self.previous:
            # It serves, and the workers before it are to end, unless this goes back to their release.
            mine = {self.host.node(unit) for unit, of in self.manager.alive().items() if of == self.release}
            taken = {node: queues for node, queues in taken.items() if node in mine}
        if taken:
            former = Application(self.host, self.previous)
            self.give_back(taken, former)
            former.close()
        if other != self.previous:
            if left_behind.get("beat_stopped") and not self.manager.beat_runs():
                self.manager.restart_beat()
            self.record.note(taken={}, beat_stopped=False)
        if other not in (self.release, self.previous):
            self.manager.stop([unit for unit, of in self.manager.alive().items() if of == other])
            if not left_behind.get("was_built"):
                self.host.remove(other)
            say(f"What it had started of {other} is stopped.")

    def preflight(self) -> None:
        """Room on the disk; the release to go back to is here; no second beat."""
        if self.order.action == "rollback" and self.release not in self.host.built():
            built = ", ".join(self.host.built()) or "none"
            raise ReleaseError(f"Release {self.release} is not on this host; these are: {built}.")
        if self.release not in self.host.built():
            build.check_room(self.host)
        beats = beat_processes(self.settings.name)
        if len(beats) > 1:
            raise ReleaseError(
                f"{len(beats)} beats run on this host, so every tick comes {len(beats)} times: processes "
                f"{', '.join(beats)}. Only {self.settings.name}-beat may run: end the others with kill, then run again."
            )
        if beats and not self.settings.beat and not self.manager.beat_runs():
            raise ReleaseError(
                f"A beat runs on this host, where none belongs, so every tick comes twice: process {beats[0]}. "
                "End it with kill, then run again."
            )

    # -- building

    def build(self) -> None:
        if self.release in self.host.built():
            say(f"Release {self.release} is already built.")
            return
        if self.order.archive is None:
            raise ReleaseError("It is not built on this host, and there is no archive to build it from.")
        build.unpack(self.host, self.release, self.order.archive)
        build.make_environment(self.host, self.release)
        say(f"Release {self.release} is built in {self.host.path(self.release)}.")

    def check(self) -> None:
        """The application's own checks, its static files, and what waits for the database."""
        settings = self.settings
        beat = bool(settings.celery_app) and settings.beat
        found = self.application.ask("check", settings.wsgi_app, settings.celery_app, beat, seconds=300)
        state = self.application.ask("migrations")
        self.refuse_older(state)
        self.migrations = state
        facts = {"id": self.release, "versions": found["versions"], "known": state["known"]}
        facts["workers"] = {worker.name: worker.queues for worker in settings.workers}
        if not self.record.state["was_built"]:
            mark = self.host.path(self.release) / "build.json"
            mark.with_suffix(".new").write_text(json.dumps(facts | build.measure(mark.parent)))
            mark.with_suffix(".new").rename(mark)
        # Also where it was built before: a run that was killed may not have come as far.
        self.sync = build.start_sync(self.host.path(self.release))
        say("The application's checks pass, its static files are in place.")

    def refuse_older(self, state: dict[str, Any]) -> None:
        """A release that lacks migrations which the database has would run against a schema that it does not know."""
        if not state["unknown"]:
            return
        ahead = f"The database is ahead of release {self.release}: it has applied {', '.join(state['unknown'])}"
        if not self.order.force:
            raise ReleaseError(
                f"{ahead}, which this release does not have. Roll out a release that has them or, where the older "
                "code can work with the newer tables, run again with -e release_force=true."
            )
        self.warn(f"{ahead}. It goes on since release_force was given.")

    def compare(self) -> None:
        """Rolling back: does the database fit? Asked while the pages started, since each takes a second or two."""
        self.refuse_older(self.comparison.result())

    # -- the database

    def snapshot(self) -> None:
        if not self.migrations["pending"] or not self.settings.leader or not self.previous:
            return
        if not self.settings.dump_before_migrate:
            say("No snapshot of the database: app_dump_before_migrate is false.")
            return
        self.database().snapshot(Path("/var/backups") / self.settings.name / f"before-{self.release}.dump")

    def migrate(self) -> None:
        if not self.settings.leader:
            return
        found = self.migrations
        if found["pending"]:
            for warning in found["warnings"] if self.previous else []:
                self.warn(warning)
            for one in found["idle"]:
                session = f"Process {one['pid']} of the database (user {one['user']}, {one['application']})"
                self.warn(
                    f"{session} has been idle in a transaction for {one['seconds']} s: it may keep a migration waiting."
                )
            self.run_hook("before_migrate")
            self.database().migrate(self.application.manage, found["pending"], found["not_atomic"], found["concurrent"])
        say("The database has every migration of this release.")
        celery = self.settings.celery_app
        for name, task in self.application.ask("periodic", celery)["unknown"] if celery else []:
            self.warn(f'The periodic task "{name}" sends {task}, which this release lacks: disable it in the admin.')
        if self.settings.create_admin and not self.previous:
            say(self.application.manage("ensure_admin").strip())

    def database(self) -> Database:
        return Database(self.settings, self.application.environment(owner=True), say)

    # -- the new processes

    def start(self) -> None:
        """Start the release beside the one that serves; what a killed run left behind stops first."""
        wanted = (self.previous, self.record.state["previous"])
        strays = [unit for unit in self.host.others(self.release) if unit.partition("@")[2] not in wanted]
        self.manager.stop(strays, wait=False)
        self.manager.prepare(self.release)
        if self.order.action == "rollback" and self.release != self.previous:
            self.comparison = ThreadPoolExecutor(1).submit(self.application.ask, "migrations")
            self.start_units(self.host.web_units(self.release))
        else:
            self.start_units(self.host.units(self.release))

    def start_units(self, units: list[str]) -> None:
        try:
            self.manager.start(units)
        except ReleaseError as error:
            raise ReleaseError(self.explain(units, str(error))) from None
        if units:
            say(f"Started: {', '.join(units)}.")

    def gate(self) -> None:
        """Wait until the release's own socket answers its health check and its own workers answer a ping."""
        self.gate_web()
        if self.order.action == "rollback" and self.release != self.previous:
            return
        self.gate_workers()
        self.run_hook("before_switch")

    def workers(self) -> None:
        """Rolling back: the workers, when the pages are back."""
        self.start_units(self.host.worker_units(self.release))
        self.gate_workers()

    def gate_web(self) -> None:
        if not self.settings.web:
            return
        units = self.host.web_units(self.release)
        deadline = time.monotonic() + self.settings.health_check_timeout
        while problem := self.health():
            if self.manager.failed(units) or time.monotonic() > deadline:
                raise ReleaseError(self.explain(units, f"Its health check {self.settings.health_path}: {problem}."))
            time.sleep(0.05)
        say(f"Its own socket answers {self.settings.health_path} with 200.")

    def health(self) -> str:
        return health_problem(self.settings, self.host.path(self.release) / "run/web.sock", self.release)

    def warm(self) -> None:
        """Have every process load what its first visitor would wait for."""
        if self.settings.web:
            warm_up(self.settings, self.host.path(self.release) / "run/web.sock", self.settings.warmup_paths)
        # After a power failure `current` must not point to empty files. What served before was written long ago.
        if self.sync is not None and not build.is_synced(self.sync):
            self.warn(f"Release {self.release} may not be on the disk yet (sync failed or took too long).")

    def gate_workers(self) -> None:
        units = self.host.worker_units(self.release)
        if not units:
            return
        names = [self.host.node(unit) for unit in units]
        seconds = self.settings.health_check_timeout
        deadline = time.monotonic() + seconds
        while silent := self.application.ask("ping", self.settings.celery_app, 3, *names)["silent"]:
            if self.manager.failed(units) or time.monotonic() > deadline:
                raise ReleaseError(self.explain(units, f"No answer (within {seconds} s) from {', '.join(silent)}."))
        say(f"Its workers answer: {', '.join(worker.name for worker in self.settings.workers)}.")

    # -- from the old to the new

    def handover(self) -> None:
        """The old workers take no more tasks, but for queues that no new worker takes: those they empty."""
        if self.manager.beat_runs() and not self.settings.beat:
            self.record.note(beat_stopped=True)
            self.manager.stop_beat()
            say("Beat belongs to another host now and stopped here.")
        taken = {}
        for unit in self.host.others(self.release):
            queues = self.host.facts(unit.partition("@")[2]).get("workers", {}).get(self.host.worker_name(unit), [])
            shared = [queue for queue in queues if queue in self.settings.queues]
            if shared and not self.host.is_web(unit):
                taken[self.host.node(unit)] = shared
        if not taken:
            return
        # Written down first: whoever finds this rollout killed gives them back.
        self.record.note(taken=taken)
        for node, queues in taken.items():
            if self.application.ask("consumers", self.settings.celery_app, "cancel", ",".join(queues), node)["silent"]:
                self.warn(f"The worker {node} does not say whether it stopped taking tasks; it is stopped later.")
        say("The old workers take no more tasks.")

    def give_back(self, taken: dict[str, list[str]], application: Application) -> None:
        """The old workers take tasks again, as before `handover`."""
        for node, queues in taken.items():
            if application.ask("consumers", self.settings.celery_app, "add", ",".join(queues), node)["silent"]:
                name, _, release = node.partition("@")[0].partition(".")
                unit = f"{self.settings.name}-worker-{name}@{release}"
                say(f"The worker {node} does not answer and is restarted.")
                self.manager.stop([unit])
                self.manager.start([unit])

    def switch(self) -> None:
        self.host.switch(self.release)
        say("Visitors get their pages from it.")

    def probe(self) -> None:
        """A task goes round every queue and comes back from this release."""
        queues = sorted({queue for worker in self.settings.workers for queue in worker.queues})
        if queues:
            celery, seconds = self.settings.celery_app, self.settings.health_check_timeout
            units = self.host.worker_units(self.release)
            nodes = {
                self.host.node(unit): worker.queues for unit, worker in zip(units, self.settings.workers, strict=True)
            }
            answer = self.application.ask("probe", celery, seconds, self.release, nodes, *queues, seconds=seconds + 30)
            if answer["silent"]:
                reason = f"No task came back within {seconds} s from the queues: {', '.join(answer['silent'])}."
                raise ReleaseError(self.explain(units, reason))
            for queue, other in answer["other"].items():
                self.warn(f"A task of the queue {queue} was taken by release {other}.")
            if back := [queue for queue in queues if queue not in answer["busy"]]:
                say(f"A task came back from every queue: {', '.join(back)}.")
            if answer["busy"]:
                say(f"At work on tasks of this release, so that the one sent round waits: {', '.join(answer['busy'])}.")
        self.run_hook("after_switch")

    def watch(self) -> None:
        """For a few seconds after the switch, the pages answer and no process ends."""
        deadline = time.monotonic() + self.settings.bake
        units = self.host.units(self.release)
        while True:
            problem = self.settings.web and self.health()
            # A machine that is busy for some seconds is no reason to go back.
            if problem and problem.startswith("no answer"):
                problem = self.health()
            if problem:
                raise ReleaseError(self.explain(units, f"After the switch, its health check: {problem}."))
            if failed := self.manager.failed(units):
                raise ReleaseError(self.explain(failed, f"After the switch, these ended: {', '.join(failed)}."))
            if time.monotonic() > deadline:
                say(f"It kept answering for {self.settings.bake} s.")
                return
            time.sleep(0.25)

    # -- after the switch is final

    def beat(self) -> None:
        """The one beat goes over to the release."""
        self.manager.take_up()
        if self.settings.beat:
            self.manager.restart_beat()
            say("Beat runs from it.")

    def drain(self) -> None:
        """The other releases' processes finish what they hold, and end."""
        others = self.host.others(self.release)
        web = [unit for unit in others if self.host.is_web(unit)]
        workers = [unit for unit in others if unit not in web]
        self.empty_queues(workers)
        self.manager.stop(workers, wait=False)
        for unit in web:
            wait_until_idle(self.host.path(unit.partition("@")[2]) / "run/web.sock")
        self.manager.stop(web)
        self.await_end(workers)
        if workers:
            restored = self.application.ask("rescue", self.settings.celery_app)["restored"]
            self.account(workers, restored)

    def empty_queues(self, workers: list[str]) -> None:
        """Old workers go on until the queues are empty that no new worker takes, as long as they may take to stop."""
        queues = set()
        for unit in workers:
            facts = self.host.facts(unit.partition("@")[2])
            queues |= set(facts.get("workers", {}).get(self.host.worker_name(unit), [])) - set(self.settings.queues)
        if not queues:
            return
        deadline = time.monotonic() + max([worker.stop_timeout for worker in self.settings.workers], default=300)
        while any((waiting := self.application.ask("depths", self.settings.celery_app, *sorted(queues))).values()):
            if time.monotonic() > deadline:
                for queue, number in waiting.items():
                    self.warn(f"{number} tasks wait in the queue {queue}, which no worker takes any more.")
                return
            time.sleep(0.5)
        say(f"No longer taken, and empty: {', '.join(sorted(queues))}.")

    def await_end(self, units: list[str]) -> None:
        """Wait until units that were told to stop have ended; each has a time limit of its own."""
        spoken = time.monotonic()
        while left := sorted(set(units) & set(self.manager.alive())):
            if time.monotonic() - spoken > 10:
                say(f"Finishing what they hold: {', '.join(left)}.")
                # Told again: Supervisor starts one anew that ended by itself just before it was told.
                self.manager.stop(left, wait=False)
                spoken = time.monotonic()
            time.sleep(0.1)

    def account(self, workers: list[str], restored: int) -> None:
        """What became of the tasks that the old workers held, as each wrote it down at its end."""
        held = 0
        for unit in workers:
            file = self.host.path(unit.partition("@")[2]) / "run" / f"{self.host.worker_name(unit)}.json"
            try:
                numbers = json.loads(file.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                self.warn(
                    f"{unit} was killed before it had finished. What it held was put back; what it ran without "
                    "acks_late is lost. If its time to stop was over, give it a longer stop_timeout."
                )
                continue
            held += numbers["held"]
            for name in ("finished", "handed_back"):
                self.tasks[name] += numbers[name]
        self.tasks["lost"] = max(0, held - self.tasks["finished"] - self.tasks["handed_back"])
        self.tasks["handed_back"] += restored

    def prune(self) -> None:
        if self.order.action == "deploy":
            # Which release came before another is told by these times.
            os.utime(self.host.path(self.release) / "build.json")
        build.forget_archives(self.host)
        self.manager.tidy()
        for release in self.host.prune(self.record.state["previous"] if self.order.action == "deploy" else ""):
            say(f"Removed release {release}.")

    # -- the end

    def finish(self) -> None:
        """Say what a person wants to know next, and write it down."""
        state, tasks = self.record.state, self.tasks
        took = ", ".join(f"{step} {seconds}" for step, seconds in state["steps"].items() if seconds >= 0.05)
        failed = self.failed_requests()
        if self.settings.celery_app and self.settings.workers:
            for name, number in self.application.ask("set_aside", self.settings.celery_app)["tasks"].items():
                self.warn(f"{number} tasks called {name} are set aside until a release that has such a task serves.")
        self.look_at_beat()
        if state["previous"]:
            say(
                f"Tasks of the old workers: {tasks['finished']} finished, {tasks['handed_back']} handed back, "
                f"{tasks['lost']} lost. Failed requests (5xx): {failed}."
            )
        say(f"{self.record.seconds()} s: {took}.")
        say(f"Release {self.release} serves.")
        self.record.note(tasks=tasks, failed_requests=failed, warnings=self.warnings)
        self.record.end(0, "serves")

    def look_at_beat(self) -> None:
        """Beat has had the time of `drain` and `prune` to fail: systemd and Supervisor call it started before that."""
        name = f"{self.settings.name}-beat"
        if not self.settings.beat or (self.manager.beat_runs() and not self.manager.failed([name])):
            return
        logs = {"systemd": f"journalctl -u {name}", "supervisor": f"/var/log/{self.settings.name}/{name}.log"}
        self.warn(f"Beat does not keep running, so no periodic task is sent. Its log: {logs[self.settings.manager]}")

    def fail(self, error: str) -> int:
        """Put everything back, say why, and write it down."""
        # Nothing stops what puts things back, not even the first signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        step = self.record.state["step"]
        say(f"Release {self.release} stops at {step}. {error}")
        if step in FINAL and self.host.serving() == self.release:
            say(f"Release {self.release} serves. Run the same again: it takes up what is left of the one before.")
            return 1
        try:
            self.put_back()
        except Exception as second:  # There may be no room, no database, no broker.
            say(f"Putting things back met another problem: {second}\nRun the same again: it takes up what is left.")
            return 1
        serving = self.host.serving()
        as_before = f"Release {serving} serves, as before.{self.other_settings(serving)}"
        say(as_before if serving else "No release serves yet.")
        try:
            self.record.end(1, f"failed at {step}: {in_a_line(error)}")
        except OSError as problem:
            # The next run takes it for one that was killed, and undoes it again.
            say(f"That could not be written down: {problem}")
        return 1

    def other_settings(self, serving: str) -> str:
        """A further sentence, where what failed has other settings than what serves: no release carries its own."""
        if self.order.action == "rollback" or settings_part(serving) == settings_part(self.release):
            return ""
        return (
            f" The settings of this run are in {self.settings.etc} and the units already, and {serving} gets them when "
            "its processes restart: put them right in group_vars and run site.yml before that."
        )

    def put_back(self) -> None:
        state = self.record.state
        previous = state["previous"]
        if previous == self.release:
            # It served before this began, which was only to undo what another left behind.
            return
        if self.host.serving() == self.release and previous:
            if not self.still_runs(previous):
                raise ReleaseError(f"Release {previous} no longer runs, so it cannot take over.")
            self.host.switch(previous)
            say(f"Switched back to release {previous}.")
        elif self.host.serving() == self.release:
            self.settings.current.unlink()
        if state.get("taken"):
            self.application.close()
            former = Application(self.host, previous)
            self.give_back(state["taken"], former)
            former.close()
            say("Its workers take tasks again.")
        if state.get("beat_stopped"):
            self.manager.restart_beat()
        new = [unit for unit, of in self.manager.alive().items() if of == self.release]
        self.stop_taking([unit for unit in new if not self.host.is_web(unit)])
        if any(self.host.is_web(unit) for unit in new):
            wait_until_idle(self.host.path(self.release) / "run/web.sock", at_least=0.5 if previous else 0)
        self.manager.stop(new)
        if not state["was_built"]:
            self.application.close()
            self.host.remove(self.release)
        build.forget_archives(self.host)

    def still_runs(self, release: str) -> bool:
        """Could it take over at once? A process that is ending counts as running, so its pages are asked for."""
        if not self.host.facts(release) or not set(self.host.units(release)) & set(self.manager.alive()):
            return False
        return not self.settings.web or answers(self.settings, self.host.path(release) / "run/web.sock")

    def stop_taking(self, units: list[str]) -> None:
        """New workers that must go stop taking tasks first: one taken at the moment of its end could run twice."""
        application = Application(self.host, self.release)
        try:
            for unit in units if self.record.state["steps"].get("gate") else []:
                queues = {worker.name: worker.queues for worker in self.settings.workers}[self.host.worker_name(unit)]
                application.ask("consumers", self.settings.celery_app, "cancel", ",".join(queues), self.host.node(unit))
        except (ReleaseError, KeyError) as error:
            say(f"The new workers could not be told to take no more tasks: {error}")
        finally:
            application.close()

    # -- helpers

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        say(f"Warning: {text}")

    def run_hook(self, name: str) -> None:
        if (name == "before_migrate" or name == "after_switch") and not self.settings.leader:
            return
        for command in self.application.hook(name):
            say(f"Ran the application's command of {name}: {command}")

    def explain(self, units: list[str], reason: str) -> str:
        """The reason, and the last log lines of each process that ended, or of all where none did."""
        failed = self.manager.failed(units)
        words = [
            f"Last log lines of {unit}:\n{self.manager.last_words([unit], 25 if failed else 8)}"
            for unit in failed or units
        ]
        return "\n".join([reason, *words])

    def log_size(self) -> int:
        try:
            return Path(self.settings.access_log).stat().st_size if self.settings.access_log else 0
        except FileNotFoundError:
            return 0

    def failed_requests(self) -> int:
        """Answers of 500 to 599 that nginx has given since the rollout began."""
        if not self.settings.access_log or not Path(self.settings.access_log).exists():
            return 0
        with Path(self.settings.access_log).open("rb") as file:
            start = self.record.state["log_from"]
            # A log that was rotated in between begins anew.
            file.seek(start if self.log_size() >= start else 0)
            failed = (line for line in file if re.search(rb'" 5\d\d \d', line))
            # Maintenance is 503 without anybody behind nginx being asked.
            return sum(1 for line in failed if not (b'" 503 ' in line and b"upstream=- " in line))


def in_a_line(error: str) -> str:
    """What an error comes down to: its first line, and the last of what that announces."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def settings_part(release: str) -> str:
    """The hash of its settings in a release's ID, CONTENT-SETTINGS; "" where it has none."""
    return release.rpartition("-")[2] if "-" in release else ""


def until_file(host: Host) -> Path:
    """Holds the meetings after which the control machine lets this host go on."""
    return host.settings.home / "rollout.until"


def beat_processes(user: str) -> list[str]:
    """The process IDs of every Celery beat that the application's user runs."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            owner = folder.owner()
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue
        if owner == user and "beat" in words and any("celery" in Path(word).name for word in words[:3]):
            found.append(folder.name)
    return sorted(found)
