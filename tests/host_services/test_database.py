"""The dump and the migrations of a deployment, on a real PostgreSQL.

DATABASE_URL belongs to a role that may create databases; each test has its own. The tests may not run as root.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from databases import new_database

sys.path.insert(0, str(Path(__file__).parents[2]))
from hostctl import application, database, settings

ReleaseError = settings.ReleaseError
SHOP = settings.Settings(name="shop", domain="shop.example.org")

pytestmark = pytest.mark.skipif(os.geteuid() == 0, reason="as root, the program would switch to the application's user")


@pytest.fixture
def url() -> Iterator[str]:
    """A database of one table."""
    with new_database() as made:
        with psycopg.connect(made) as inside:
            inside.execute("CREATE TABLE plant AS SELECT 'basil' AS name")
        yield made


class Said(list):
    """The printed lines; `at_next_attempt` is called when one announces another attempt."""

    at_next_attempt: Callable[[], object] = staticmethod(lambda: None)

    def __call__(self, text: str) -> None:
        self.append(text)
        if "Next attempt" in text:
            self.at_next_attempt()


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def shop(url: str, said: Said, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = database.Database(SHOP, {"DATABASE_URL": url, "PGOPTIONS": "-c work_mem=8MB"}, said)
    made.lock_wait = 0.5
    monkeypatch.setattr(database.Watch, "interval", 0.1)
    made.delays = (0.1, 0.1)
    return made


# --- the URL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgres://us%40er:p%2Fa%25s:s@Db.example.org:5433/shop?sslmode=require&conn_max_age=60",
            {"USER": "us@er", "PASSWORD": "p/a%s:s", "HOST": "Db.example.org", "PORT": "5433", "DATABASE": "shop"}
            | {"SSLMODE": "require"},
        ),
        ("postgis://user@[::1]/shop", {"USER": "user", "HOST": "::1", "DATABASE": "shop"}),
        ("postgresql://user@%2Frun%2FPg/shop", {"USER": "user", "HOST": "/run/Pg", "DATABASE": "shop"}),
        ("postgres:///shop?host=/run/pg", {"HOST": "/run/pg", "DATABASE": "shop"}),
    ],
)
def test_the_variables_of_a_url(url: str, expected: dict[str, str]) -> None:
    wanted = {f"PG{name}": value for name, value in expected.items()}
    assert database.connection_variables(url) == wanted | {"PGCONNECT_TIMEOUT": "10"}


@pytest.mark.parametrize("url", ["sqlite:////srv/shop/db.sqlite3", "mysql://user:x@db/shop", ""])
def test_another_database_is_migrated_without_a_dump(url: str, said: Said, tmp_path: Path) -> None:
    other = database.Database(SHOP, {"DATABASE_URL": url}, said)
    calls = []
    assert other.snapshot(tmp_path / "before-1.dump") is None
    assert "Database not dumped" in said[0]
    assert (url.partition(":")[0] or "not set") in said[0]
    other.migrate(lambda *arguments, environment, stop: calls.append(arguments), ["shop.0001_initial"])
    assert calls == [("migrate", "--noinput")]


# --- snapshot


def test_a_snapshot_brings_the_rows_back(shop: Any, url: str, tmp_path: Path, said: Said) -> None:
    path = shop.snapshot(tmp_path / "backups/before-abcd.dump")
    assert path == tmp_path / "backups/before-abcd.dump"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["before-abcd.dump"]
    assert str(path) in said[0]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE plant")
        subprocess.run(["pg_restore", "--no-owner", f"--dbname={url}", str(path)], check=True)
        assert connection.execute("SELECT name FROM plant").fetchall() == [("basil",)]


def test_the_first_attempts_snapshot_stays(shop: Any, url: str, tmp_path: Path) -> None:
    first = shop.snapshot(tmp_path / "before-abcd.dump")
    content = first.read_bytes()
    second = shop.snapshot(tmp_path / "before-abcd.dump")
    assert second.name == "before-abcd.2.dump"
    assert first.read_bytes() == content


def test_the_newest_snapshots_stay(shop: Any, tmp_path: Path) -> None:
    (tmp_path / "before-old.dump.new").touch()
    (tmp_path / "media.tar").touch()
    for number in range(4):
        shop.snapshot(tmp_path / f"before-{number}.dump", keep=2)
    assert {file.name for file in tmp_path.iterdir()} == {"before-2.dump", "before-3.dump", "media.tar"}


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(shop: Any, tmp_path: Path) -> Path:
    """PostgreSQL's programs, in a folder where a test may put others in their place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("psql", "pg_dump", "pg_restore"):
        program(folder, name, f'exec /usr/bin/{name} "$@"')
    shop.programs = folder
    return folder


