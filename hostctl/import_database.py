"""Import a dump of another server, and exchange the application's database for it.

The dump is restored into a new database, by the owner of the application's tables, while the application runs. Then the
application stops, the databases exchange their names, the migrations of the live release are applied, and the
application starts. A failure at any point leaves, or brings back, what was there before.
"""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .application import Application
from .database import Database, size
from .database_server import DatabaseServer, Names
from .deploy.record import Record
from .deploy.verify import cause_lines, silent_workers
from .dump_file import ARCHIVE, DumpFile
from .dump_filter import DumpFilter
from .host import Host
from .in_app.migrations import split_unknown
from .settings import ReleaseError, read_environment, say, tail
from .status import problems

LOCAL = ("", "localhost", "127.0.0.1", "::1")
# An archive is compressed; its rows take about so many times as much.
UNPACKED = 4
# Shown of the tables, those with most rows first.
SHOWN_TABLES = 8
# The versions of psql whose \restrict refuses every other command of psql.
RESTRICT_SINCE = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}


def run(host: Host, options: Namespace) -> int:
    """Import the dump, or with `--return` exchange the present database for a kept one. Returns the exit status."""
    record = Record(host.settings)
    with cancellable("import"):
        record.hold()
        try:
            if state := record.unfinished():
                raise ReleaseError(
                    f"The {state['action']} of {state['release']} was killed. Run it again, which completes or "
                    "reverts it."
                )
            if options.kept:
                Exchange(host).swap_kept(options.kept)
            else:
                Import(host, options.file, replace=options.replace).run()
        except CancelledError as error:
            raise ReleaseError(str(error)) from None
        finally:
            record.release()
    return 0


class CancelledError(BaseException):
    """A person or the host has told this program to end: nothing but the end of a command handles it."""


