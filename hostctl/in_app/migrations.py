"""What a release's migrations would do to the database; run by the release's own interpreter.

    migrations()  which wait, which the database has and the release lacks, which would hurt while the site is up, and
                  the sessions that would keep them waiting

Reads only. The sizes of tables are PostgreSQL's estimates. Works with Django 4.2 and later; on another database than
PostgreSQL nothing is said of locks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# A lock on a table of fewer rows is over before anybody notices.
LARGE_ROWS = 10_000
IDLE_SECONDS = 60

# These wait for the transactions that are open, but nobody waits for them.
CONCURRENT = {"AddIndexConcurrently", "RemoveIndexConcurrently", "ValidateConstraint"}

# SQL that holds no lock for long and takes nothing away; all else in RunSQL cannot be judged.
HARMLESS_SQL = re.compile(
    r"""\s*( (CREATE\s+(UNIQUE\s+)?|DROP\s+|RE)INDEX\s+CONCURRENTLY\b
           | ALTER\s+TABLE\s.*\sADD\s.*\s(USING\s+INDEX\b|NOT\s+VALID\s*$)
           | ALTER\s+TABLE\s.*\sVALIDATE\s+CONSTRAINT\b
           | (ANALYZE|COMMENT\s+ON|SET)\b | $ )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# Types that PostgreSQL turns into another without touching the rows, as long as the length only grows.
LENGTHS = re.compile(r"(?:varchar|numeric|varbit)\(([\d, ]+)\)")


def migrations(targets: list[str] | None = None) -> dict[str, Any]:
    """Compare the release's migrations with the database's, and look through those that wait.

    `targets` are names like "shop.0004_slug"; without them, everything that the release has.

        pending     what would be applied, in order
        known       what the release has, including what its squashed migrations replace
        unknown     applied, later than all that the release knows of the same app: it is older than the database
        orphaned    applied, and of no consequence: its app is gone, or it was squashed and deleted since
        not_atomic  those of `pending` that do not run in one transaction
        concurrent  those of `not_atomic` that only do what PostgreSQL does beside other work
        warnings    sentences, of one or two lines each
        idle        sessions idle in transaction for over a minute: pid, user, seconds, application
    """
    import django
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    django.setup()
    try:
        executor = MigrationExecutor(connection)
        loader = executor.loader
        goals = [tuple(target.split(".", 1)) for target in targets] if targets else loader.graph.leaf_nodes()
        pending = [migration for migration, backwards in executor.migration_plan(goals) if not backwards]
        known = set(loader.disk_migrations)
        for migration in loader.disk_migrations.values():
            known |= {tuple(key) for key in migration.replaces}
        rows = applied(executor.recorder)
        unknown, orphaned = strangers(rows, known, loader.migrated_apps)
        not_atomic = [migration for migration in pending if not migration.atomic]
        # Whoever has nothing in the database yet has nothing that could suffer.
        steps = executor.migration_plan(goals, clean_start=True) if rows and pending else []
        return {
            "pending": [label(migration) for migration in pending],
            "known": sorted(".".join(key) for key in known),
            "unknown": unknown,
            "orphaned": orphaned,
            "not_atomic": [label(migration) for migration in not_atomic],
            "concurrent": [label(migration) for migration in not_atomic if is_concurrent(migration)],
            "warnings": Review(connection).of(pending, [migration for migration, _ in steps]),
            "idle": idle_sessions(connection),
        }
    finally:
        connection.close()


def label(migration: Any) -> str:
    return f"{migration.app_label}.{migration.name}"


def is_concurrent(migration: Any) -> bool:
    return bool(migration.operations) and all(
        CONCURRENT & {base.__name__ for base in type(operation).__mro__} for operation in migration.operations
    )


def applied(recorder: Any) -> list[tuple[str, str]]:
    """What the database has noted as applied, the oldest first."""
    if not recorder.has_table():
        return []
    return list(recorder.migration_qs.order_by("id").values_list("app", "name"))