def refused(shop: Any, folder: Path) -> str:
    """Return why there is no dump; no file may be left."""
    with pytest.raises(ReleaseError) as error:
        shop.snapshot(folder / "backups/before-abcd.dump")
    assert not list((folder / "backups").iterdir())
    return str(error.value)


def test_no_dump_without_pg_dump(shop: Any, programs: Path, tmp_path: Path) -> None:
    (programs / "pg_dump").unlink()
    assert "apt install postgresql-client" in refused(shop, tmp_path)


def test_no_dump_of_a_newer_server(shop: Any, programs: Path, tmp_path: Path) -> None:
    program(programs, "pg_dump", "echo 'pg_dump (PostgreSQL) 9.6.24'")
    assert "postgresql-client-1" in refused(shop, tmp_path)


def test_no_dump_without_space(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(database.shutil.disk_usage("/"))(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(database.shutil, "disk_usage", lambda folder: usage)
    assert "there are 1.0 MB" in refused(shop, tmp_path)


def test_no_dump_when_pg_dump_fails(shop: Any, programs: Path, tmp_path: Path) -> None:
    program(
        programs,
        "pg_dump",
        'case "$*" in *version*) exec /usr/bin/pg_dump "$@";; esac; echo half; echo broken >&2; exit 1',
    )
    assert "broken" in refused(shop, tmp_path)


def test_no_dump_that_cannot_be_read(shop: Any, programs: Path, tmp_path: Path) -> None:
    program(programs, "pg_dump", 'case "$*" in *version*) exec /usr/bin/pg_dump "$@";; esac; echo nonsense')
    assert "Reading the dump" in refused(shop, tmp_path)


def test_no_dump_when_the_database_is_away(said: Said, tmp_path: Path) -> None:
    shop = database.Database(SHOP, {"DATABASE_URL": "postgres://gone:secret@127.0.0.1:1/shop"}, said)
    reason = refused(shop, tmp_path)
    assert "does not answer" in reason
    assert "secret" not in reason


def test_the_password_is_on_no_command_line(url: str, tmp_path: Path, said: Said, shop: Any) -> None:
    parts = urlsplit(url)
    with_password = parts._replace(netloc=f"{parts.username}:s3cret@{parts.netloc.rpartition('@')[2]}")
    other = database.Database(SHOP, {"DATABASE_URL": urlunsplit(with_password)}, said)
    called = other.call("pg_dump", "--format=custom")
    assert "s3cret" not in " ".join(called["args"])
    assert called["env"]["PGPASSWORD"] == "s3cret"
    assert other.snapshot(tmp_path / "before-1.dump")


# --- migrations


class Project:
    """manage.py of a project whose migrations are SQL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.environments: list[dict[str, str]] = []
        self.calls: list[tuple[str, ...]] = []
        (folder / "garden/migrations").mkdir(parents=True)
        for package in ("garden", "garden/migrations"):
            (folder / package / "__init__.py").touch()
        parts = urlsplit(url)
        options = {"ENGINE": "django.db.backends.postgresql", "NAME": parts.path[1:], "USER": parts.username}
        options |= {"HOST": parts.hostname, "PORT": parts.port, "PASSWORD": parts.password}
        text = f"DATABASES = {{'default': {options!r}}}\nINSTALLED_APPS = ['garden']\nUSE_TZ = True\n"
        (folder / "site_settings.py").write_text(text)

    def write(self, name: str, sql: str, *after: str, atomic: bool = True, sleep: float = 0) -> None:
        """Write a migration of some SQL; with `sleep`, Python code that takes so many seconds follows."""
        operations = f"[migrations.RunSQL({sql!r}), migrations.RunPython(lambda *_: time.sleep({sleep}))]"
        (self.folder / f"garden/migrations/{name}.py").write_text(
            "import time\nfrom django.db import migrations\nclass Migration(migrations.Migration):\n"
            f"    dependencies = {[('garden', other) for other in after]}\n"
            f"    atomic = {atomic}\n    operations = {operations if sleep else f'[migrations.RunSQL({sql!r})]'}\n"
        )

    def manage(self, *arguments: str, environment: dict[str, str], stop: threading.Event | None = None) -> str:
        self.calls.append(arguments)
        self.environments.append(environment)
        variables = os.environ | {"PYTHONPATH": str(self.folder), "DJANGO_SETTINGS_MODULE": "site_settings"}
        variables |= environment | {"PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "django", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, env=variables, **streams) as process:
            output = application.read_output(process, stop)
        if process.returncode != 0:
            raise ReleaseError(f"manage.py failed:\n{settings.tail(output)}")
        return output


@pytest.fixture
def project(tmp_path: Path, url: str) -> Project:
    made = Project(tmp_path, url)
    made.write("0001_kind", "ALTER TABLE plant ADD COLUMN kind text")
    made.write("0002_bed", "ALTER TABLE plant ADD COLUMN bed text", "0001_kind")
    return made


PENDING = ["garden.0001_kind", "garden.0002_bed"]


def columns(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'plant'::regclass AND attnum > 0")
        return [name for (name,) in found]


def test_migrations_are_applied_with_a_lock_timeout(shop: Any, project: Project, url: str) -> None:
    shown = ", ".join(f"current_setting('{name}')" for name in ("lock_timeout", "work_mem", "application_name"))
    project.write("0003_shown", f"CREATE TABLE shown (a, b, c) AS SELECT {shown}", "0002_bed")
    shop.migrate(project.manage, [*PENDING, "garden.0003_shown"])
    assert columns(url) == ["name", "kind", "bed"]
    assert project.calls == [("migrate", "--noinput")]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT * FROM shown").fetchone() == ("1s", "8MB", "shop-migrate")


def test_without_pending_migrations_nothing_runs(shop: Any, project: Project) -> None:
    shop.migrate(project.manage, [])
    assert project.calls == []


def test_a_migration_is_retried_when_a_lock_is_held(shop: Any, project: Project, url: str, said: Said) -> None:
    with psycopg.connect(url, application_name="report") as holder:
        holder.execute("SELECT   *\nFROM plant")
        said.at_next_attempt = holder.rollback
        shop.migrate(project.manage, PENDING)
    assert columns(url) == ["name", "kind", "bed"]
    [again] = [text for text in said if "Next attempt" in text]
    assert again.startswith("garden.0001_kind: no lock on plant within 1s, because of process ")
    assert "report, in a transaction for" in again
    assert "idle in transaction: SELECT * FROM plant)" in again


def test_a_lock_that_stays_held_fails_the_migration(shop: Any, project: Project, url: str) -> None:
    shop.delays = (0.1,)
    with psycopg.connect(url, application_name="report") as holder:
        holder.execute("SELECT * FROM plant")
        pid = holder.info.backend_pid
        with pytest.raises(ReleaseError) as error:
            shop.migrate(project.manage, PENDING)
    message = str(error.value)
    assert message.startswith("migration garden.0001_kind failed: no lock on plant within 1s")
    assert f"SELECT pg_terminate_backend({pid});" in message
    assert "No migration was applied before it." in message
    assert "It was rolled back." in message
    assert len(project.calls) == 2
    assert columns(url) == ["name"]


def test_migrations_that_were_applied_are_named(shop: Any, project: Project, url: str) -> None:
    project.write("0002_bed", "ALTER TABLE no_such_table ADD COLUMN bed text", "0001_kind")
    with pytest.raises(ReleaseError) as error:
        shop.migrate(project.manage, PENDING)
    message = str(error.value)
    assert message.startswith("migration garden.0002_bed failed.\nApplied before it: garden.0001_kind.")
    assert 'relation "no_such_table" does not exist' in message
    assert len(project.calls) == 1
    assert columns(url) == ["name", "kind"]


def test_remaining_migrations_are_retried_after_the_first_was_applied(
    shop: Any, project: Project, url: str, said: Said
) -> None:
    project.write("0002_bed", "ALTER TABLE other ADD COLUMN bed text", "0001_kind")
    with psycopg.connect(url) as holder:
        holder.execute("CREATE TABLE other ()")
        holder.commit()
        holder.execute("SELECT * FROM other")
        said.at_next_attempt = holder.rollback
        shop.migrate(project.manage, PENDING)
    assert [text for text in said if text.startswith("Migrating")] == [
        "Migrating: garden.0001_kind, garden.0002_bed.",
        "Migrating: garden.0002_bed.",
    ]


def test_a_migration_that_is_not_atomic_is_not_retried(shop: Any, project: Project, url: str) -> None:
    project.write("0001_kind", "ALTER TABLE plant ADD COLUMN kind text", atomic=False)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT * FROM plant")
        with pytest.raises(ReleaseError, match="It is not atomic") as error:
            shop.migrate(project.manage, PENDING, not_atomic=PENDING[:1])
    assert "no lock on plant" in str(error.value)
    assert len(project.calls) == 1


@pytest.mark.parametrize("then", [[], [[{"pid": 8, "relation": None}]]], ids=["", "another"])
def test_the_blocked_relation_stays_known(then: list[list[dict[str, Any]]]) -> None:
    """Even when the last query finds it no longer; but not when another session blocks it."""
    held = [{"pid": 7, "relation": "plant"}]
    answers = iter([[{"pid": 7, "relation": None}], held, [{"pid": 7, "relation": None}], [], *then])

    class Session:
        def ask(self, question: str) -> list[dict[str, Any]]:
            if not question:
                return []
            if (answer := next(answers, None)) is None:
                raise ReleaseError("The session is over.")
            return answer

    watch = database.Watch(database.Database(SHOP, {}, print), Session(), lambda: True)
    watch.behind = ""
    watch.look()
    assert watch.blockers == (then[0] if then else held)


# --- requests behind a migration

SLOW = ["garden.0003_slow"]


class Visitors:
    """Sessions that read the table as soon as a migration holds its lock; `waited` is how long each took."""

    def __init__(self, url: str, number: int = 3) -> None:
        self.url = url
        self.waited: list[float] = []
        self.threads = [threading.Thread(target=self.read) for _ in range(number)]

    def __enter__(self) -> Visitors:
        for thread in self.threads:
            thread.start()
        return self

    def read(self) -> None:
        locked = "SELECT count(*) FROM pg_locks WHERE relation = 'plant'::regclass AND mode = 'AccessExclusiveLock'"
        with psycopg.connect(self.url, application_name="web", autocommit=True) as connection:
            wait_until(lambda: connection.execute(locked).fetchone()[0])
            began = time.monotonic()
            connection.execute("SELECT * FROM plant")
            self.waited.append(time.monotonic() - began)

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join()


@pytest.fixture
def strict(shop: Any, project: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Requests may wait for two seconds."""
    shop.migrate(project.manage, PENDING)
    shop.settings = dataclasses.replace(shop.settings, migration_block_seconds=2)
    return shop


@pytest.mark.parametrize("sleeps", ["python", "database"])
def test_a_migration_that_requests_wait_for_is_aborted(
    strict: Any, project: Project, url: str, said: Said, sleeps: str
) -> None:
    sql = "ALTER TABLE plant ADD COLUMN slow text" + ("; SELECT pg_sleep(30)" if sleeps == "database" else "")
    project.write("0003_slow", sql, "0002_bed", sleep=30 if sleeps == "python" else 0)
    with Visitors(url) as visitors, pytest.raises(ReleaseError) as error:
        strict.migrate(project.manage, SLOW)
    message = str(error.value)
    assert message.startswith("migration garden.0003_slow failed: 3 requests or tasks waited behind it for plant for ")
    assert re.search(r"for [2-9] s, so it was aborted \(app_migration_block_seconds\)\.", message), message
    assert "Its last statement: ALTER TABLE plant ADD COLUMN slow text" in message
    assert "Split the migration" in message
    assert "app_migration_block_seconds=0" in message
    assert "It was rolled back." in message
    assert max(visitors.waited) < 10
    assert len(visitors.waited) == 3
    assert columns(url) == ["name", "kind", "bed"]
    assert len(project.calls) == 2
    [warning] = [text for text in said if text.startswith("Warning")]
    assert warning.endswith("wait behind the migration for plant. It is aborted when that takes 2 s.")


@pytest.mark.parametrize("case", ["allowed", "not atomic", "none waits"])
def test_a_migration_is_not_aborted_for_nothing(strict: Any, project: Project, url: str, said: Said, case: str) -> None:
    if case == "allowed":
        strict.settings = dataclasses.replace(strict.settings, migration_block_seconds=0)
    atomic = case != "not atomic"
    # In one transaction, also where the migration as a whole is not.
    sql = "ALTER TABLE plant ADD COLUMN slow text; SELECT pg_sleep(5)"
    project.write("0003_slow", sql if atomic else f"BEGIN; {sql}; COMMIT", "0002_bed", atomic=atomic)
    with Visitors(url, 0 if case == "none waits" else 1) as visitors:
        strict.migrate(project.manage, SLOW, not_atomic=[] if atomic else SLOW)
    assert columns(url) == ["name", "kind", "bed", "slow"]
    assert [waited > 3 for waited in visitors.waited] == ([] if case == "none waits" else [True])
    [warning] = [text for text in said if text.startswith("Warning")] or [""]
    ends = {"allowed": "for plant.", "not atomic": "since it is not atomic.", "none waits": ""}
    assert warning.endswith(ends[case])


def commit_late(holder: psycopg.Connection, url: str) -> None:
    """Commit once a migration has waited longer than LOCK_TIMEOUT."""
    with psycopg.connect(url, autocommit=True) as other:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        wait_until(lambda: other.execute(waiting).fetchone()[0] == 1)
        time.sleep(4)
        assert other.execute(waiting).fetchone()[0] == 1
    holder.commit()


def test_a_concurrent_index_may_wait(shop: Any, project: Project, url: str) -> None:
    shop.migrate(project.manage, PENDING)
    project.write("0003_index", "CREATE INDEX CONCURRENTLY by_name ON plant (name)", "0002_bed", atomic=False)
    index = ["garden.0003_index"]
    with psycopg.connect(url) as holder:
        holder.execute("UPDATE plant SET name = 'dill'")
        thread = threading.Thread(target=commit_late, args=(holder, url))
        thread.start()
        shop.migrate(project.manage, index, not_atomic=index, concurrent=index)
        thread.join()
        assert holder.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass").fetchone()[0]
    assert len(project.calls) == 2


def test_only_a_concurrent_index_waits_long(shop: Any, project: Project) -> None:
    project.write("0002_bed", "CREATE INDEX CONCURRENTLY by_name ON plant (name)", "0001_kind", atomic=False)
    shop.migrate(project.manage, PENDING, not_atomic=PENDING[1:], concurrent=PENDING[1:])
    assert project.calls == [
        ("migrate", "garden", "0001_kind", "--noinput"),
        ("migrate", "garden", "0002_bed", "--noinput"),
    ]
    timeouts = [environment["PGOPTIONS"] for environment in project.environments]
    assert timeouts == ["-c work_mem=8MB -c lock_timeout=1s", "-c work_mem=8MB -c lock_timeout=30min"]


def test_only_one_migration_runs_at_a_time(shop: Any, project: Project, url: str, said: Said) -> None:
    """A second one is refused, also when the first is a leftover of a killed deployment."""
    second = database.Database(SHOP, {"DATABASE_URL": url}, said)
    second.lock_wait = 0.5

    def meanwhile(*arguments: str, environment: dict[str, str], stop: threading.Event) -> str:
        with pytest.raises(ReleaseError, match=r"another migration .* process \d+ \(user .*, shopctl"):
            second.migrate(project.manage, PENDING)
        return ""

    shop.migrate(meanwhile, PENDING)
    assert project.calls == []
    with psycopg.connect(url, application_name="shop-migrate"), pytest.raises(ReleaseError, match="shop-migrate"):
        second.migrate(project.manage, PENDING)
    with psycopg.connect(url, application_name="other-migrate"):
        second.migrate(project.manage, PENDING)


def test_the_lock_ends_with_its_run(shop: Any, project: Project, url: str) -> None:
    def killed(*arguments: str, environment: dict[str, str], stop: threading.Event) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.migrate(killed, PENDING)
    shop.migrate(project.manage, PENDING)
    assert columns(url) == ["name", "kind", "bed"]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_session_that_was_terminated_is_reported(shop: Any, url: str) -> None:
    session = database.Session(shop)
    [row] = session.ask("SELECT pg_backend_pid() AS pid")
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [row["pid"]])
        gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: other.execute(gone, [row["pid"]]).fetchone()[0] == 0)
    with pytest.raises(ReleaseError, match="terminating connection"):
        session.ask("SELECT 1 AS one")
    session.close()