@contextmanager
def cancellable(what: str) -> Iterator[None]:
    """Survive a lost connection, and turn the first signal to end into an error."""

    def cancel_once(number: int, frame: FrameType | None) -> None:
        defer_signals()
        raise CancelledError(f"The {what} was cancelled.")

    kept = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cancel_once)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def defer_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Exchange:
    """Exchange the application's database for another one of the same server."""

    def __init__(self, host: Host, server: DatabaseServer | None = None) -> None:
        self.host = host
        self.settings = host.settings
        self.release = host.current_release()
        self.program = f"{self.settings.name}ctl"
        self.database = Database(self.settings, environment(host, self.release), say)
        self.names = self.local_names()
        self.server = server or DatabaseServer(self.database, self.names)
        self.kept = f"{self.names.database}_before_{time.strftime('%Y%m%d_%H%M%S')}"
        self.migrated: list[str] = []
        self.is_running = False

    def local_names(self) -> Names:
        """Return the names of the database. Raises ReleaseError unless it is the one that Seedbed made on this host."""
        connection = self.database.connection
        name, owner = connection.get("PGDATABASE", ""), connection.get("PGUSER", "")
        place = connection.get("PGHOST", "")
        is_local = place in LOCAL or place.startswith("/")
        if not connection or not is_local or owner != f"{self.settings.name}_owner":
            raise ReleaseError(
                "The application's database is not one that Seedbed has on this host: its address is "
                f"{place or 'not one of PostgreSQL'}, its owner {owner or 'unknown'} (app_database_url?). Restore the "
                f"dump there, into an empty database, as the role that owns it: {BY_HAND}"
            )
        if self.settings.barriers:
            raise ReleaseError(
                "The application runs on several hosts, and this command stops the processes of one. Stop them on all "
                f"(systemctl stop {self.settings.name}), restore into an empty database {name} as postgres: {BY_HAND} "
                f"--role={owner}, and start them again."
            )
        return Names(name, owner, self.settings.name)

    def swap_kept(self, kept: str) -> None:
        """Exchange the present database for one that an import has kept."""
        found = self.server.databases()
        if kept not in found or not kept.startswith(f"{self.names.database}_before_"):
            available = [name for name in found if name.startswith(f"{self.names.database}_before_")]
            raise ReleaseError(f"There is no kept database {kept}; available: {', '.join(available) or 'none'}.")
        self.switch(kept, migrate=False)
        self.describe_kept()

    def describe_kept(self) -> None:
        self.server.comment(self.kept, f"The database of {self.settings.name} until {time.strftime('%F %T %Z')}")
        say(
            f"The previous database is kept as {self.kept}.\n"
            f"  To return to it:  {self.program} import-database --return {self.kept}\n"
            f"  To remove it:     runuser -u postgres -- dropdb {self.kept}"
        )

    # -- the exchange

    def switch(self, new: str, *, migrate: bool) -> None:
        """Stop the application, rename the databases, migrate, and start what ran; on a failure, revert that."""
        self.is_running = bool(self.host.manager.alive())
        try:
            if self.is_running:
                say("Stopping the application: workers finish their tasks first.")
                self.halt()
            self.server.rename(present=self.names.database, new=new, aside=self.kept)
            say(f"The database {self.names.database} is now the imported one." if migrate else f"{new} is in use.")
            if migrate and self.release:
                self.migrate()
            if self.is_running:
                self.start()
        except BaseException:
            defer_signals()
            self.revert(new)
            raise

    def revert(self, new: str) -> None:
        """Rename the databases back, and start what ran; a failure of that is printed."""
        renamed = False
        try:
            # Also after a signal, which may have come after the server had renamed them.
            renamed = self.kept in self.server.databases()
            if renamed:
                # Sessions of what cannot be stopped are ended.
                with suppress(ReleaseError):
                    self.halt()
                self.server.rename(present=self.names.database, new=self.kept, aside=new)
                renamed = False
            if self.is_running:
                self.host.boot()
        except ReleaseError as problem:
            back = f"{self.program} import-database --return {self.kept}; " if renamed else ""
            say(
                f"The revert failed, too: {problem}\nThe former database is "
                f"{self.kept if renamed else self.names.database}. Type: {back}systemctl restart {self.settings.name}"
            )
            return
        say("The database is the former one again" + (", and the application starts." if self.is_running else "."))

    def halt(self) -> None:
        self.host.cron.stop()
        self.host.halt()

    def start(self) -> None:
        """Start the live release. Raises ReleaseError when its pages and workers do not answer in time."""
        self.host.boot()
        seconds = self.settings.health_check_timeout
        deadline = time.monotonic() + seconds
        while (found := problems(self.host)) and time.monotonic() < deadline:
            time.sleep(0.5)
        lines = {one["process"]: one["text"] for one in found} or silent_workers(self.host, seconds)
        if lines:
            texts = [f"{process}: {text}" for process, text in lines.items()]
            raise ReleaseError(
                "\n".join(["The application does not run:", *texts, *cause_lines(self.host, list(lines))])
            )
        say("The application runs.")

    def migrate(self) -> None:
        """Apply the migrations of the live release that the imported database lacks."""
        self.migrated = apply_pending(self.host, self.release)