def strangers(
    rows: list[tuple[str, str]], known: set[tuple[str, str]], apps: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Split what is applied and not known into what makes the release older than the database, and what does not.

    A row that is older than one the release knows of the same app is left from a squash (`migrate --prune` removes it).
    """
    latest = {app: place for place, (app, name) in enumerate(rows) if (app, name) in known}
    unknown, orphaned = [], []
    for place, (app, name) in enumerate(rows):
        if (app, name) not in known:
            (unknown if app in apps and place > latest.get(app, -1) else orphaned).append(f"{app}.{name}")
    return unknown, orphaned


def idle_sessions(connection: Any) -> list[dict[str, Any]]:
    """The sessions of this database that sit in an open transaction, as far as the role may see them."""
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT pid, usename, extract(epoch FROM clock_timestamp() - state_change)::int, application_name
                 FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%%'
                  AND state_change < clock_timestamp() - make_interval(secs => %s)
                ORDER BY state_change""",
            [IDLE_SECONDS],
        )
        return [dict(zip(("pid", "user", "seconds", "application"), row, strict=True)) for row in cursor.fetchall()]


# --- looking through the operations


@dataclass(frozen=True)
class Table:
    """A table as it is in the database now; `rows` and `size` (bytes) are estimates."""

    name: str
    rows: int
    size: int

    @property
    def is_large(self) -> bool:
        return self.rows >= LARGE_ROWS

    def __str__(self) -> str:
        if not self.is_large:
            return self.name
        return f"{self.name} (about {self.rows:,} rows, {max(1, self.size >> 20):,} MB)"


@dataclass(frozen=True)
class Step:
    """One operation, and the project's models before and after it; rendering those takes long, so not before needed."""

    app: str
    operation: Any
    table: Table | None
    before: Any
    after: Any

    def field(self, name: str, *, after: bool = False) -> Any:
        state = self.after if after else self.before
        return state.apps.get_model(self.app, self.operation.model_name)._meta.get_field(name)


# What is the matter, and what to do instead.
Finding = tuple[str, str]


