"""The import of dumps from another server, on a real PostgreSQL.

DATABASE_URL belongs to a superuser. Roles and databases are those of the application `nursery`; the earlier server is
another database, of roles `postgres` and `olduser`. The tests may not run as root.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from hostctl import application, database, import_database, settings
from hostctl.database_server import DatabaseServer
from hostctl.deploy.record import Record
from hostctl.host import Host
from hostctl.settings import BusyError, ReleaseError
from tests.hostctl.fakes import OLD, Manager, make_release

ROOT = Path(__file__).parents[2]
NAME, OWNER = "nursery", "nursery_owner"
ROLES = ("postgres", "olduser", "oldreader", OWNER, f"{NAME}_2", NAME)
OLD_DATABASE = "old_nursery"

pytestmark = pytest.mark.skipif(os.geteuid() == 0, reason="as root, the program would switch to the application's user")


def url_of(name: str, user: str = "") -> str:
    parts = urlsplit(os.environ["DATABASE_URL"])
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(path=f"/{name}", netloc=f"{user}@{place}" if user else parts.netloc).geturl()


def execute(statement: str, name: str = "postgres", user: str = "") -> list[tuple[Any, ...]]:
    with psycopg.connect(url_of(name, user), autocommit=True) as connection:
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


def script_of_the_role(**values: str) -> str:
    """Return roles/postgresql's script for one database, without settings of the role and extensions."""
    text = (ROOT / "roles/postgresql/templates/database.sql.j2").read_text()
    text = re.sub(r"{% for \w+, .*?{% endfor %}|{% if .*?{% endif %}", "", text, flags=re.S)
    text = re.sub(r"{% (?:for|endfor).*?%}", "", text).replace("{{ __postgresql_one.name }}", values["database"])
    return re.sub(r"{{ postgresql_(\w+) }}", lambda found: values[found[1]], text)


def psql(script: str) -> None:
    flags = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    subprocess.run(["psql", *flags, url_of("postgres")], input=script, text=True, check=True, capture_output=True)


def clean() -> None:
    for (name,) in execute(f"SELECT datname FROM pg_database WHERE datname ~ '^({NAME}|{OLD_DATABASE})'"):
        execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    for role in ROLES:
        execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def server() -> Iterator[None]:
    """A server with the database of the application as roles/postgresql makes it, empty."""
    clean()
    psql(script_of_the_role(database=NAME, owner=OWNER, user=NAME, login=NAME))
    execute("CREATE ROLE postgres SUPERUSER LOGIN")
    try:
        yield
    finally:
        clean()