class Import(Exchange):
    """Import one dump."""

    def __init__(self, host: Host, path: Path, *, replace: bool = False, server: DatabaseServer | None = None) -> None:
        self.dump = DumpFile(path)
        super().__init__(host, server)
        self.replace = replace
        self.new = f"{self.names.database}_import"

    def run(self) -> None:
        """Import the dump. Raises ReleaseError; the database and the application are then as before."""
        found = self.dump.inspect(self.database)
        lost = self.refuse(found)
        self.server.drop_unfinished(self.new)
        if self.new in self.server.databases():
            raise ReleaseError(
                f"A database {self.new} exists. Remove it first: runuser -u postgres -- dropdb {self.new}"
            )
        try:
            self.restore(found)
            rows = self.server.rows(self.new)
            self.refuse_newer()
            self.switch(self.new, migrate=True)
        except BaseException:
            defer_signals()
            self.server.drop_unfinished(self.new)
            raise
        self.report(rows, found)
        if lost:
            self.describe_kept()
        else:
            # It had no rows.
            self.server.run('DROP DATABASE :"name" WITH (FORCE)', name=self.kept)
        self.server.run('COMMENT ON DATABASE :"name" IS NULL', name=self.names.database)
        say(self.next_step())

    # -- before anything changes

    def refuse(self, found: DumpFilter) -> dict[str, int]:
        """Raise ReleaseError when the import cannot succeed, or would replace rows; return the tables with rows."""
        self.require_own_database()
        self.require_extensions(found)
        self.require_space(found)
        lost = {name: rows for name, rows in self.server.rows(self.names.database).items() if rows}
        if lost and not self.replace:
            raise ReleaseError(
                f"The database {self.names.database} has rows: {table_list(lost)}. The dump would replace all of them. "
                f"To do so, add -e import_replace=true to the playbook, or --replace to {self.program}; the present "
                "database is then kept under another name."
            )
        return lost

    def require_own_database(self) -> None:
        try:
            found = self.server.databases()
        except ReleaseError as error:
            raise ReleaseError(f"PostgreSQL of this host does not answer to its superuser: {error}") from None
        present = found.get(self.names.database)
        if not present or present["owner"] != self.names.owner:
            raise ReleaseError(
                f"PostgreSQL of this host has no database {self.names.database} of {self.names.owner}. "
                "Run playbooks/provision.yml, which creates it, or see app_database_url."
            )

    def require_extensions(self, found: DumpFilter) -> None:
        allowed = self.server.extensions(self.names.database) | self.server.trusted_extensions()
        if missing := [name for name in found.extensions if name not in allowed]:
            raise ReleaseError(
                f"The dump needs the extension {', '.join(missing)}: add it to app_database_extensions in "
                "group_vars/ENV/app.yml, run playbooks/provision.yml, then import again."
            )

    def require_space(self, found: DumpFilter) -> None:
        needed = self.dump.path.stat().st_size * UNPACKED if self.dump.kind == ARCHIVE else found.size
        folder, free = self.server.free_space()
        if free < needed * 1.5:
            raise ReleaseError(
                f"The rows of the dump take about {size(needed * 1.5)} in {folder}; there are {size(free)}. Free some."
            )

    def refuse_newer(self) -> None:
        """Raise ReleaseError when the dump has migrations that the live release lacks."""
        owner = self.owner_of_new()
        if not self.release or not owner.ask(HAS_MIGRATIONS):
            return
        rows = owner.ask("SELECT app, name FROM public.django_migrations ORDER BY id")
        application = Application(self.host, self.release)
        try:
            state = application.ask("migrations", [])["default"]
        finally:
            application.close()
        known = {tuple(name.split(".", 1)) for name in state["known"]}
        applied = [(row["app"], row["name"]) for row in rows]
        unknown, _ = split_unknown(applied, known, {app for app, _ in known})
        if unknown:
            raise ReleaseError(
                f"The dump has migrations that release {self.release} lacks: {', '.join(unknown[:5])}. Deploy a "
                "release that has them, then import again."
            )

    # -- restore

    def restore(self, found: DumpFilter) -> None:
        """Restore the dump into a new database, as the owner."""
        say(f"Restoring {self.dump.path} into the database {self.new}.")
        began = time.monotonic()
        self.server.create(self.new)
        self.create_extensions(found)
        owner = self.owner_of_new()
        schemas = {"public", *found.extensions.values()}
        left_out = DumpFilter(self.server.settings(), schemas)
        with self.dump.lines(owner) as lines:
            feed(owner, left_out.filter(lines), self.dump.kind)
        found.left_out = left_out.left_out
        self.server.grant(self.new)
        feed(owner, iter([b"ANALYZE;\n"]), ARCHIVE)
        say(f"Restored in {time.monotonic() - began:.0f} s.")

    def owner_of_new(self) -> Database:
        """Return the new database as its owner sees it: the superuser must not read what a dump has defined."""
        owner = Database(self.settings, environment(self.host, self.release), say)
        owner.connection["PGDATABASE"] = self.new
        return owner

    def create_extensions(self, found: DumpFilter) -> None:
        """Create those of the dump, and those that the present database has (app_database_extensions)."""
        present = self.server.extensions(self.names.database)
        schemas = found.extensions | {name: "public" for name in sorted(present) if name not in found.extensions}
        for name, schema in schemas.items():
            if name != "plpgsql":
                self.server.create_extension(self.new, name, schema, by_owner=name not in present)

    # -- the end

    def report(self, rows: dict[str, int], found: DumpFilter) -> None:
        say(f"Imported {sum(rows.values()):,} rows in {len(rows)} tables: {table_list(rows)}.")
        if found.left_out:
            kinds = ", ".join(f"{count} {name}" for name, count in found.left_out.most_common())
            say(f"Left out of the dump: {kinds}. Every object belongs to {self.names.owner}.")
        if self.release:
            names = ", ".join(self.migrated) if len(self.migrated) <= 10 else f"{len(self.migrated)} migrations"
            say(f"Migrations of release {self.release} that were applied: {names or 'none was pending'}.")

    def next_step(self) -> str:
        if not self.release:
            return "Next: deploy. The first release applies its migrations to these tables."
        clear = "from django.core.cache import cache; cache.clear()"
        text = f'Next: empty the cache, which is about the former rows: {self.program} manage shell -c "{clear}"'
        return text if self.is_running else f"{text}\nThe application did not run: systemctl start {self.settings.name}"


