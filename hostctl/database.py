"""Dump the application's database, and apply its migrations.

PostgreSQL's client programs run as the application's user, who has the password anyway, and get it only from their
environment: from DATABASE_URL as the release's own commands see it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .settings import ReleaseError, Settings, tail

SCHEMES = {"postgres", "postgresql", "postgis", "pgsql", "psql", "timescale", "timescalegis"}
PARAMETERS = {
    name: f"PG{name.upper().replace('_', '')}"
    for name in ("host", "sslmode", "sslrootcert", "sslcert", "sslkey", "options", "target_session_attrs")
} | {"connect_timeout": "PGCONNECT_TIMEOUT", "channel_binding": "PGCHANNELBINDING"}

# Every query on a table waits behind a migration that waits for its lock. A longer wait uses up a small site's threads.
LOCK_TIMEOUT = "1s"
# CREATE INDEX CONCURRENTLY waits for open transactions, and blocks no query.
PATIENT_LOCK_TIMEOUT = "30min"
# How Django reports it with psycopg 3 and 2, in any language of the server.
LOCK_FAILURE = re.compile(r"LockNotAvailable|55P03|due to lock timeout")


def connection_variables(url: str) -> dict[str, str]:
    """Return the PG* variables that connect PostgreSQL's programs to a URL; {} for another kind of database."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] not in SCHEMES:
        return {}
    account, _, place = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    # Not parts.hostname, which is lowercase: it may be the folder of a socket.
    host, port = re.fullmatch(r"(\[[^]]*\]|[^:]*):?(\d*)", place).groups() if place.count(",") == 0 else (place, "")
    found = {
        "PGHOST": unquote(host.strip("[]")),
        "PGPORT": port,
        "PGUSER": unquote(user),
        "PGPASSWORD": unquote(password),
        "PGDATABASE": unquote(parts.path.lstrip("/")),
    }
    given = dict(parse_qsl(parts.query))
    if given.get("ssl_require", "").lower() in ("1", "true"):
        found["PGSSLMODE"] = "require"
    found |= {PARAMETERS[name]: value for name, value in given.items() if name in PARAMETERS}
    return {"PGCONNECT_TIMEOUT": "10"} | {name: value for name, value in found.items() if value}


# How PostgreSQL refuses the owner of the database what only the owner of a table may do.
FOREIGN_OWNER = re.compile(
    r"permission denied for (?:table|sequence|schema|view|materialized view|relation)"
    r"|must be owner of (?!extension|database|event trigger)"
)