OLD_SCHEMA = """
CREATE EXTENSION citext;
CREATE TABLE plant (id bigserial PRIMARY KEY, name citext NOT NULL, note text, price numeric CHECK (price > 0));
CREATE TYPE season AS ENUM ('spring', 'summer');
CREATE TABLE bed (id integer PRIMARY KEY, plant bigint REFERENCES plant, season season);
CREATE SCHEMA stock;
CREATE TABLE stock.item (id integer);
CREATE VIEW cheap AS SELECT * FROM plant WHERE price < 2;
CREATE MATERIALIZED VIEW dear AS SELECT * FROM plant WHERE price > 2;
CREATE FUNCTION renamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- it's a body: GRANT ALL ON plant TO olduser;
  NEW.name := 'new ' || NEW.name; RETURN NEW;
END $$;
CREATE TRIGGER renaming BEFORE UPDATE ON plant FOR EACH ROW EXECUTE FUNCTION renamed();
CREATE FUNCTION plants() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM plant; END;
INSERT INTO plant (name, note, price) VALUES
  ('Basil', E'GRANT ALL ON x TO y;\\n\\\\! id\\n\\\\.', 1), ('dill', NULL, 3), ('O''Brien; $$', E'tab\\tend\\\\', 2.5);
INSERT INTO bed VALUES (1, 1, 'spring');
INSERT INTO stock.item VALUES (7);
SELECT lo_from_bytea(0, 'large');
REFRESH MATERIALIZED VIEW dear;
COMMENT ON TABLE plant IS 'what grows; SET ROLE olduser;';
GRANT ALL ON ALL TABLES IN SCHEMA public TO olduser;
GRANT SELECT ON plant TO oldreader WITH GRANT OPTION;
REVOKE EXECUTE ON FUNCTION renamed() FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO olduser;
"""
TABLES = ("plant", "bed", "stock.item")
FORMATS = ["plain", "gzip", "custom", "tar", "create", "clean", "inserts"]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dumps of the earlier server in every form: tables of postgres and olduser, privileges of others."""
    clean()
    for role in ("postgres SUPERUSER", "olduser", "oldreader"):
        execute(f"CREATE ROLE {role} LOGIN")
    execute(f"CREATE DATABASE {OLD_DATABASE} OWNER olduser")
    with psycopg.connect(url_of(OLD_DATABASE, "postgres"), autocommit=True) as connection:
        connection.execute(OLD_SCHEMA)
        connection.execute("ALTER TABLE bed OWNER TO olduser")
        connection.execute("ALTER SCHEMA stock OWNER TO olduser")
    folder = tmp_path_factory.mktemp("dumps")
    options = {name: ["--format=plain"] for name in ("plain", "gzip")}
    options |= {name: [f"--format={name}"] for name in ("custom", "tar")}
    options |= {"create": ["--create"], "clean": ["--clean", "--if-exists"], "inserts": ["--inserts"]}
    found = {}
    for name, words in options.items():
        found[name] = folder / f"{name}.dump"
        target = url_of(OLD_DATABASE, "postgres")
        subprocess.run(["pg_dump", *words, f"--file={found[name]}", target], check=True)
    # As pg_dump 17 begins, and as some people repair a dump.
    text = b"\\restrict abc\nSET ROLE olduser;\nSET transaction_timeout = 0;\n" + found["gzip"].read_bytes()
    found["gzip"].write_bytes(gzip.compress(text))
    clean()
    return found


@pytest.fixture
def host(server: None, tmp_path: Path) -> Host:
    (tmp_path / f"{NAME}/releases").mkdir(parents=True)
    folder = tmp_path / f"etc/{NAME}/next"
    folder.mkdir(parents=True)
    (folder / "app.env").write_text(f'DATABASE_URL="{url_of(NAME, NAME)}"\n')
    (folder / "migrate.env").write_text(f'DATABASE_URL="{url_of(NAME, OWNER)}"\n')
    made = Host(settings.Settings(name=NAME, domain="shop.example.org", root=tmp_path, config=tmp_path / "etc"))
    made.manager = Manager()
    return made


@pytest.fixture(autouse=True)
def superuser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's superuser is the tests'."""
    parts = urlsplit(os.environ["DATABASE_URL"])
    make = DatabaseServer.__init__

    def init(self: DatabaseServer, *arguments: Any) -> None:
        make(self, *arguments, {"PGHOST": parts.hostname, "PGUSER": parts.username})

    monkeypatch.setattr(DatabaseServer, "__init__", init)


def imported(host: Host, path: Path | None = None, *, replace: bool = False, kept: str = "") -> None:
    import_database.run(host, Namespace(file=path, kept=kept, replace=replace))


def databases() -> list[str]:
    return [name for (name,) in execute(f"SELECT datname FROM pg_database WHERE datname ~ '^{NAME}' ORDER BY 1")]


def privileges(name: str) -> list[tuple[Any, ...]]:
    """Return owners and privileges of the database, the schema public, and what the owner will create."""
    found = execute(f"SELECT datdba::regrole::text, datacl::text FROM pg_database WHERE datname = '{name}'")
    found += execute("SELECT nspowner::regrole::text, nspacl::text FROM pg_namespace WHERE nspname = 'public'", name)
    return found + execute(
        "SELECT defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype::text, defaclacl::text "
        "FROM pg_default_acl WHERE defaclnamespace = 'public'::regnamespace ORDER BY 3",
        name,
    )


# --- What is restored