class Review:
    """Names the operations that rewrite or lock a large table, or take away what the running release uses."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.tables = read_tables(connection)
        # A table renamed on the way is still found by its name in the database.
        self.renamed: dict[str, str] = {}

    def of(self, pending: list[Any], plan: list[Any]) -> list[str]:
        """The warnings for `pending`; `plan` is every migration from the first on, so that the models are known."""
        from django.db.migrations.state import ProjectState

        if not plan:
            return []
        found: dict[str, list[str]] = {}
        waiting = {label(migration) for migration in pending}
        state = ProjectState()
        for migration in plan:
            if label(migration) in waiting:
                found[label(migration)] = list(self.migration(migration, state))
            else:
                for operation in migration.operations:
                    operation.state_forwards(migration.app_label, state)
        warnings = self.connection_options() if pending else []
        return warnings + [warning for migration in pending for warning in found.get(label(migration), [])]

    def migration(self, migration: Any, state: Any) -> Iterator[str]:
        name = label(migration)
        if not migration.atomic and migration.operations:
            remains = "an invalid index" if is_concurrent(migration) else "what came before"
            yield (
                f"{name} is not atomic: if it fails half way, {remains} stays.\n"
                "Then look at the table and put it right by hand before the next attempt."
            )
        yield from self.operations(name, migration.app_label, migration.operations, state)

    def operations(self, name: str, app: str, operations: list[Any], state: Any) -> Iterator[str]:
        """Judge the operations one by one; `state` is carried forward."""
        for operation in operations:
            before = state.clone()
            if is_a(operation, "SeparateDatabaseAndState"):
                yield from self.operations(name, app, operation.database_operations, state.clone())
            operation.state_forwards(app, state)
            kind, model = type(operation).__name__, getattr(operation, "model_name", "")
            table = self.table_of(before, app, model) if model else None
            step = Step(app, operation, table, before, state.clone())
            try:
                findings = list(self.findings(step))
            except Exception as error:
                findings = [(f"cannot be judged ({type(error).__name__}: {error})", "Look at it before you go on.")]
            what = f"{name}: {kind}{f' {model}' if model else ''}"
            what += f".{operation.name}" if model and getattr(operation, "name", None) else ""
            for problem, instead in findings:
                yield f"{what}{f' on {table}' if table else ''}: {problem}.\n{instead}"

    def findings(self, step: Step) -> Iterator[Finding]:
        for base in type(step.operation).__mro__:
            if base.__module__.startswith("django."):
                if base.__name__ == "Operation":
                    break
                judge: Callable[[Step], Iterator[Finding]] | None = getattr(self, f"judge_{base.__name__}", None)
                if judge:
                    yield from judge(step)
                    return
                if base.__name__ in HARMLESS:
                    return
        if not is_a(step.operation, "SeparateDatabaseAndState"):
            yield "an operation that cannot be judged from here", "Look at its locks before you go on."

    # -- tables

    def connection_options(self) -> list[str]:
        options = str(self.connection.settings_dict.get("OPTIONS", {}).get("options", ""))
        if self.connection.vendor != "postgresql" or not options or "lock_timeout" in options:
            return []
        return [
            f'DATABASES has OPTIONS["options"] = "{options}", which keeps PGOPTIONS out: no lock timeout.\n'
            "Give such settings to the role (ALTER ROLE ... SET) or in PGOPTIONS instead."
        ]

    def table_name(self, state: Any, app: str, model: str) -> str:
        """What Django calls the table of a model; "" when it has none of its own or another database has it."""
        from django.db import router
        from django.db.backends.utils import truncate_name

        options = state.models[app, model.lower()].options
        if options.get("proxy") or not options.get("managed", True):
            return ""
        if not router.allow_migrate(self.connection.alias, app, model_name=model.lower()):
            return ""
        return options.get("db_table") or truncate_name(f"{app}_{model.lower()}", self.connection.ops.max_name_length())

    def table_of(self, state: Any, app: str, model: str) -> Table | None:
        """The table of a model in the database as it is now, where there is one."""
        if (app, model.lower()) not in state.models:
            return None
        name = self.table_name(state, app, model)
        return self.tables.get(self.renamed.get(name, name))

    # -- fields

    def judge_AddField(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table is None:
            return
        field = step.field(step.operation.name, after=True)
        kind = field.db_type(self.connection)
        if kind is None:
            return
        if getattr(field, "generated", False):
            if step.table.is_large and getattr(field, "db_persist", True):
                yield "rewrites the table, and nothing reads or writes it meanwhile", MAINTENANCE
            return
        if not field.null and not has_database_default(field):
            yield (
                "NOT NULL without a default in the database: the running release's INSERTs fail from the migration on",
                "Give it db_default=... (Django 5.0), or null=True now and NOT NULL in the release after.",
            )
        if not step.table.is_large:
            return
        if has_database_default(field) and self.is_volatile(field):
            yield (
                "its db_default differs by row: the table is rewritten, and nothing reads or writes it meanwhile",
                "Add it with null=True, fill it in portions, and set db_default in a later migration (AlterField).",
            )
        if check_of(field, self.connection):
            yield f"its check ({check_of(field, self.connection)}) reads the whole table under a lock", NOT_VALID
        yield from self.index_of(field)

    def index_of(self, field: Any) -> Iterator[Finding]:
        if field.unique:
            yield "builds a unique index, and nothing reads or writes the table meanwhile", UNIQUE
        elif field.db_index:
            yield (
                "builds an index, and nothing writes to the table meanwhile",
                "Use db_index=False, and AddIndexConcurrently in a migration of its own with atomic = False.",
            )

    def judge_AlterField(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table is None:
            return
        old, new = step.field(step.operation.name), step.field(step.operation.name, after=True)
        types = old.db_type(self.connection), new.db_type(self.connection)
        if None in types:
            return
        if old.column != new.column:
            yield f"renames the column {old.column} to {new.column}, which the running release uses", RENAME
        large = step.table.is_large
        if large and (changes_rows(*types) or collation(old) != collation(new)):
            yield (
                f"turns {types[0]} into {types[1]}: the table is rewritten or read whole, unusable meanwhile",
                "Add a second column, write both, copy in portions, then read the new one: a release for each.",
            )
        if old.null and not new.null:
            scan = large and not self.never_null(step.table.name, new.column)
            how = "reads the whole table under a lock, and " if scan else ""
            yield (
                f"{how}NOT NULL from now on: the running release fails where it still writes NULL",
                "First a release without NULL, AddConstraintNotValid and ValidateConstraint (IS NOT NULL), then this.",
            )
        if not large:
            return
        if (new.unique and not old.unique) or (new.db_index and not (old.db_index or old.unique)):
            yield from self.index_of(new)
        if points_at(new) and points_at(new) != points_at(old):
            yield (
                f"adds a foreign key to {points_at(new)}: both tables are read, and nothing writes to them meanwhile",
                "Use db_constraint=False and RunSQL: ADD CONSTRAINT ... NOT VALID; later VALIDATE CONSTRAINT.",
            )
        check = check_of(new, self.connection)
        if check and check != check_of(old, self.connection):
            yield f"adds the check ({check}): the whole table is read under a lock", NOT_VALID

    def judge_RemoveField(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table is None:
            return
        field = step.field(step.operation.name)
        if field.many_to_many or field.db_type(self.connection) is not None:
            yield "the running release still uses it, and its data cannot be rolled back", REMOVE

    def judge_RenameField(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table is None:
            return
        old, new = step.field(step.operation.old_name), step.field(step.operation.new_name, after=True)
        if old.column != new.column:
            yield f"renames {old.column} to {new.column}: the running release knows the old name only", RENAME

    # -- models

    def judge_DeleteModel(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        table = self.table_of(step.before, step.app, step.operation.name)
        if table:
            yield f"drops {table}: the running release still uses it, and its data cannot be rolled back", REMOVE

    def judge_RenameModel(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        yield from self.renames(step, step.operation.old_name, step.operation.new_name)

    def judge_AlterModelTable(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        yield from self.renames(step, step.operation.name, step.operation.name)

    def renames(self, step: Step, old_model: str, new_model: str) -> Iterator[Finding]:
        old = self.table_name(step.before, step.app, old_model)
        new = self.table_name(step.after, step.app, new_model)
        table = self.table_of(step.before, step.app, old_model)
        if table and new and old != new:
            self.renamed[new] = table.name
            yield (
                f"renames the table {old} to {new}: the running release knows the old name only",
                f'Keep the table: db_table = "{old}" in the model\'s Meta, in the same migration.',
            )

    # -- indexes and constraints

    def judge_AddIndex(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table and step.table.is_large:
            yield (
                "builds an index, and nothing writes to the table meanwhile",
                "Use AddIndexConcurrently (django.contrib.postgres) in a migration of its own with atomic = False.",
            )

    def judge_AddConstraint(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if not step.table or not step.table.is_large:
            return
        kind = type(step.operation.constraint).__name__
        if kind == "CheckConstraint":
            yield "the whole table is read under a lock", NOT_VALID
        elif kind == "UniqueConstraint":
            yield "builds a unique index, and nothing writes to the table meanwhile", UNIQUE
        else:
            yield f"{kind}: the whole table is read, and nothing writes to it meanwhile", MAINTENANCE

    def judge_AlterUniqueTogether(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        yield from self.together(step, "unique_together", "builds a unique index", UNIQUE)

    def judge_AlterIndexTogether(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        instead = "Use AddIndexConcurrently in a migration of its own with atomic = False."
        yield from self.together(step, "index_together", "builds an index", instead)

    def together(self, step: Step, option: str, what: str, instead: str) -> Iterator[Finding]:
        table = self.table_of(step.before, step.app, step.operation.name)
        old = step.before.models[step.app, step.operation.name_lower].options.get(option) or ()
        if table and table.is_large and {tuple(fields) for fields in step.operation.option_value or ()} - set(old):
            yield f"{what} on {table}, and nothing writes to it meanwhile", instead

    # -- what the project wrote itself

    def judge_RunSQL(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        sql = step.operation.sql
        parts = [sql] if isinstance(sql, str) else [part if isinstance(part, str) else part[0] for part in sql]
        statements = [re.sub(r"--.*", "", statement) for part in parts for statement in part.split(";")]
        if not all(HARMLESS_SQL.match(statement) for statement in statements):
            yield (
                "SQL that cannot be judged from here",
                "Look at its locks, and what the running release still needs.",
            )

    def judge_RunPython(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        code = getattr(step.operation.code, "__name__", "code")
        if code != "noop" and any(table.is_large for table in self.tables.values()):
            yield (
                f"{code}() cannot be judged from here; rows that it changes stay locked until the migration is over",
                "Move much data in portions: a command or a task, or atomic = False and a commit for each portion.",
            )

    # -- questions to PostgreSQL

    def never_null(self, table: str, column: str) -> bool:
        """Whether a valid check says that the column is never NULL, which spares reading the table."""
        if self.connection.vendor != "postgresql":
            return False
        quote = self.connection.ops.quote_name
        with self.connection.cursor() as cursor:
            cursor.execute(
                """SELECT pg_get_constraintdef(oid) FROM pg_constraint
                    WHERE conrelid = to_regclass(%s) AND contype = 'c' AND convalidated""",
                [quote(table)],
            )
            checks = [row[0] for row in cursor.fetchall()]
        return any(check.replace('"', "") == f"CHECK (({column} IS NOT NULL))" for check in checks)

    def is_volatile(self, field: Any) -> bool:
        """Whether the database's default differs from row to row, as random() does and now() does not."""
        if self.connection.vendor != "postgresql":
            return False
        with self.connection.schema_editor(collect_sql=True) as editor:
            sql, _ = editor.db_default_sql(field)
        functions = [name.lower() for name in re.findall(r'(\w+)"?\s*\(', sql)]
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_proc WHERE provolatile = 'v' AND proname = ANY(%s)", [functions])
            return cursor.fetchone() is not None