class Database:
    """The database at DATABASE_URL of `environment`, which is the owner's; `say` prints progress."""

    programs = Path("/usr/bin")
    lock_wait = 5.0  # seconds that the session of a killed deployment gets to end
    delays = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds between attempts

    def __init__(self, settings: Settings, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        url = environment.get("DATABASE_URL", "")
        self.kind = urlsplit(url).scheme
        self.connection = connection_variables(url)
        self.options = environment.get("PGOPTIONS", "")

    # -- PostgreSQL's programs

    def call(self, program: str, *arguments: str, **more: Any) -> dict[str, Any]:
        """Return the arguments of subprocess.run for one of PostgreSQL's programs.

        Raises ReleaseError, naming the package, when it is not installed.
        """
        if not (self.programs / program).exists():
            raise ReleaseError(
                f"{program} is not on this host. Install PostgreSQL's client programs: apt install postgresql-client."
            )
        variables = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGAPPNAME": f"{self.settings.name}ctl"}
        options = f"{self.connection.get('PGOPTIONS', self.options)} -c statement_timeout=30s".strip()
        variables |= self.connection | {"PGOPTIONS": options}
        name = self.settings.name
        account = {"user": name, "group": name, "extra_groups": []} if os.geteuid() == 0 else {}
        command = [str(self.programs / program), *arguments]
        return {"args": command, "env": variables, "cwd": "/", "stdin": subprocess.DEVNULL, **account, **more}

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        session = Session(self)
        try:
            return session.ask(sql)
        finally:
            session.close()

    # -- dump

    def snapshot(self, path: Path, keep: int = 5) -> Path | None:
        """Dump the database to `path`, with a number added when an earlier attempt's dump is there; keep `keep` dumps.

        Returns the path of the dump, or None when the database is not PostgreSQL. Raises ReleaseError when there is no
        dump that pg_restore can read.
        """
        if not self.connection:
            self.say(
                f"Database not dumped: DATABASE_URL is {self.kind or 'not set'}, and only PostgreSQL is supported."
            )
            return None
        began = time.monotonic()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refuse_early(path.parent)
        for left in path.parent.glob("before-*.new"):
            left.unlink()
        new = path.with_name(f"{path.name}.new")
        handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            dump = self.call("pg_dump", "--format=custom", "--no-password", "--lock-wait-timeout=30s", stdout=handle)
            self.must(dump, "pg_dump")
            os.fsync(handle)
            self.verify(new)
            final = free_name(path)
            new.rename(final)
        finally:
            os.close(handle)
            new.unlink(missing_ok=True)
        sync_folder(path.parent)
        self.prune(path.parent, keep)
        self.say(f"Database dumped to {final} ({size(final.stat().st_size)}, {time.monotonic() - began:.1f} s).")
        return final

    def refuse_early(self, folder: Path) -> None:
        """Raise ReleaseError when a dump cannot succeed."""
        called = self.call("pg_dump", "--version", stdout=subprocess.PIPE, text=True)
        version = int(re.search(r"(\d+)", subprocess.run(**called, check=True).stdout)[1])
        [facts] = self.ask(
            "SELECT pg_database_size(current_database()) AS size, "
            "current_setting('server_version_num')::int / 10000 AS version"
        )
        if facts["version"] > version:
            raise ReleaseError(
                f"the server is PostgreSQL {facts['version']}, and pg_dump is {version}, which cannot dump it. "
                f"Install the package postgresql-client-{facts['version']}, or set app_dump_before_migrate: false."
            )
        free = shutil.disk_usage(folder).free
        if free < 2 * facts["size"]:
            raise ReleaseError(
                f"a dump of the database ({size(facts['size'])}) requires {size(2 * facts['size'])} free in {folder}; "
                f"there are {size(free)}. Free some, or set app_dump_before_migrate: false and make a backup yourself."
            )

    def verify(self, dump: Path) -> None:
        with dump.open("rb") as file:
            called = self.call("pg_restore", "--list", stdin=file, stdout=subprocess.PIPE)
            if b"\n" not in self.must(called, "Reading the dump with pg_restore"):
                raise ReleaseError("the dump is empty. Nothing was migrated.")

    def must(self, called: dict[str, Any], what: str) -> bytes:
        done = subprocess.run(**called, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            reason = tail(done.stderr.decode(errors="replace"))
            if hint := self.foreign_owners(reason):
                raise ReleaseError(f"{what} failed, so nothing was migrated:\n{reason}\n{hint}", cause=hint)
            raise ReleaseError(
                f"{what} failed, so nothing was migrated (app_dump_before_migrate: false skips the dump):\n{reason}"
            )
        return done.stdout or b""

    def prune(self, folder: Path, keep: int) -> None:
        dumps = sorted(folder.glob("before-*.dump"), key=lambda dump: dump.stat().st_mtime_ns, reverse=True)
        for dump in dumps[keep:]:
            dump.unlink()

    def foreign_owners(self, reason: str) -> str:
        """Return what to do when the owner may not read or change a table, as after a restore by hand; else "".

        Only for the first database on this host, which import-database replaces.
        """
        name, owner = self.connection.get("PGDATABASE", ""), self.connection.get("PGUSER", "")
        place = self.connection.get("PGHOST", "")
        is_first = (name, owner) == (self.settings.name, f"{self.settings.name}_owner")
        is_here = place in ("", "localhost", "127.0.0.1", "::1") or place.startswith("/")
        if not FOREIGN_OWNER.search(reason) or not is_first or not is_here:
            return ""
        program, folder = f"{self.settings.name}ctl", f"/var/backups/{name}"
        dump = f"{folder}/owners.dump"
        return (
            f"Tables of the database {name} do not belong to its owner {owner}, as after a restore by hand. To give it "
            f"all of them, on the server as root: install -d -m 0700 {folder} && (cd / && runuser -u postgres -- "
            f"pg_dump -Fc {name}) >{dump} && {program} import-database {dump} --replace && rm {dump}"
        )

    # -- migrations

    def migrate(
        self,
        manage: Callable[..., str],
        pending: list[str],
        not_atomic: Collection[str] = (),
        concurrent: Collection[str] = (),
    ) -> None:
        """Apply pending migrations, while no other migration of this application runs.

        `manage` is called like manage("migrate", "--noinput", environment={...}, stop=EVENT), ends when the event is
        set, and raises ReleaseError with the output; the names are those of in_app/migrations.py. Raises ReleaseError,
        saying what was applied nevertheless.
        """
        if not self.connection:
            manage("migrate", "--noinput", environment={}, stop=None)
            return
        plan = Plan(pending, not_atomic, concurrent)
        session = Session(self)
        try:
            self.take_lock(session)
            for portion in plan.portions:
                self.apply(session, manage, plan, portion)
        finally:
            session.close()

    def take_lock(self, session: Session) -> None:
        """Take the advisory lock of this application's migrations for as long as the session lives."""
        deadline = time.monotonic() + self.lock_wait
        while True:
            [answer] = session.ask(f"SELECT pg_try_advisory_lock({self.key}) AS taken")
            # The lock of a killed deployment is free, but its manage.py may still run.
            others = session.ask(
                f"""SELECT pid, usename AS user, application_name AS application, client_addr AS address,
                           extract(epoch FROM clock_timestamp() - backend_start)::int AS seconds
                      FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()
                       AND (application_name = '{self.application}' OR pid IN
                            (SELECT pid FROM pg_locks
                              WHERE locktype = 'advisory' AND granted AND objsubid = 1
                                AND (classid::bigint << 32 | objid::bigint) = {self.key}))"""
            )
            if answer["taken"] and not others:
                return
            if time.monotonic() > deadline:
                holders = "; ".join(
                    f"process {other['pid']} (user {other['user']}, {other['application'] or 'no name'}, "
                    f"from {other['address'] or 'this host'}, for {other['seconds']} s)"
                    for other in others
                )
                raise ReleaseError(
                    f"another migration of this database is running: {holders or 'it has just ended'}. Wait until it "
                    "has ended, or end it with SELECT pg_terminate_backend(...), then deploy again."
                )
            time.sleep(0.25)

    @property
    def key(self) -> int:
        """Return the key of this application's advisory lock, a signed 64-bit number."""
        digest = hashlib.sha256(f"{self.settings.name}: migrations".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)

    @property
    def application(self) -> str:
        """Return the application_name of migrating sessions."""
        return f"{self.settings.name}-migrate"

    def apply(self, session: Session, manage: Callable[..., str], plan: Plan, portion: list[str]) -> None:
        """Run one `migrate` command; retry when it failed only for lack of a lock."""
        timeout = PATIENT_LOCK_TIMEOUT if portion[0] in plan.concurrent else LOCK_TIMEOUT
        environment = {
            "PGOPTIONS": f"{self.options} -c lock_timeout={timeout}".strip(),
            "PGAPPNAME": self.application,
        }
        target = portion[0].split(".", 1) if portion != plan.pending else []
        left = portion
        for delay in (*self.delays, None):
            names = ", ".join(left) if len(left) <= 10 else f"{len(left)} migrations"
            self.say(f"Migrating: {names or 'signal handlers'}.")
            began = time.monotonic()
            watch = Watch(self, session, lambda: plan.is_reverted(first_left(session, portion)))
            try:
                with watch:
                    manage("migrate", *target, "--noinput", environment=environment, stop=watch.abort)
            except ReleaseError as error:
                done = applied(self)
                left = [name for name in portion if name not in done]
                if watch.aborted:
                    raise ReleaseError(plan.failure(left, done, watch.aborted, "")) from None
                held = lock_problem(str(error), watch.blockers, timeout)
                if not held or delay is None or (left and left[0] in plan.not_atomic):
                    hint = self.foreign_owners(str(error))
                    text = plan.failure(left, done, held, tail(str(error)))
                    raise ReleaseError(f"{text}\n{hint}".rstrip(), cause=hint) from None
                self.say(f"{left[0] if left else 'Signal handlers'}: {held} Next attempt in {delay:.0f} s.")
                time.sleep(delay)
            else:
                self.say(f"Applied in {time.monotonic() - began:.1f} s.")
                return


@dataclass(frozen=True)
class Plan:
    """Pending migrations in order, with the names of in_app/migrations.py."""

    pending: list[str]
    not_atomic: Collection[str] = ()
    concurrent: Collection[str] = ()

    @property
    def portions(self) -> list[list[str]]:
        """Return the migrations of each command: all in one, unless some may wait longer for a lock than others."""
        if set(self.pending) & set(self.concurrent):
            return [[name] for name in self.pending]
        return [self.pending] if self.pending else []

    def is_reverted(self, name: str) -> bool:
        """Return whether a migration that is aborted leaves nothing behind."""
        return bool(name) and name not in self.not_atomic

    def failure(self, left: list[str], done: Collection[str], held: str, output: str) -> str:
        """Explain why the first of `left` failed (on the lock in `held`, or with `output`) and what state it left."""
        if not left:
            return f"every migration is applied, but a signal handler after them failed: {held}\n{output}"
        before = [name for name in self.pending if name in done]
        lines = [f"migration {left[0]} failed{f': {held}' if held else '.'}"]
        lines.append(f"Applied before it: {', '.join(before)}." if before else "No migration was applied before it.")
        if left[0] in self.concurrent:
            lines.append("It may have left an invalid index, which \\d TABLE in psql shows: drop that first.")
        elif left[0] in self.not_atomic:
            lines.append("It is not atomic: what it did before the failure stays.")
        else:
            lines.append("It was rolled back.")
        return "\n".join(lines if held else [*lines, output])


def lock_problem(output: str, blockers: list[dict[str, Any]], timeout: str) -> str:
    """Explain which session blocked a migration and what to do; "" when it failed for another reason."""
    if not LOCK_FAILURE.search(output):
        return ""
    if not blockers:
        return f"no lock within {timeout}; the blocking session is unknown."
    table = f" on {blockers[0]['relation']}" if blockers[0]["relation"] else ""
    return (
        f"no lock{table} within {timeout}, because of {'; '.join(describe(blocker) for blocker in blockers)}. "
        f"Wait until that is over, or end it in psql: SELECT pg_terminate_backend({blockers[0]['pid']});"
    )


def describe(blocker: dict[str, Any]) -> str:
    """Describe a blocking session, as far as this role may see it."""
    words = [f"user {blocker['user']}", blocker["application"] or blocker["kind"] or "no name"]
    if blocker["seconds"] is not None:
        words.append(f"in a transaction for {blocker['seconds']} s")
    if blocker["state"] and blocker["state"] != "active":
        words.append(blocker["state"])
    return f"process {blocker['pid']} ({', '.join(words)}: {blocker['query']})"


class Session:
    """A psql that stays connected: its locks last until it is closed, or this program ends."""

    def __init__(self, database: Database) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(**database.call("psql", *flags, **streams, text=True))

    def ask(self, sql: str) -> list[dict[str, Any]]:
        try:
            self.process.stdin.write(f"SELECT coalesce(jsonb_agg(answer), '[]') FROM ({sql}) AS answer;\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise ReleaseError(f"the database does not answer as expected:\n{tail(self.errors.read())}")
        return json.loads(line)

    def close(self) -> None:
        try:
            self.process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Watch:
    """Watch a migration: which sessions block it, and which wait behind it.

    Once it has given up, its blockers can no longer be found. When requests and tasks wait for it for longer than
    migration_block_seconds, its session is ended and `abort` is set; `aborted` then says why.
    """

    interval = 0.2  # seconds
    patience = 1.0  # seconds that sessions may wait before that is said

    def __init__(self, database: Database, session: Session, is_reverted: Callable[[], bool]) -> None:
        self.session = session
        self.say = database.say
        self.limit = database.settings.migration_block_seconds
        self.is_reverted = is_reverted
        self.blockers: list[dict[str, Any]] = []
        self.abort = threading.Event()
        self.aborted = ""
        # When the sessions that wait now were first and last seen, for each transaction of the migration.
        self.waiting: dict[tuple[int, str], tuple[float, float]] = {}
        self.said: set[tuple[int, str]] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        mine = f"datname = current_database() AND application_name = '{database.application}'"
        self.question = f"""
            SELECT DISTINCT held.pid, held.usename AS user, held.application_name AS application,
                   held.backend_type AS kind, held.state,
                   extract(epoch FROM clock_timestamp() - held.xact_start)::int AS seconds,
                   left(regexp_replace(held.query, '[[:space:]]+', ' ', 'g'), 80) AS query,
                   (SELECT min(relation::regclass::text) FROM pg_locks
                     WHERE pg_locks.pid = waiting.pid AND NOT granted) AS relation
              FROM (SELECT pid FROM pg_stat_activity WHERE {mine}) AS waiting,
                   unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
              JOIN pg_stat_activity AS held USING (pid)"""
        # Only clients have a user name. A migration that waits itself is ended by its lock_timeout, and CREATE INDEX
        # CONCURRENTLY, which may wait for long, blocks no request.
        self.behind = f"""
            SELECT holder.pid, holder.xact_start::text AS transaction, count(DISTINCT waiting.pid) AS waiting,
                   min(wanted.relation::regclass::text) AS relation,
                   left(regexp_replace(min(holder.query), '[[:space:]]+', ' ', 'g'), 200) AS query
              FROM pg_locks AS wanted
              JOIN pg_stat_activity AS waiting ON waiting.pid = wanted.pid AND waiting.usename IS NOT NULL
                   AND waiting.datname = current_database() AND waiting.application_name <> '{database.application}',
                   unnest(pg_blocking_pids(wanted.pid)) AS blocking (pid)
              JOIN (SELECT pid, xact_start, query FROM pg_stat_activity WHERE {mine}) AS holder USING (pid)
             WHERE NOT wanted.granted
               AND NOT EXISTS (SELECT FROM pg_locks AS own WHERE own.pid = holder.pid AND NOT own.granted)
             GROUP BY 1, 2"""

    def look(self) -> None:
        while not self.over.wait(self.interval):
            try:
                found = self.session.ask(self.question)
                behind = self.session.ask(self.behind)
                if any(self.must_end(one) for one in behind):
                    return
            except ReleaseError:
                return
            # As it gives up, its blockers may still be visible while the relation no longer is.
            if found and (found[0]["relation"] or pids(found) != pids(self.blockers)):
                self.blockers = found

    def must_end(self, one: dict[str, Any]) -> bool:
        """Note that sessions wait behind a transaction of the migration; end it when they have waited for too long."""
        key, now = (one["pid"], one["transaction"]), time.monotonic()
        first, last = self.waiting.get(key, (now, now))
        # No session waited in between.
        first = first if now - last < self.patience else now
        self.waiting[key] = (first, now)
        if now - first >= self.patience and key not in self.said:
            self.said.add(key)
            self.say(self.announce(one))
        if not self.limit or now - first < self.limit or not self.is_reverted():
            return False
        self.aborted = (
            f"{sessions(one)} waited behind it{place(one)} for {now - first:.0f} s, so it was aborted "
            f"(app_migration_block_seconds). Its last statement: {one['query']}\n"
            "Split the migration: first the change of the schema, and what takes long in a migration or a command of "
            "its own. Or run it in maintenance mode with -e app_migration_block_seconds=0."
        )
        try:
            self.session.ask(f"SELECT pg_terminate_backend({one['pid']}) AS ended")
        finally:
            # Without its client the session ends, too.
            self.abort.set()
        return True

    def announce(self, one: dict[str, Any]) -> str:
        text = f"Warning: {sessions(one)} wait behind the migration{place(one)}."
        if not self.limit:
            return text
        if not self.is_reverted():
            return f"{text} It is not aborted, since it is not atomic."
        return f"{text} It is aborted when that takes {self.limit} s."

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def first_left(session: Session, portion: list[str]) -> str:
    """Return the first migration that is not applied, which is the one that runs; "" after the last one."""
    done = applied(session)
    return next((name for name in portion if name not in done), "")


def applied(database: Database | Session) -> set[str]:
    """Return the migrations that the database records as applied.

    While a migration runs, ask over the session that is open: those who wait behind it may occupy all connections.
    """
    [table] = database.ask("SELECT to_regclass('django_migrations') IS NOT NULL AS here")
    if not table["here"]:
        return set()
    return {row["name"] for row in database.ask("SELECT app || '.' || name AS name FROM django_migrations")}


def sessions(one: dict[str, Any]) -> str:
    """Say how many requests and tasks wait; each has a session of its own."""
    return "1 request or task" if one["waiting"] == 1 else f"{one['waiting']} requests or tasks"


def place(one: dict[str, Any]) -> str:
    return f" for {one['relation']}" if one["relation"] else ""


# --- helpers


def pids(sessions: list[dict[str, Any]]) -> set[int]:
    return {session["pid"] for session in sessions}


def free_name(path: Path) -> Path:
    """Return `path`, or it with a number: an earlier attempt's dump is the one from before the first change."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return free


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size(number: float) -> str:
    """Format a number of bytes."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(number, 1e5) / 1e6:.1f} MB"