@pytest.mark.parametrize("form", FORMATS)
def test_rows_owners_and_privileges(host: Host, dumps: dict[str, Path], form: str, capsys: Any) -> None:
    before = privileges(NAME)
    imported(host, dumps[form])
    assert databases() == [NAME]
    # As roles/postgresql made them.
    assert privileges(NAME) == before
    assert execute("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'nursery'") == [
        (None,)
    ]
    # The owner owns everything, and changes it as migrations do.
    for table in (*TABLES, "cheap", "dear"):
        assert execute(f"SELECT relowner::regrole::text FROM pg_class WHERE oid = '{table}'::regclass", NAME) == [
            (OWNER,)
        ]
    execute("ALTER TABLE plant ADD COLUMN bed text; ALTER TYPE season ADD VALUE 'autumn'", NAME, OWNER)
    execute("CREATE TABLE migrated (id serial PRIMARY KEY); DROP TABLE bed; DROP FUNCTION plants()", NAME, OWNER)
    subprocess.run(["pg_dump", f"--file={os.devnull}", url_of(NAME, OWNER)], check=True)
    # The application reads and writes rows, old and new, and changes nothing else.
    execute("INSERT INTO plant (name, price) VALUES ('thyme', 4); INSERT INTO migrated DEFAULT VALUES", NAME, NAME)
    execute("DELETE FROM stock.item; SELECT * FROM cheap", NAME, NAME)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute("ALTER TABLE plant ADD COLUMN x text", NAME, NAME)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute("CREATE TABLE x ()", NAME, NAME)
    rows = execute("SELECT id, name, note FROM plant WHERE id <= 3 ORDER BY id", NAME)
    assert rows == [
        (1, "Basil", "GRANT ALL ON x TO y;\n\\! id\n\\."),
        (2, "dill", None),
        (3, "O'Brien; $$", "tab\tend\\"),
    ]
    assert execute("SELECT obj_description('plant'::regclass)", NAME) == [("what grows; SET ROLE olduser;",)]
    assert execute("UPDATE plant SET note = '' WHERE id = 2 RETURNING name", NAME, NAME) == [("new dill",)]
    assert execute("SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata", NAME, NAME) == [("large",)]
    said = capsys.readouterr().out
    assert "Imported 5 rows in 3 tables: plant 3, bed 1, stock.item 1." in said
    assert f"Every object belongs to {OWNER}." in said
    assert "Next: deploy." in said


def test_running_the_role_again_changes_nothing(host: Host, dumps: dict[str, Path]) -> None:
    """Its statements are those that are still needed."""
    imported(host, dumps["custom"])
    script = script_of_the_role(database=NAME, owner=OWNER, user=NAME, login=NAME)
    flags = ["--no-psqlrc", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
    done = subprocess.run(
        ["psql", *flags, url_of("postgres")], input=script, text=True, check=True, capture_output=True
    )
    assert done.stdout.strip() == ""


def test_extensions_of_the_present_database_are_kept(host: Host, dumps: dict[str, Path]) -> None:
    """app_database_extensions, which the superuser has created; it remains their owner."""
    execute("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION citext", NAME)
    imported(host, dumps["plain"])
    owners = "SELECT extname, extowner::regrole::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"
    superuser = urlsplit(os.environ["DATABASE_URL"]).username
    assert execute(owners, NAME) == [("citext", superuser), ("pg_stat_statements", superuser)]


# --- What is refused, without an effect


BED = b"CREATE TABLE public.bed"


def changed(path: Path, folder: Path, old: bytes, new: bytes) -> Path:
    text = path.read_bytes()
    assert old in text
    made = folder / "changed.sql"
    made.write_bytes(text.replace(old, new, 1))
    return made


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"EXISTS citext", b"EXISTS pg_buffercache", "the extension pg_buffercache: add it to app_database_extensions"),
        (b"EXISTS citext", b"EXISTS nothing", "the extension nothing: add it to app_database_extensions"),
        (BED, b"\\! touch /tmp/x\n" + BED, r"the command \\! of psql"),
        (BED, b"CREATE ROLE x;\n" + BED, "pg_dumpall"),
        (b"-- PostgreSQL database dump complete", b"", "is not complete"),
        # Fails while it is restored.
        (BED, b"CREATE TABLE public.plant (id int);\n" + BED, r"cannot be restored: line \d+: ERROR: "),
        (BED, b"COPY public.plant FROM PROGRAM 'id';\n" + BED, "external program"),
    ],
)
def test_a_refused_dump_leaves_nothing(
    host: Host, dumps: dict[str, Path], tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    execute("CREATE TABLE mine ()", NAME, OWNER)
    path = changed(dumps["plain"], tmp_path, old, new)
    with pytest.raises(ReleaseError, match=reason):
        imported(host, path)
    assert databases() == [NAME]
    assert execute("SELECT to_regclass('mine')::text", NAME) == [("mine",)]


@pytest.mark.parametrize("form", ["custom", "gzip"])
def test_half_a_dump_is_refused(host: Host, dumps: dict[str, Path], tmp_path: Path, form: str) -> None:
    path = tmp_path / "half.dump"
    content = dumps[form].read_bytes()
    path.write_bytes(content[: len(content) - 600])
    with pytest.raises(ReleaseError, match=r"not complete|cannot read"):
        imported(host, path)
    assert databases() == [NAME]


def test_rows_are_not_replaced_unasked(host: Host, dumps: dict[str, Path]) -> None:
    execute("CREATE TABLE mine AS SELECT 1 AS id FROM generate_series(1, 1234); CREATE TABLE empty ()", NAME, OWNER)
    with pytest.raises(ReleaseError, match=r"has rows: mine 1,234\. .*-e import_replace=true .* --replace"):
        imported(host, dumps["custom"])
    assert databases() == [NAME]


def test_a_running_deployment_refuses_it(host: Host, dumps: dict[str, Path]) -> None:
    running = Record(host.settings)
    running.hold()
    with pytest.raises(BusyError):
        imported(host, dumps["custom"])
    running.release()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"postgres://{OWNER}@db.example.net/{NAME}", "address is db.example.net.*app_database_url"),
        (f"postgres://other@127.0.0.1/{NAME}", "its owner other"),
        ("sqlite:////srv/db.sqlite3", "not one of PostgreSQL"),
    ],
)
def test_another_database_is_refused(host: Host, dumps: dict[str, Path], url: str, reason: str) -> None:
    (host.settings.next_configuration / "migrate.env").write_text(f'DATABASE_URL="{url}"\n')
    with pytest.raises(ReleaseError, match=reason):
        imported(host, dumps["custom"])


