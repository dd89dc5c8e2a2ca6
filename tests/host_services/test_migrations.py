"""hostctl/in_app/migrations.py and migration_review.py, run in a small project on a real PostgreSQL.

DATABASE_URL is a role that may create databases; each test has one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import django
import psycopg
import pytest
from databases import new_database

LIBRARY = Path(__file__).parents[2]
ROWS = 20_000
IMPORTS = "import json; from hostctl.in_app import migrations"

SETTINGS = """
import os
from urllib.parse import unquote, urlsplit
url = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:],
    "HOST": unquote(url.hostname or ""), "PORT": url.port or "", "USER": unquote(url.username or ""),
    "PASSWORD": unquote(url.password or ""),
    "OPTIONS": {"options": os.environ["OPTIONS"]} if "OPTIONS" in os.environ else {}}}
INSTALLED_APPS = os.environ.get("APPS", "garden").split(",")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
HEAD = """
from django import VERSION
from django.contrib.postgres.functions import RandomUUID
from django.contrib.postgres.operations import *
from django.db import migrations, models
from django.db.migrations import *
from django.db.models import *
from django.db.models.functions import Now, Random

CHECK = "condition" if VERSION >= (5, 1) else "check"


class Migration(migrations.Migration):
    dependencies = {dependencies}
    replaces = {replaces}
    atomic = {atomic}
    operations = {operations}
"""
FIRST = """[
    CreateModel("Bed", [("id", BigAutoField(primary_key=True)), ("name", CharField(max_length=10))]),
    CreateModel("Plant", [
        ("id", BigAutoField(primary_key=True)),
        ("name", CharField(max_length=10)),
        ("note", CharField(max_length=10, null=True)),
        ("height", IntegerField(default=0)),
        ("bed", ForeignKey("garden.Bed", CASCADE, db_constraint=False)),
    ]),
    CreateModel("Tool", [("id", BigAutoField(primary_key=True)), ("name", CharField(max_length=10, null=True))]),
]"""
FILL = (
    f"INSERT INTO garden_plant (name, note, height, bed_id) SELECT 'p', 'n', 1, 1 FROM generate_series(1, {ROWS});"
    "ANALYZE garden_plant"
)


