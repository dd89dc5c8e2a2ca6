"""Restore the database, and the uploads, in place of the present ones.

The present data folder of PostgreSQL is renamed, and kept. The restored one recovers up to its target where no client
can connect, is checked there, and only then gets a new timeline and the application. A failure up to that point, or a
kill, brings the former data back.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from argparse import Namespace
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from ..application import Application
from ..deploy.record import Record
from ..host import Host
from ..import_database import CancelledError, Exchange, apply_pending, cancellable
from ..settings import BusyError, ReleaseError, say
from .checks import check_canary, check_migrations, migrations
from .configuration import LOCAL, OFFSITE, Configuration
from .files import snapshot_for
from .listing import (
    GivenUpError,
    Point,
    TooLateError,
    ago,
    choose,
    fetch_repository,
    iso,
    offsite_index,
    parse_moment,
)
from .run import back_up_database, copy_log, send
from .scratch import Scratch, clear
from .server import Server, require_version
from .ship import gaps, how_to_restore, other_passphrases, ship, shipped, take_over
from .state import State, lock
from .tools import ACCOUNT, SECRETS_REMEDY, Repository, Restic, Target, call, wait_ended

# Seconds until PostgreSQL must have ended, or have begun.
SERVICE_SECONDS = 900
# The server does not start if it has ended so often.
MOST_RESTARTS = 4
UNDO_PLAYBOOK = "ansible-playbook -i INVENTORY playbooks/restore.yml -e restore_undo=true"
# For commands that are not typed where playbooks/restore.yml prints them.
ON_SERVER = "as root on this server"
# Spans of time that are remembered as given up by restores.
GAPS = 100
PARKED_BECAUSE = "it waited when the database was restored to an earlier state"


def run(host: Host, configuration: Configuration, options: Namespace) -> int:
    """Run `backup restore`. Returns the exit status; raises ReleaseError, BusyError."""
    with (
        cancellable("restore"),
        # What only looks does not wait for a drill, which may read for hours.
        nullcontext() if options.show else lock(configuration, "drill", wait=60),
        lock(configuration, "work", wait=60),
    ):
        record = Record(host.settings) if host.settings.home.exists() else None
        if record:
            record.hold()
        try:
            if record and (state := record.unfinished()):
                raise ReleaseError(
                    f"The {state['action']} of {state['release']} was killed. Run it again first, which "
                    f"completes or reverts it."
                )
            restore = Restore(host, configuration, options)
            if options.undo:
                restore.undo()
            elif options.complete:
                restore.complete()
            else:
                restore.run()
        except OSError as error:
            raise ReleaseError(str(error)) from error
        except CancelledError as error:
            raise ReleaseError(f"{error} What it has done is above.") from None
        finally:
            if record:
                record.release()
    return 0


class Restore:
    """One restore of what this host has: the database, the uploads, or both."""

    def __init__(self, host: Host, configuration: Configuration, options: Namespace) -> None:
        self.host, self.configuration, self.options = host, configuration, options
        self.state = State(configuration, "restore")
        # The folder itself, where it is a link to another disk.
        self.data = Path(configuration.data).resolve()
        self.release = host.current_release()
        self.kept = before(self.data)
        # Where the application runs on several hosts, the playbook stops and starts it.
        self.has_application = bool(self.release) and not options.database_only
        self.moment = parse_moment(options.at) if options.at else None

    def run(self) -> None:
        if not self.options.show:
            self.finish_killed()
        if not self.configuration.version or self.options.uploads:
            if not self.configuration.folders:
                raise ReleaseError("This host has no uploads.")
            if self.configuration.target and not self.options.show:
                self.restore_folders(self.moment or time.time())
            return
        require_version(Server(self.configuration))
        point = self.find()
        self.describe(point)
        if self.options.show:
            return
        self.confirm()
        if point.source == OFFSITE:
            self.fetch()
        # No run of the timer comes between the two databases.
        with lock(self.configuration, "ship", wait=120):
            try:
                self.replace(point)
            finally:
                self.at_boot("enable")
        uploads = ""
        if self.configuration.folders and self.configuration.target:
            try:
                self.restore_folders(point.seconds)
            except (ReleaseError, OSError) as error:
                uploads = f"The uploads could not be restored: {error}"
        self.finish()
        self.report(point)
        if uploads:
            raise ReleaseError(
                f"{uploads}\nEverything else is done. To restore them, {ON_SERVER}: "
                f"{self.configuration.program} backup restore --uploads"
            )

    def finish(self) -> None:
        """Start the application on the restored database, and make a backup of it."""
        if self.has_application:
            try:
                self.start()
            except ReleaseError as error:
                raise ReleaseError(
                    f"{error}\nThe database is restored, and has no new backup yet. {self.way_back()}"
                ) from None
        self.state.write(completing=False)
        self.back_up_again()

    # -- before anything changes

    def find(self) -> Point:
        """Return what to restore. Raises ReleaseError when there is nothing, or the secrets are others."""
        if not self.options.offsite and not self.is_new_server():
            try:
                return self.find_local()
            except (GivenUpError, TooLateError):
                raise  # The target has nothing else.
            except ReleaseError as error:
                if not self.configuration.target:
                    raise
                say(f"The backups of this host cannot be used: {error}\nLooking at {self.configuration.target}.")
        self.configuration.require_target()
        record = shipped(Target(self.configuration))
        if not record:
            raise ReleaseError(f"{self.configuration.target} has no backup of the database.")
        if "backup_key" in other_passphrases(self.configuration, record):
            lines = how_to_restore(self.configuration, record)
            raise ReleaseError("\n".join([f"{self.configuration.target} has backups that cannot be read.", *lines]))
        self.compare_secrets(record)
        if record.get("version") != self.configuration.version:
            raise ReleaseError(
                f"The backups are of PostgreSQL {record.get('version')}, and this server has "
                f"{self.configuration.version}: set up a server with the Debian of the former one, restore there, and "
                "upgrade that (docs/operate.md)."
            )
        with offsite_index(self.configuration) as index:
            if (found := index.system_id()) != record.get("system_id"):
                raise ReleaseError(
                    f"{self.configuration.target} has base backups of one database ({found}) and the write-ahead log "
                    f"of another ({record.get('system_id')}), that of {record.get('host')}: two servers copy there. "
                    "Give each a folder of its own in app_backup_target."
                )
            return choose(self.configuration, index, OFFSITE, record, self.moment)

    def is_new_server(self) -> bool:
        """Return whether the target has another database, and never got this one: that is what a new server restores.

        Raises ToolError when the target does not answer.
        """
        last = State(self.configuration, "ship").read()
        if not self.configuration.target or (last.get("shipped") and last.get("target") == self.configuration.target):
            return False
        found = shipped(Target(self.configuration))
        return bool(found) and found.get("system_id") != Repository(self.configuration).system_id()

    def copy_present(self) -> None:
        """Have the newest state be the present one, if the server answers."""
        with suppress(ReleaseError, BusyError):
            ship(self.configuration)

    def find_local(self) -> Point:
        if self.moment is None:
            self.copy_present()
        record = State(self.configuration, "ship").read().get("local", {})
        repository = Repository(self.configuration)
        if record.get("system_id") and record["system_id"] != repository.system_id():
            raise ReleaseError("they are those of another database.")
        self.compare_secrets(record)
        return choose(self.configuration, repository, LOCAL, record, self.moment)

    def compare_secrets(self, record: dict[str, Any]) -> None:
        there, here = record.get("fingerprints", {}), self.configuration.fingerprints
        other = sorted(name for name in there if name in here and there[name] != here[name])
        if other and not self.options.other_secrets:
            raise ReleaseError(
                f"These secrets are not those of the backup: {', '.join(other)}. With others, sessions end, and what "
                f"the application has encrypted cannot be read. To restore with those of the backup: {SECRETS_REMEDY}, "
                "and restore again. To restore all the same: --other-secrets (playbooks/restore.yml -e "
                "restore_other_secrets=true)."
            )

    def describe(self, point: Point) -> None:
        """Print what will be restored, and what it replaces."""
        say(f"To restore: the database as it was at {point.at} ({ago(point.seconds)}), from {point.source}.")
        try:
            size = f"{Server(self.configuration).size() / 1e6:.0f} MB"
        except ReleaseError as error:
            say(f"The present database does not answer: {error}")
            size = "size unknown"
        lost = time.time() - point.seconds
        say(
            f"It replaces the present database ({size}), which is kept. What was written in the last {lost:.0f} s, "
            f"since {point.at}, will be missing."
        )
        self.require_room(point)

    def require_room(self, point: Point) -> None:
        """Raise ReleaseError when the restored database, or the copy of the backups, has no room."""
        spaces = self.data / "pg_tblspc"
        if spaces.is_dir() and any(spaces.iterdir()):
            raise ReleaseError(
                "The database has tablespaces, which this program does not restore: see pgbackrest restore."
            )
        require_room(self.data.parent, point.backup.size * 1.2 + 2**28)
        if point.source == OFFSITE:
            folder = self.configuration.repository.parent
            is_same_disk = folder.stat().st_dev == self.data.parent.stat().st_dev
            more = point.backup.size * 1.2 if is_same_disk else 0
            require_room(folder, Target(self.configuration).size() + more + 2**28)

    def confirm(self, question: str = "Restore") -> None:
        if self.options.yes:
            return
        if not sys.stdin.isatty():
            raise ReleaseError("Nothing was changed. To restore without being asked, add --yes.")
        print(f"{question}? The application stops meanwhile. Type yes: ", end="", flush=True)
        if sys.stdin.readline().strip() != "yes":
            raise ReleaseError("Nothing was changed.")

    # -- the database

    def replace(self, point: Point) -> None:
        """Replace the data folder. Raises ReleaseError; the database and the application are then as before."""
        roles = self.present_roles()
        was_running = self.has_application and bool(self.host.manager.alive())
        repository = str(before(self.configuration.repository)) if point.source == OFFSITE else ""
        # What an undo of the last restore needs, if this one is reverted.
        previous = self.state.read() if self.state.read().get("accepted") else {}
        self.state.replace(
            {
                "previous": previous, "kept": str(self.kept), "data": str(self.data), "repository": repository,
                "accepted": False, "was_running": was_running, "gaps": gaps(self.configuration),
            }
        )  # fmt: skip
        try:
            # A kill from here on is known, and reverted by the next call.
            self.at_boot("disable")
            if was_running:
                say("Stopping the application: workers finish their tasks first.")
                self.host.cron.stop()
                self.host.halt()
            # Its last segments go into the repository that is kept with it.
            self.systemctl("stop")
            if self.data.exists():
                move(self.data, self.kept)
            if repository:
                self.use_fetched(Path(repository))
            self.recover(Repository(self.configuration), point)
        except BaseException:
            self.bring_back()
            raise
        self.accept(point, roles)

    def present_roles(self) -> list[dict[str, Any]]:
        try:
            return Server(self.configuration).roles()
        except ReleaseError:
            say("The present database does not answer. If passwords have changed since: run playbooks/provision.yml.")
            return []

    @property
    def fetched(self) -> Path:
        folder = self.configuration.repository
        return folder.with_name(f"{folder.name}.new")

    def fetch(self) -> None:
        """Copy the repository from the target, beside that of this host."""
        say(f"Copying the backups from {self.configuration.target}.")
        shutil.rmtree(self.fetched, ignore_errors=True)
        self.fetched_at = time.time()
        try:
            fetch_repository(self.configuration, self.fetched)
        except BaseException:
            shutil.rmtree(self.fetched, ignore_errors=True)
            raise

    def use_fetched(self, kept: Path) -> None:
        """Have the copy from the target take the place of the repository of this host, which is kept."""
        folder = self.configuration.repository
        if folder.exists():
            move(folder, kept)
        move(self.fetched, folder)
        folder.chmod(0o750)

    def recover(self, repository: Repository, point: Point) -> None:
        """Restore, recover up to the target, and check, where no client can connect."""
        began = time.monotonic()
        scratch_folder = self.configuration.state_folder / "recovery"
        clear(scratch_folder)
        scratch = Scratch(self.configuration, self.data, scratch_folder, lasting=True)
        say(f"Restoring the backup {point.backup.label} ({point.backup.size / 1e6:.0f} MB).")
        try:
            scratch.restore(repository, point.backup.label, point.target)
            scratch.start()
            try:
                age = check_canary(self.configuration, scratch.server, point)
                if self.has_application:
                    self.check_release(migrations(scratch.server, self.configuration.database))
            finally:
                scratch.stop()
        finally:
            shutil.rmtree(scratch_folder, ignore_errors=True)
        seconds = time.monotonic() - began
        say(f"Restored and checked in {seconds:.0f} s: the last sign of life in it is {age:.0f} s before {point.at}.")

    def check_release(self, restored: dict[tuple[str, str], float]) -> None:
        """Raise ReleaseError when the live release lacks migrations of the restored database."""
        application = Application(self.host, self.release)
        try:
            known = application.ask("known_migrations")
        finally:
            application.close()
        check_migrations(restored, map(tuple, known["migrations"]), self.release)

    def accept(self, point: Point, roles: list[dict[str, Any]]) -> None:
        """Have the restored database write again, on a timeline of its own."""
        settings = self.data / "postgresql.auto.conf"
        with settings.open("a") as file:
            file.write("recovery_target_action = 'promote'\n")
        # A kill from here on is completed by the next call.
        self.note_copied(point)
        self.state.write(accepted=True, completing=True)
        self.start_writing()
        Server(self.configuration).set_roles(roles)
        say(f"The database is that of {point.at}.")

    def start_writing(self) -> None:
        """Start the server, and wait until its recovery has ended. Raises ReleaseError after SERVICE_SECONDS."""
        self.systemctl("start", "--no-block")
        deadline, problem = time.monotonic() + SERVICE_SECONDS, ""
        while True:
            try:
                if Server(self.configuration).run("SELECT pg_is_in_recovery()") == "f":
                    return
                problem = "it recovers"
            except ReleaseError as error:
                problem = str(error)
            if self.has_ended():
                deadline = 0
            if time.monotonic() > deadline:
                raise ReleaseError(
                    f"The database does not start (journalctl -u {self.configuration.service}): "
                    f"{problem}\n{self.way_back()}"
                )
            time.sleep(0.3)

    def has_ended(self) -> bool:
        """Return whether the server cannot start: it has failed, or was started again and again."""
        words = ["systemctl", "show", "--property=ActiveState", "--property=NRestarts", self.configuration.service]
        found = dict(line.split("=", 1) for line in call(words, seconds=60).splitlines() if "=" in line)
        return found.get("ActiveState") == "failed" or int(found.get("NRestarts") or 0) >= MOST_RESTARTS

    def note_copied(self, point: Point) -> None:
        """Note that no later state can be restored yet, and what the target has already."""
        State(self.configuration, "ship").write(local={})
        now = time.time()
        self.note_gaps([*point.record.get("gaps", []), [point.seconds, now]])
        self.state.write(replaced_at=now)
        if point.source == OFFSITE:
            take_over(self.configuration, point.record)
            labels = [backup.label for backup in Repository(self.configuration).backups()]
            State(self.configuration, "backups").write(sent=labels, target=self.configuration.target)
            values = {"copied_from": self.fetched_at, "target": self.configuration.target, "shipped": point.record}
            State(self.configuration, "ship").write(**values)

    def bring_back(self) -> bool:
        """Bring the former data, their repository and the application back, and return whether that was possible.

        It may run more than once.
        """
        state = self.state.read()
        kept, repository = Path(state["kept"]), state.get("repository")
        try:
            if kept.exists():
                self.systemctl("stop")
                replace_folder(self.data, kept)
            if repository and Path(repository).exists():
                replace_folder(self.configuration.repository, Path(repository))
        except (ReleaseError, OSError) as problem:
            say(f"The former database could not be brought back: {problem}. It is {kept}.")
            return False
        say("Nothing was replaced: the database is the former one.")
        try:
            self.systemctl("start")
            if state.get("was_running"):
                self.host.boot()
        except ReleaseError as problem:
            say(f"It does not start, as before or because of something else: {problem}")
        self.at_boot("enable")
        # Last: a kill before that is completed by the next call.
        self.state.replace(state.get("previous", {}))
        return True

    def finish_killed(self) -> None:
        """Revert a restore that was killed before its database was accepted; complete an undo that was killed."""
        state = self.state.read()
        if state.get("undoing"):
            say("A return to the former database was killed: completing it.")
            self.exchange()
            self.back_up_again()
            say("\n".join(self.describe_kept("restored")))
        elif state.get("completing"):
            say("A restore was killed when its database was accepted: completing it.")
            self.start_writing()
            self.at_boot("enable")
            self.finish()
            say("It is complete. If a secret was rotated since that backup, run playbooks/provision.yml.")
            say("\n".join(self.describe_kept("former")))
        elif state and not state.get("accepted"):
            say("A restore was killed: bringing its former database back.")
            wait_ended(re.compile(r"pgbackrest .*restore"), SERVICE_SECONDS)
            clear(self.configuration.state_folder / "recovery")
            clear(self.fetched)
            if not self.bring_back():
                raise ReleaseError("Bring it back first: then the same command restores.")

    def undo(self) -> None:
        """Return to the data that the last restore has replaced."""
        state = self.state.read()
        if self.host.settings.barriers and not self.options.database_only:
            raise ReleaseError(
                f"The application runs on several hosts, which a playbook stops and starts: {UNDO_PLAYBOOK}"
            )
        if state.get("undoing") and self.options.show:
            say("A return to the former database was killed. It will be completed.")
            return
        if not state.get("undoing"):
            if not state.get("accepted") or not Path(state["kept"]).exists():
                raise ReleaseError("There is no former database of a restore on this host.")
            self.require_readable(Path(state["kept"]))
            since = [end for _, end in State(self.configuration, "gaps").read().get("gaps", [])][-1:]
            say(
                f"To return to: the database that was replaced{''.join(f' at {iso(moment)}' for moment in since)}, "
                f"which is {state['kept']}. What was written since then will be missing. The present data is kept."
            )
            if self.options.show:
                return
            self.confirm("Return")
            was_running = self.has_application and bool(self.host.manager.alive())
            undoing = {"kept": str(self.kept), "was_running": was_running, "gaps": gaps(self.configuration)}
            self.state.write(undoing=undoing)
        self.exchange()
        self.back_up_again()
        say("\n".join(["The database is the former one again.", *self.describe_kept("restored")]))

    def require_readable(self, data: Path) -> None:
        """Raise ReleaseError when a data folder cannot be that of a server."""
        try:
            call([str(self.configuration.programs / "pg_controldata"), str(data)], seconds=30, user=ACCOUNT)
        except ReleaseError as error:
            raise ReleaseError(f"Nothing was changed: {data} is no database that can start. {error}") from None

    def exchange(self) -> None:
        """Exchange the present data for the former ones.

        It continues where one that was killed has ended. The repository stays: its history has all timelines.
        """
        state, problem = self.state.read(), None
        undoing = state["undoing"]
        with lock(self.configuration, "ship", wait=120):
            if undoing["was_running"]:
                self.host.cron.stop()
                self.host.halt()
            self.systemctl("stop")
            exchange_folders(self.data, Path(state["kept"]), Path(undoing["kept"]))
            self.begin_timeline()
            try:
                self.start_writing()
            except ReleaseError as error:
                self.exchange_again(state)
                raise ReleaseError(
                    f"The former database does not start, and the restored one is back. {error}"
                ) from None
            if undoing["was_running"]:
                try:
                    self.host.boot()
                except ReleaseError as error:
                    # The exchange is complete: the next restore must not repeat it.
                    problem = error
            State(self.configuration, "ship").write(local={})
            now = time.time()
            # The former database has its own spans, and lacks what was written since it was replaced.
            self.note_gaps([*state.get("gaps", []), [state.get("replaced_at", now), now]])
            self.state.replace(
                {
                    "kept": undoing["kept"], "data": str(self.data), "accepted": True, "gaps": undoing["gaps"],
                    # It is only named: see describe_kept.
                    "replaced_at": now, "repository": state.get("repository", ""),
                }
            )  # fmt: skip
        if problem:
            raise ReleaseError(
                f"The database is the former one again, and has no new backup yet. The application does not start: "
                f"{problem}\nStart it when that is solved, {ON_SERVER}: systemctl restart {self.configuration.name}. "
                f"Then type {self.configuration.program} backup --full"
            )

    def exchange_again(self, state: dict[str, Any]) -> None:
        """Take back an exchange whose former database does not start."""
        self.systemctl("stop")
        exchange_folders(self.data, Path(state["undoing"]["kept"]), Path(state["kept"]))
        self.systemctl("start")
        self.state.replace({name: value for name, value in state.items() if name != "undoing"})
        if state["undoing"]["was_running"]:
            self.host.boot()

    def note_gaps(self, spans: list[list[float]]) -> None:
        State(self.configuration, "gaps").replace({"gaps": spans[-GAPS:]})

    def begin_timeline(self) -> None:
        """Have the former database recover to its own end, from where it writes a timeline of its own.

        On the old one, pgBackRest takes its segments for older than those of the restored database, and expires them.
        """
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write("".join(f"recovery_target{kind} = ''\n" for kind in ("", "_lsn", "_name", "_time", "_xid")))
            file.write("recovery_target_timeline = 'current'\n")
            file.write(f"restore_command = 'pgbackrest --stanza={self.configuration.name} archive-get %f \"%p\"'\n")
        signal = self.data / "recovery.signal"
        signal.touch(mode=0o600)
        shutil.chown(signal, ACCOUNT, ACCOUNT)

    def at_boot(self, action: str) -> None:
        """Have the application start at boot, or not: after a kill and a reboot its database may not be complete."""
        if self.has_application:
            call(["systemctl", action, "--quiet", f"{self.configuration.name}.service"], seconds=60)

    def systemctl(self, action: str, *options: str) -> None:
        call(["systemctl", action, *options, self.configuration.service], seconds=SERVICE_SECONDS)

    # -- uploads

    def restore_folders(self, moment: float) -> None:
        """Restore uploads that are missing. What is there stays: files without rows are harmless, and may be newer."""
        snapshot = snapshot_for(self.configuration, moment)
        if snapshot is None:
            say(f"There is no copy of the uploads at {self.configuration.target}.")
            return
        restic = Restic(self.configuration)
        restored = missing = 0
        for folder in map(Path, self.configuration.folders):
            if str(folder) not in snapshot["paths"]:
                continue
            beside = folder.with_name(f".{folder.name}.restored")
            shutil.rmtree(beside, ignore_errors=True)
            try:
                restic.call("restore", snapshot["id"], f"--target={beside}", f"--include={folder}", seconds=24 * 3600)
                found, added = merge(beside / str(folder).lstrip("/"), folder)
                restored, missing = restored + found, missing + added
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        say(
            f"Uploads as they were at {snapshot['time'][:19]}: {missing} of {restored} files were missing, and "
            f"are restored."
        )

    # -- the application

    def start(self) -> None:
        """Complete the database, and start the application, beat last."""
        self.complete()
        Exchange(self.host).start()

    def complete(self) -> None:
        """Apply the migrations that the restored database lacks, and park what waits in queues."""
        if not self.release:
            return
        if applied := apply_pending(self.host, self.release):
            say(f"Applied migrations of {self.release} that the database lacked: {', '.join(applied[:5])}.")
        self.park_waiting()

    def park_waiting(self) -> None:
        if not self.host.settings.celery_app:
            return
        application = Application(self.host, self.release)
        try:
            parked = application.ask("park_waiting", self.host.settings.celery_app, PARKED_BECAUSE)
        finally:
            application.close()
        if parked:
            names = ", ".join(f"{name} {count}" for name, count in list(parked.items())[:8])
            say(
                f"Parked {sum(parked.values())} tasks that waited, since their rows may be missing: {names}. "
                f"See them, requeue or drop them, {ON_SERVER}: {self.configuration.program} tasks parked list"
            )

    # -- the end

    def back_up_again(self) -> None:
        """Begin a new history: until then no later moment can be restored."""
        try:
            back_up_database(self.configuration, full=True)
            if self.configuration.target:
                send(self.configuration)
            else:
                copy_log(self.configuration)
        except ReleaseError as error:
            command = f"{self.configuration.program} backup --full"
            say(f"The restored database has no backup yet: {error}\nType, {ON_SERVER}: {command}")

    def way_back(self) -> str:
        return f"To return to the former database{self.how_to_return}"

    @property
    def how_to_return(self) -> str:
        """Return where to type what returns to the former database: the end of a sentence."""
        if self.host.settings.barriers:
            return f": {UNDO_PLAYBOOK}"
        return f", {ON_SERVER}: {self.configuration.program} backup restore --undo"

    def report(self, point: Point) -> None:
        lost = time.time() - point.seconds
        first = f"Restored the database as it was at {point.at} ({lost:.0f} s ago)."
        say("\n".join([first, *self.describe_kept("former")]))

    def describe_kept(self, name: str) -> list[str]:
        """Return where the database is that is not in use, how large, and how to return to it and to remove it."""
        state = self.state.read()
        kept = Path(state["kept"])
        if not kept.exists():
            return []
        size = sum(path.lstat().st_blocks * 512 for path in kept.rglob("*"))
        # The repository of before, which a restore from the target has replaced.
        folders = [folder for folder in (kept, state.get("repository")) if folder and Path(folder).exists()]
        return [
            f"The {name} database is in {kept} ({size / 1e6:.0f} MB).",
            f"To return to it{self.how_to_return}",
            f"To remove it, when all is well, {ON_SERVER}: rm -r {' '.join(map(str, folders))}",
        ]


def require_room(folder: Path, needed: float) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ReleaseError(
            f"There is no room in {folder}: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free."
        )


def before(folder: Path) -> Path:
    """Return the name under which a folder is kept that is replaced now."""
    return folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")


def move(source: Path, target: Path) -> None:
    """Rename a folder. Where that is not possible (another disk, a layer of a container) copy it.

    When this is killed, the target is complete if it exists.
    """
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    copy = target.with_name(f".{target.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    call(["cp", "--archive", "--no-target-directory", str(source), str(copy)], seconds=24 * 3600)
    copy.rename(target)
    remove(source)


def remove(folder: Path) -> None:
    """Remove a folder, under another name first: it is never there in part."""
    gone = folder.with_name(f".{folder.name}.removed")
    clear(gone)
    try:
        folder.rename(gone)
    except OSError:
        gone = folder
    clear(gone)


def replace_folder(folder: Path, kept: Path) -> None:
    """Replace a folder by a kept one."""
    remove(folder)
    move(kept, folder)


def exchange_folders(present: Path, former: Path, kept: Path) -> None:
    """Keep the present folder, and replace it by the former one. It continues where one that was killed has ended."""
    if former.exists():
        if not kept.exists():
            move(present, kept)
        replace_folder(present, former)


def move_file(source: Path, target: Path) -> None:
    """Rename a file; where the target is on another disk, copy it with its owner."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}.restored")
        shutil.copy2(source, copy, follow_symlinks=False)
        state = source.lstat()
        os.chown(copy, state.st_uid, state.st_gid, follow_symlinks=False)
        copy.rename(target)


def merge(source: Path, target: Path) -> tuple[int, int]:
    """Move the files that `target` lacks out of `source`; return how many there are, and were missing."""
    found = added = 0
    if not source.is_dir():
        return 0, 0
    for folder, folders, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        # The application owns it: a link may lead to any place of this host.
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            folders.clear()
            continue
        if not place.exists():
            place.mkdir()
            shutil.copystat(folder, place)
            state = Path(folder).stat()
            os.chown(place, state.st_uid, state.st_gid)
        for name in names:
            found += 1
            if not os.path.lexists(place / name):
                move_file(Path(folder) / name, place / name)
                added += 1
    return found, added