def test_several_hosts_are_refused(host: Host, dumps: dict[str, Path]) -> None:
    several = Host(replace(host.settings, barriers=True))
    with pytest.raises(ReleaseError, match=f"several hosts.*--role={OWNER}"):
        imported(several, dumps["custom"])


def test_a_leftover_of_a_killed_import_is_replaced(host: Host, dumps: dict[str, Path]) -> None:
    execute(f"CREATE DATABASE {NAME}_import")
    with pytest.raises(ReleaseError, match="nursery_import exists"):
        imported(host, dumps["custom"])
    execute(f"COMMENT ON DATABASE {NAME}_import IS 'Unfinished import'")
    imported(host, dumps["custom"])
    assert databases() == [NAME]


# --- The exchange


class Running:
    """What the application and its processes do while the database is exchanged."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.problems: list[dict[str, str]] = []
        self.found = {"pending": [], "known": [], "unknown": [], "not_atomic": [], "concurrent": []}
        make_release(host, OLD)
        host.switch(OLD)
        (host.path(OLD) / "release.env").touch()
        own = host.settings.configurations / OLD
        own.mkdir(parents=True)
        for file in host.settings.next_configuration.iterdir():
            (own / file.name).write_bytes(file.read_bytes())
        host.manager.running = {f"{NAME}-web@{OLD}"}
        monkeypatch.setattr(host, "halt", lambda: self.did.append("halt"))
        monkeypatch.setattr(host, "boot", lambda: self.did.append("boot"))
        monkeypatch.setattr(application.Application, "ask", self.ask)
        monkeypatch.setattr(application.Application, "manage", self.manage)
        monkeypatch.setattr(import_database, "problems", lambda host: self.problems)
        monkeypatch.setattr(import_database, "silent_workers", lambda host, seconds: {})
        monkeypatch.setattr(import_database, "cause_lines", lambda host, processes: [])
        host.settings.__dict__["health_check_timeout"] = 1

    def ask(self, question: str, names: list[str]) -> dict[str, Any]:
        assert (question, names) == ("migrations", [])
        return {"default": self.found}

    def manage(self, *words: str, environment: dict[str, str], stop: object = None) -> str:
        """Migrate as manage.py does: as the owner, in the database of the environment's URL."""
        self.did.append(" ".join(words))
        execute("ALTER TABLE plant ADD COLUMN kind text", NAME, OWNER)
        return ""