BY_HAND = "pg_restore --no-owner --no-privileges --exit-on-error --dbname=DATABASE FILE"
HAS_MIGRATIONS = "SELECT 1 AS here WHERE to_regclass('public.django_migrations') IS NOT NULL"


def environment(host: Host, release: str) -> dict[str, str]:
    """Return the environment of the owner's commands: of the live release, or before the first one of the next."""
    if release:
        return Application(host, release).environment(owner=True)
    folder, found = host.settings.next_configuration, {}
    for file in (folder / "app.env", folder / "migrate.env"):
        try:
            found |= read_environment(file)
        except FileNotFoundError:
            raise ReleaseError(f"{file} is missing: run playbooks/provision.yml, which writes it.") from None
    return found


def apply_pending(host: Host, release: str) -> list[str]:
    """Apply the migrations of a release that its database lacks; return them. Raises ReleaseError."""
    application = Application(host, release)
    try:
        found = application.ask("migrations", [])["default"]
    finally:
        application.close()
    if found["pending"]:
        Database(host.settings, environment(host, release), say).migrate(
            application.manage, found["pending"], found["not_atomic"], found["concurrent"]
        )
    return found["pending"]


def table_list(rows: dict[str, int]) -> str:
    """Name the tables with most rows, as `shop_order 1,234, …`."""
    largest = sorted((name for name in rows if rows[name]), key=lambda name: -rows[name])
    texts = [f"{name} {rows[name]:,}" for name in largest[:SHOWN_TABLES]]
    more = len(largest) - SHOWN_TABLES
    return ", ".join([*texts, *([f"and {more} more"] if more > 0 else [])]) or "no rows"


def feed(owner: Database, chunks: Iterator[bytes], kind: str) -> None:
    """Have psql run SQL as the owner, up to the first error. Raises ReleaseError with that."""
    flags = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
    with tempfile.TemporaryFile("w+") as errors:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": errors}
        called = owner.call("psql", *flags, **streams)
        called["env"]["PGOPTIONS"] = f"{owner.options} -c statement_timeout=0 -c client_min_messages=warning".strip()
        process = subprocess.Popen(**called)
        first = restrict(owner)
        try:
            process.stdin.write(first)
            for chunk in chunks:
                process.stdin.write(chunk)
            process.stdin.flush()
        except BrokenPipeError:
            # It has stopped at an error.
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            raise ReleaseError(
                f"The dump cannot be restored: {psql_error(errors.read(), len(first.splitlines()), kind)}"
            )


def restrict(owner: Database) -> bytes:
    r"""Return the line that has psql refuse commands such as `\!`, where psql is new enough; the filter does, too."""
    called = owner.call("psql", "--version", stdout=subprocess.PIPE, text=True)
    found = re.search(r"(\d+)\.(\d+)", subprocess.run(**called, check=False).stdout)
    if not found or int(found[2]) < RESTRICT_SINCE.get(int(found[1]), 0 if int(found[1]) > 17 else 999):
        return b""
    return f"\\restrict {secrets.token_hex(16)}\n".encode()


def psql_error(text: str, skipped: int, kind: str) -> str:
    """Return psql's error with the line of a plain dump that it is about."""

    def line(found: re.Match[str]) -> str:
        return "" if kind == ARCHIVE else f"line {int(found[1]) - skipped}: "

    return tail(re.sub(r"^psql:<stdin>:(\d+): ", line, text, flags=re.M), 8)