class Project:
    """A Django project with one app, and a database of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        (folder / "site_settings.py").write_text(SETTINGS)
        self.make_app("garden")
        self.write("0001_first", FIRST)

    def make_app(self, app: str) -> None:
        (self.folder / app / "migrations").mkdir(parents=True)
        (self.folder / app / "__init__.py").touch()
        (self.folder / app / "migrations/__init__.py").touch()

    def write(
        self, name: str, operations: str, *after: str, app: str = "garden", atomic: bool = True, replaces: object = ()
    ) -> None:
        dependencies = [(app, other) for other in after]
        text = HEAD.format(dependencies=dependencies, operations=operations, atomic=atomic, replaces=list(replaces))
        (self.folder / app / f"migrations/{name}.py").write_text(text)

    def remove(self, name: str) -> None:
        (self.folder / f"garden/migrations/{name}.py").unlink()

    def run(self, code: str, **environment: str) -> str:
        variables = os.environ | {"DATABASE_URL": self.url, "DJANGO_SETTINGS_MODULE": "site_settings"} | environment
        variables |= {"PYTHONPATH": f"{self.folder}:{LIBRARY}", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def migrate(self, *arguments: str, **environment: str) -> None:
        self.run(f"import django; from django.core.management import call_command; django.setup()\n"
                 f"call_command('migrate', *{arguments!r}, verbosity=0)", **environment)  # fmt: skip

    def ask(self, targets: list[str] | None = None, **environment: str) -> dict:
        code = f"{IMPORTS}; print(json.dumps(migrations.migrations({targets!r})))"
        return json.loads(self.run(code, **environment))

    def execute(self, sql: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql)


@contextmanager
def a_project(folder: Path) -> Iterator[Project]:
    with new_database() as url:
        yield Project(folder, url)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path) as made:
        yield made


@pytest.fixture
def live(project: Project) -> Project:
    """A project whose first migration is applied and that has many plants."""
    project.migrate()
    project.execute(FILL)
    return project


Verdicts = dict[str, list[str]]


def judge(project: Project, cases: Iterable[str], *, atomic: bool = True) -> Verdicts:
    """Return the warnings for each list of operations, each in a migration of its own that depends on the first."""
    names = {f"0002_case{number}": operations for number, operations in enumerate(cases)}
    for name, operations in names.items():
        project.write(name, operations, "0001_first", atomic=atomic)
    code = f"""
{IMPORTS}
print(json.dumps([migrations.migrations([f"garden.{{name}}"])["warnings"] for name in {list(names)}]))"""
    found = json.loads(project.run(code))
    for name, warnings in zip(names, found, strict=True):
        for warning in warnings:
            assert warning.startswith(f"garden.{name}")
            assert len(warning.splitlines()) == 2
    return dict(zip(names.values(), found, strict=True))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    """The warnings for every case below in a database with many plants."""
    with a_project(tmp_path_factory.mktemp("many")) as project:
        project.migrate()
        project.execute(FILL)
        yield judge(project, ALL)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    """The warnings for every case below in a database without rows."""
    with a_project(tmp_path_factory.mktemp("few")) as project:
        project.migrate()
        yield judge(project, ALL)


# --- pending, known, unknown


def test_pending_in_order_of_application(project: Project) -> None:
    project.make_app("atelier")
    project.write("0001_z", "[]", app="atelier")
    project.write("0002_b", "[]", "0001_first")
    project.write("0003_a", "[]", "0002_b")
    answer = project.ask(APPS="garden,atelier")
    order = answer["pending"]
    assert sorted(order) == ["atelier.0001_z", "garden.0001_first", "garden.0002_b", "garden.0003_a"]
    assert order.index("garden.0001_first") < order.index("garden.0002_b") < order.index("garden.0003_a")
    assert answer["known"] == sorted(order)


def test_targets(project: Project) -> None:
    project.write("0002_b", "[]", "0001_first")
    assert project.ask(["garden.0001_first"])["pending"] == ["garden.0001_first"]


def test_an_up_to_date_database_has_nothing_to_report(live: Project) -> None:
    answer = live.ask()
    assert answer.pop("known") == ["garden.0001_first"]
    assert not any(answer.values())


def test_an_empty_database_has_no_warnings(project: Project) -> None:
    project.write("0002_next", '[RemoveField("plant", "note"), RunSQL("DROP TABLE garden_tool")]', "0001_first")
    assert project.ask()["warnings"] == []


def test_a_release_that_is_older_than_the_database(live: Project) -> None:
    live.write("0002_slug", '[AddField("plant", "slug", CharField(max_length=5, null=True))]', "0001_first")
    live.migrate()
    live.remove("0002_slug")
    assert live.ask()["unknown"] == ["garden.0002_slug"]


def test_a_removed_app_does_not_block(live: Project) -> None:
    live.make_app("atelier")
    live.write("0001_z", "[]", app="atelier")
    live.migrate(APPS="garden,atelier")
    answer = live.ask()
    assert (answer["unknown"], answer["orphaned"]) == ([], ["atelier.0001_z"])


def squash(project: Project, *, replaces: bool) -> None:
    replaced = [("garden", "0001_first"), ("garden", "0002_note")] if replaces else []
    project.write("0001_squashed", FIRST, replaces=replaced)


def test_a_squashed_migration_replaces_the_applied_ones(live: Project) -> None:
    live.write("0002_note", "[]", "0001_first")
    live.migrate()
    squash(live, replaces=True)
    live.remove("0001_first")
    live.remove("0002_note")
    answer = live.ask()
    assert (answer["pending"], answer["unknown"], answer["orphaned"]) == ([], [], [])
    assert {"garden.0001_first", "garden.0002_note", "garden.0001_squashed"} == set(answer["known"])


def test_deleted_squashed_migrations_do_not_block(live: Project) -> None:
    live.write("0002_note", "[]", "0001_first")
    live.migrate()
    squash(live, replaces=True)
    live.migrate()
    live.remove("0001_first")
    live.remove("0002_note")
    squash(live, replaces=False)
    answer = live.ask()
    assert (answer["pending"], answer["unknown"]) == ([], [])
    assert answer["orphaned"] == ["garden.0001_first", "garden.0002_note"]


def test_migrations_without_a_transaction(live: Project) -> None:
    index = '[AddIndexConcurrently("plant", Index(fields=["name"], name="by_name"))]'
    live.write("0002_index", index, "0001_first", atomic=False)
    live.write("0003_both", '[RunSQL("SELECT 1")]', "0002_index", atomic=False)
    answer = live.ask()
    assert answer["not_atomic"] == ["garden.0002_index", "garden.0003_both"]
    assert answer["concurrent"] == ["garden.0002_index"]


def test_sessions_idle_in_transaction(live: Project) -> None:
    with psycopg.connect(live.url, application_name="forgotten") as connection:
        connection.execute("SELECT 1")
        assert live.ask()["idle"] == []
        code = f"{IMPORTS}; migrations.IDLE_SECONDS = 0; print(json.dumps(migrations.migrations()))"
        [session] = json.loads(live.run(code))["idle"]
        pid, user = connection.info.backend_pid, connection.info.user
    assert (session["pid"], session["user"], session["application"]) == (pid, user, "forgotten")
    assert 0 <= session["seconds"] < 60


# --- operations that lock or rewrite a large table


LOCKING = {
    "index": ('[AddIndex("plant", Index(fields=["name"], name="by_name"))]', "AddIndexConcurrently"),
    "indexed field": ('[AddField("plant", "a", IntegerField(null=True, db_index=True))]', "AddIndexConcurrently"),
    "unique field": ('[AddField("plant", "a", IntegerField(null=True, unique=True))]', "UNIQUE INDEX CONCURRENTLY"),
    "field with a check": ('[AddField("plant", "a", PositiveIntegerField(null=True))]', "AddConstraintNotValid"),
    "foreign key": ('[AddField("plant", "a", ForeignKey("garden.Tool", CASCADE, null=True))]', "AddIndexConcurrently"),
    "index on a field": ('[AlterField("plant", "height", IntegerField(db_index=True))]', "AddIndexConcurrently"),
    "unique": ('[AlterField("plant", "height", IntegerField(unique=True))]', "UNIQUE INDEX CONCURRENTLY"),
    "type": ('[AlterField("plant", "height", BigIntegerField())]', "changes integer to bigint"),
    "shorter": ('[AlterField("plant", "name", CharField(max_length=5))]', "varchar(10) to varchar(5)"),
    "check by type": ('[AlterField("plant", "height", PositiveIntegerField())]', "AddConstraintNotValid"),
    "constraint of a key": ('[AlterField("plant", "bed", ForeignKey("garden.Bed", CASCADE))]', "NOT VALID"),
    "unique constraint": (
        '[AddConstraint("plant", UniqueConstraint(fields=["name"], name="u"))]',
        "UNIQUE INDEX CONCURRENTLY",
    ),
    "unique together": ('[AlterUniqueTogether("plant", {("name", "note")})]', "UNIQUE INDEX CONCURRENTLY"),
    "in database_operations": (
        '[SeparateDatabaseAndState([AddIndex("plant", Index(fields=["name"], name="by_name"))])]',
        "AddIndexConcurrently",
    ),
    "renamed before": (
        '[RenameModel("Plant", "Herb"), AddIndex("herb", Index(fields=["name"], name="by_name"))]',
        "AddIndexConcurrently",
    ),
}


@pytest.mark.parametrize("case", LOCKING)
def test_locks_on_a_large_table_are_reported(many: Verdicts, case: str) -> None:
    operations, expected = LOCKING[case]
    warning = many[operations][-1]
    assert expected in warning
    assert f"garden_plant (about {ROWS:,} rows, " in warning


@pytest.mark.parametrize("case", LOCKING)
def test_locks_on_a_small_table_are_not(few: Verdicts, case: str) -> None:
    assert not [warning for warning in few[LOCKING[case][0]] if "RenameModel" not in warning]


HARMLESS = [
    '[AddField("plant", "a", IntegerField(null=True))]',
    '[AddField("plant", "a", ManyToManyField("garden.Tool"))]',
    '[AddField("plant", "a", ForeignKey("garden.Tool", CASCADE, null=True, db_index=False))]',
    '[AlterField("plant", "name", CharField(max_length=20))]',
    '[AlterField("plant", "name", TextField())]',
    '[AlterField("plant", "height", IntegerField(null=True, help_text="cm"))]',
    '[CreateModel("Pot", [("id", BigAutoField(primary_key=True)), ("plant", ForeignKey("garden.Plant", CASCADE))])]',
    '[CreateModel("Pot", [("id", BigAutoField(primary_key=True))]), DeleteModel("Pot")]',
    '[SeparateDatabaseAndState(state_operations=[RemoveField("plant", "note")])]',
    '[AddConstraintNotValid("plant", CheckConstraint(name="c", **{CHECK: Q(height__gt=0)}))]',
    '[RunSQL("CREATE UNIQUE INDEX CONCURRENTLY u ON t (a); ALTER TABLE t ADD CONSTRAINT u UNIQUE USING INDEX u")]',
    "[RunSQL(RunSQL.noop), RunPython(RunPython.noop)]",
]


@pytest.mark.parametrize("operations", HARMLESS)
def test_harmless_operations_are_not_reported(many: Verdicts, operations: str) -> None:
    assert many[operations] == []


# Whether the default is volatile.
DEFAULTS = {
    '[AddField("plant", "a", IntegerField(db_default=0))]': False,
    '[AddField("plant", "a", DateTimeField(db_default=Now()))]': False,
    '[AddField("plant", "a", FloatField(db_default=Random()))]': True,
    '[AddField("plant", "a", UUIDField(db_default=RandomUUID()))]': True,
}
if django.VERSION < (5, 0):
    DEFAULTS = {}


@pytest.mark.parametrize("operations", DEFAULTS)
def test_volatile_defaults_of_the_database(many: Verdicts, operations: str) -> None:
    assert ["rewritten" in warning for warning in many[operations]] == [True] * DEFAULTS[operations]


# --- operations that break the running release, whatever the size of the table

BREAKING = {
    '[RemoveField("tool", "name")]': "Remove it in two releases",
    '[DeleteModel("Tool")]': "drops garden_tool",
    '[RenameField("tool", "name", "title")]': "renames name to title",
    '[RenameModel("Tool", "Spade")]': 'db_table = "garden_tool"',
    '[AlterModelTable("tool", "tools")]': "renames the table garden_tool to tools",
    '[AddField("tool", "a", IntegerField(default=1))]': "INSERTs of the running release fail",
    '[AlterField("tool", "name", CharField(max_length=10, default=""))]': "where it still writes NULL",
    '[AlterField("tool", "name", CharField(max_length=10, null=True, db_column="title"))]': "renames the column name",
    '[RunSQL("DROP TABLE garden_tool")]': "cannot be judged",
    '[SeparateDatabaseAndState([RemoveField("tool", "name")])]': "RemoveField tool.name",
}


@pytest.mark.parametrize("operations", BREAKING)
def test_operations_that_break_the_running_release_are_reported(few: Verdicts, operations: str) -> None:
    [warning] = few[operations]
    assert BREAKING[operations] in warning


NOT_NULL = '[AlterField("plant", "note", CharField(max_length=10))]'
MOVE = "[RunPython(lambda apps, editor: None)]"
OWN = (
    "[type('Own', (migrations.operations.base.Operation,), "
    "{'state_forwards': lambda *_: None, 'database_forwards': lambda *_: None})()]"
)
ALL = [*(operations for operations, _ in LOCKING.values()), *HARMLESS, *DEFAULTS, *BREAKING, NOT_NULL, MOVE, OWN]


def test_not_null_scans_the_table(many: Verdicts, live: Project) -> None:
    assert "scans the whole table" in many[NOT_NULL][0]
    live.execute("ALTER TABLE garden_plant ADD CONSTRAINT c CHECK (note IS NOT NULL)")
    [warning] = judge(live, [NOT_NULL])[NOT_NULL]
    assert "scans the whole table" not in warning


def test_data_migration(many: Verdicts, few: Verdicts) -> None:
    assert "cannot be judged" in many[MOVE][0]
    assert few[MOVE] == []


ADD = 'AddField("plant", "grown", IntegerField(null=True))'


@pytest.mark.parametrize(
    ("operations", "slow"),
    [
        (f"[{ADD}, RunPython(fill)]", "fill"),
        (f"[{ADD}, RunSQL('UPDATE garden_plant SET grown = 1')]", "custom SQL"),
        (f"[SeparateDatabaseAndState([{ADD}], []), RunPython(fill)]", "fill"),
        (f"[RunPython(fill), {ADD}]", ""),
        (f"[{ADD}, RunPython(RunPython.noop), RunSQL('COMMENT ON TABLE garden_plant IS NULL')]", ""),
        ("[CreateModel('Leaf', [('id', BigAutoField(primary_key=True))]), RunPython(fill)]", ""),
    ],
)
def test_code_under_the_lock_of_a_schema_change(project: Project, operations: str, slow: str) -> None:
    """On a table of any size: the code may take any time."""
    project.migrate()
    define = "def fill(apps, schema_editor):\n    pass\n\n\nclass Migration"
    for atomic in (True, False):
        project.write("0002_next", operations, "0001_first", atomic=atomic)
        file = project.folder / "garden/migrations/0002_next.py"
        file.write_text(file.read_text().replace("class Migration", define, 1))
        found = [text for text in project.ask()["warnings"] if "in the same transaction" in text]
        if slow and atomic:
            [warning] = found
            expected = f"garden.0002_next: AddField locks garden_plant, then {slow} in the same transaction."
            assert warning.startswith(expected)
            assert "Split it" in warning
        else:
            assert found == []


def test_a_custom_operation(few: Verdicts) -> None:
    assert "cannot be judged" in few[OWN][0]


def test_not_atomic(project: Project) -> None:
    project.migrate()
    operations = '[AddIndexConcurrently("tool", Index(fields=["name"], name="by_name"))]'
    [warning] = judge(project, [operations], atomic=False)[operations]
    assert "an invalid index remains" in warning


def test_options_that_override_the_lock_timeout(live: Project) -> None:
    live.write("0002_next", "[]", "0001_first")
    [warning] = live.ask(OPTIONS="-c search_path=public")["warnings"]
    assert "no lock timeout" in warning
    assert live.ask(OPTIONS="-c lock_timeout=3s")["warnings"] == []