@pytest.fixture
def running(host: Host, monkeypatch: pytest.MonkeyPatch) -> Running:
    execute("CREATE TABLE mine AS SELECT 1 AS id", NAME, OWNER)
    return Running(host, monkeypatch)


def test_the_application_stops_migrates_and_starts(
    host: Host, running: Running, dumps: dict[str, Path], capsys: Any
) -> None:
    running.found["pending"] = ["garden.0002_kind"]
    with psycopg.connect(url_of(NAME, NAME)) as visitor:
        imported(host, dumps["custom"], replace=True)
        with pytest.raises(psycopg.OperationalError):
            visitor.execute("SELECT 1")
    assert running.did == ["halt", "migrate --noinput", "boot"]
    assert execute("SELECT kind FROM plant LIMIT 1", NAME) == [(None,)]
    said = capsys.readouterr().out
    assert "that were applied: garden.0002_kind." in said
    [kept] = [name for name in databases() if name != NAME]
    assert f"nurseryctl import-database --return {kept}" in said
    assert f"runuser -u postgres -- dropdb {kept}" in said
    assert execute("SELECT id FROM mine", kept) == [(1,)]
    # And to the former database again.
    imported(host, kept=kept)
    assert execute("SELECT id FROM mine", NAME) == [(1,)]
    assert running.did == ["halt", "migrate --noinput", "boot", "halt", "boot"]
    assert len(databases()) == 2
    with pytest.raises(ReleaseError, match="available: nursery_before_"):
        imported(host, kept="postgres")


@pytest.mark.parametrize("fails", ["migrate", "start"])
def test_a_failure_brings_the_former_database_back(
    host: Host, running: Running, dumps: dict[str, Path], fails: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if fails == "migrate":
        running.found["pending"] = ["garden.0002_kind"]
        monkeypatch.setattr(running, "manage", None)
        monkeypatch.setattr(application.Application, "manage", failing)
    else:
        running.problems = [{"process": "web", "unit": "", "text": "status 500"}]
    with pytest.raises(ReleaseError, match=r"no migration today|web: status 500"):
        imported(host, dumps["custom"], replace=True)
    assert databases() == [NAME]
    assert execute("SELECT id FROM mine", NAME) == [(1,)]
    assert running.did[-2:] == ["halt", "boot"]
    assert "The database is the former one again, and the application starts." in capsys.readouterr().out


def failing(*arguments: Any, **options: Any) -> str:
    raise ReleaseError("no migration today")


def test_a_dump_of_a_newer_release_is_refused(
    host: Host, running: Running, dumps: dict[str, Path], tmp_path: Path
) -> None:
    rows = (
        b"CREATE TABLE public.django_migrations (id int, app text, name text);\n"
        b"COPY public.django_migrations (id, app, name) FROM stdin;\n"
        b"1\tgarden\t0001_initial\n2\tgarden\t0002_new\n\\.\n"
    )
    path = changed(dumps["plain"], tmp_path, BED, rows + BED)
    running.found["known"] = ["garden.0001_initial"]
    with pytest.raises(ReleaseError, match=r"lacks: garden\.0002_new\. Deploy a release that has them"):
        imported(host, path, replace=True)
    assert running.did == []
    assert databases() == [NAME]


def test_what_did_not_run_is_not_started(host: Host, running: Running, dumps: dict[str, Path], capsys: Any) -> None:
    host.manager.running = set()
    imported(host, dumps["custom"], replace=True)
    assert running.did == []
    assert "systemctl start nursery" in capsys.readouterr().out


# --- A restore by hand


def test_the_dump_of_a_deployment_names_the_repair(host: Host, tmp_path: Path) -> None:
    execute("CREATE TABLE foreign_table AS SELECT 1 AS id", NAME, "postgres")
    shop = database.Database(host.settings, {"DATABASE_URL": url_of(NAME, OWNER)}, print)
    with pytest.raises(ReleaseError, match="permission denied for table foreign_table") as error:
        shop.snapshot(tmp_path / "before-1.dump")
    assert "nurseryctl import-database" in str(error.value)