MAINTENANCE = "Do it in a maintenance window."
REMOVE = "Remove it in two releases: first from the code (SeparateDatabaseAndState, state_operations), then here."
RENAME = "Keep the column's name with db_column, or add a new one and move over two releases."
NOT_VALID = "Use AddConstraintNotValid (django.contrib.postgres) now, and ValidateConstraint in a later migration."
UNIQUE = (
    "Use RunSQL with CREATE UNIQUE INDEX CONCURRENTLY in a migration of its own with atomic = False, "
    "this as its state_operations."
)

# Operations of Django's that hold no lock for long and take nothing away.
HARMLESS = CONCURRENT | {
    *("AddConstraintNotValid", "AlterConstraint", "AlterModelManagers", "AlterModelOptions", "AlterModelTableComment"),
    *("AlterOrderWithRespectTo", "CollationOperation", "CreateExtension", "CreateModel", "RemoveConstraint"),
    *("RemoveIndex", "RenameIndex"),
}


def is_a(operation: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(operation).__mro__)


def read_tables(connection: Any) -> dict[str, Table]:
    """Every table of the database by name, with the estimates of PostgreSQL's statistics."""
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            return {name: Table(name, 0, 0) for name in connection.introspection.table_names(cursor)}
    with connection.cursor() as cursor:
        # A table that was never analysed has no estimate: its size tells roughly.
        cursor.execute(
            """SELECT relname,
                      (CASE WHEN reltuples > 0 THEN reltuples ELSE pg_relation_size(oid) / 100 END)::bigint,
                      CASE WHEN reltuples > 0 THEN relpages::bigint * current_setting('block_size')::int
                           ELSE pg_relation_size(oid) END
                 FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)"""
        )
        return {name: Table(name, rows, size or 0) for name, rows, size in cursor.fetchall()}


def has_database_default(field: Any) -> bool:
    from django.db.models.fields import NOT_PROVIDED

    return getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED


def check_of(field: Any, connection: Any) -> str:
    return field.db_parameters(connection)["check"] or ""


def collation(field: Any) -> Any:
    return getattr(field, "db_collation", None)


def points_at(field: Any) -> str:
    """The table that a foreign key with a constraint refers to, or ""."""
    if field.remote_field and getattr(field, "db_constraint", False):
        return field.remote_field.model._meta.db_table
    return ""


def changes_rows(old: str, new: str) -> bool:
    """Whether PostgreSQL has to rewrite or check the rows of a column to turn it from one type into another."""
    if old == new or (old.startswith("varchar") and new in ("text", "varchar")) or (old, new) == ("cidr", "inet"):
        return False
    lengths = [LENGTHS.fullmatch(kind) for kind in (old, new)]
    if not all(lengths) or old.partition("(")[0] != new.partition("(")[0]:
        return not (old == "text" and new == "varchar")
    (before, *old_scale), (after, *new_scale) = ([int(number) for number in match[1].split(",")] for match in lengths)
    return after < before or old_scale != new_scale
