"""Review pending migrations: which operations lock or rewrite a large table, or remove what the running release uses.

The sizes of tables are PostgreSQL's estimates; on another database no table counts as large.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# A lock on a table with fewer rows is too short to matter.
LARGE_ROWS = 10_000

# These wait for open transactions, but block neither reads nor writes.
CONCURRENT = {"AddIndexConcurrently", "RemoveIndexConcurrently", "ValidateConstraint"}

# SQL that holds no lock for long and removes nothing; other SQL in RunSQL cannot be judged.
HARMLESS_SQL = re.compile(
    r"""\s*( (CREATE\s+(UNIQUE\s+)?|DROP\s+|RE)INDEX\s+CONCURRENTLY\b
           | ALTER\s+TABLE\s.*\sADD\s.*\s(USING\s+INDEX\b|NOT\s+VALID\s*$)
           | ALTER\s+TABLE\s.*\sVALIDATE\s+CONSTRAINT\b
           | (ANALYZE|COMMENT\s+ON|SET)\b | $ )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# Types whose length PostgreSQL increases without rewriting the rows.
LENGTHS = re.compile(r"(?:varchar|numeric|varbit)\(([\d, ]+)\)")


def label(migration: Any) -> str:
    return f"{migration.app_label}.{migration.name}"


def is_concurrent(migration: Any) -> bool:
    return bool(migration.operations) and all(
        CONCURRENT & {base.__name__ for base in type(operation).__mro__} for operation in migration.operations
    )


@dataclass(frozen=True)
class Table:
    """A table in the database; `rows` and `size` (bytes) are estimates."""

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
    """One operation, and the project's models before and after it, rendered only when needed, since that takes long."""

    app: str
    operation: Any
    table: Table | None
    before: Any
    after: Any

    def field(self, name: str, *, after: bool = False) -> Any:
        state = self.after if after else self.before
        return state.apps.get_model(self.app, self.operation.model_name)._meta.get_field(name)


# The problem, and what to do instead.
Finding = tuple[str, str]


class Review:
    """Reports operations that rewrite or lock a large table, or remove what the running release uses."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.tables = read_tables(connection)
        # New name of a renamed table -> its name in the database.
        self.renamed: dict[str, str] = {}

    def of(self, pending: list[Any], plan: list[Any]) -> list[str]:
        """Return the warnings for `pending`; `plan` has every migration from the first, which gives the models."""
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
            remains = "an invalid index" if is_concurrent(migration) else "what was done before"
            yield (
                f"{name} is not atomic: if it fails half way, {remains} remains.\n"
                "In that case inspect the table and repair it by hand before the next attempt."
            )
        if migration.atomic:
            yield from self.slow_under_lock(migration, state)
        yield from self.operations(name, migration.app_label, migration.operations, state)

    def slow_under_lock(self, migration: Any, state: Any) -> Iterator[str]:
        """Report code or custom SQL that runs while the transaction holds the lock of a schema change before it."""
        locked = ""
        for operation in flatten(migration.operations):
            kind, model = type(operation).__name__, getattr(operation, "model_name", "")
            model = model or getattr(operation, "old_name", "") or getattr(operation, "name", "")
            if is_a(operation, "RunPython") or is_a(operation, "RunSQL"):
                if locked and not is_quick(operation):
                    code = getattr(getattr(operation, "code", None), "__name__", "") or "custom SQL"
                    yield f"{label(migration)}: {locked}, then {code} in the same transaction. {UNDER_LOCK}"
                    return
            elif not locked and not HARMLESS & {base.__name__ for base in type(operation).__mro__}:
                table = self.table_of(state, migration.app_label, model) if isinstance(model, str) and model else None
                locked = f"{kind} locks {table.name}" if table else ""

    def operations(self, name: str, app: str, operations: list[Any], state: Any) -> Iterator[str]:
        """Review the operations in order; `state` is updated by each."""
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
                findings = [(f"cannot be judged ({type(error).__name__}: {error})", "Review it before you continue.")]
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
            yield "a custom operation, which cannot be judged", "Check which locks it takes before you continue."

    # -- tables

    def connection_options(self) -> list[str]:
        options = str(self.connection.settings_dict.get("OPTIONS", {}).get("options", ""))
        if self.connection.vendor != "postgresql" or not options or "lock_timeout" in options:
            return []
        return [
            f'DATABASES has OPTIONS["options"] = "{options}", which overrides PGOPTIONS: no lock timeout.\n'
            "Set such options for the role (ALTER ROLE ... SET) or in PGOPTIONS instead."
        ]

    def table_name(self, state: Any, app: str, model: str) -> str:
        """Return the table name of a model; "" when it has no table of its own or is in another database."""
        from django.db import router
        from django.db.backends.utils import truncate_name

        options = state.models[app, model.lower()].options
        if options.get("proxy") or not options.get("managed", True):
            return ""
        if not router.allow_migrate(self.connection.alias, app, model_name=model.lower()):
            return ""
        return options.get("db_table") or truncate_name(f"{app}_{model.lower()}", self.connection.ops.max_name_length())

    def table_of(self, state: Any, app: str, model: str) -> Table | None:
        """Return the table of a model in the database, if it exists."""
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
                yield "rewrites the table, which blocks reads and writes until it is done", MAINTENANCE
            return
        if not field.null and not has_database_default(field):
            yield (
                "NOT NULL without a default in the database: INSERTs of the running release fail after the migration",
                "Set db_default=... (Django 5.0), or use null=True now and NOT NULL in the next release.",
            )
        if not step.table.is_large:
            return
        if has_database_default(field) and self.is_volatile(field):
            yield (
                "its db_default is volatile: the table is rewritten, which blocks reads and writes until it is done",
                "Add it with null=True, fill it in batches, and set db_default in a later migration (AlterField).",
            )
        if check_of(field, self.connection):
            yield f"its check ({check_of(field, self.connection)}) scans the whole table under a lock", NOT_VALID
        yield from self.index_of(field)

    def index_of(self, field: Any) -> Iterator[Finding]:
        if field.unique:
            yield "builds a unique index, which blocks reads and writes until it is done", UNIQUE
        elif field.db_index:
            yield (
                "builds an index, which blocks writes until it is done",
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
                f"changes {types[0]} to {types[1]}: rewrites or scans the table, which blocks reads and writes",
                "Add a second column, write both, copy in batches, then read the new one: one release for each.",
            )
        if old.null and not new.null:
            scan = large and not self.never_null(step.table.name, new.column)
            how = "scans the whole table under a lock, and " if scan else ""
            yield (
                f"{how}NOT NULL: the running release fails where it still writes NULL",
                "First a release that writes no NULL, then AddConstraintNotValid and ValidateConstraint (IS NOT NULL).",
            )
        if not large:
            return
        if (new.unique and not old.unique) or (new.db_index and not (old.db_index or old.unique)):
            yield from self.index_of(new)
        if points_at(new) and points_at(new) != points_at(old):
            yield (
                f"adds a foreign key to {points_at(new)}: scans both tables, which blocks writes until it is done",
                "Use db_constraint=False and RunSQL: ADD CONSTRAINT ... NOT VALID; later VALIDATE CONSTRAINT.",
            )
        check = check_of(new, self.connection)
        if check and check != check_of(old, self.connection):
            yield f"adds the check ({check}): the whole table is scanned under a lock", NOT_VALID

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
            yield f"renames {old.column} to {new.column}: the running release uses the old name", RENAME

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
                f"renames the table {old} to {new}: the running release uses the old name",
                f'Keep the table: db_table = "{old}" in the model\'s Meta, in the same migration.',
            )

    # -- indexes and constraints

    def judge_AddIndex(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if step.table and step.table.is_large:
            yield (
                "builds an index, which blocks writes until it is done",
                "Use AddIndexConcurrently (django.contrib.postgres) in a migration of its own with atomic = False.",
            )

    def judge_AddConstraint(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if not step.table or not step.table.is_large:
            return
        kind = type(step.operation.constraint).__name__
        if kind == "CheckConstraint":
            yield "scans the whole table under a lock", NOT_VALID
        elif kind == "UniqueConstraint":
            yield "builds a unique index, which blocks writes until it is done", UNIQUE
        else:
            yield f"{kind}: the whole table is scanned, which blocks writes until it is done", MAINTENANCE

    def judge_AlterUniqueTogether(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        yield from self.together(step, "unique_together", "builds a unique index", UNIQUE)

    def judge_AlterIndexTogether(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        instead = "Use AddIndexConcurrently in a migration of its own with atomic = False."
        yield from self.together(step, "index_together", "builds an index", instead)

    def together(self, step: Step, option: str, what: str, instead: str) -> Iterator[Finding]:
        table = self.table_of(step.before, step.app, step.operation.name)
        old = step.before.models[step.app, step.operation.name_lower].options.get(option) or ()
        if table and table.is_large and {tuple(fields) for fields in step.operation.option_value or ()} - set(old):
            yield f"{what} on {table}, which blocks writes until it is done", instead

    # -- code of the project

    def judge_RunSQL(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        if not is_quick(step.operation):
            yield (
                "custom SQL, which cannot be judged",
                "Check which locks it takes, and that it removes nothing the running release uses.",
            )

    def judge_RunPython(self, step: Step) -> Iterator[Finding]:  # noqa: N802
        code = getattr(step.operation.code, "__name__", "code")
        if not is_quick(step.operation) and any(table.is_large for table in self.tables.values()):
            yield (
                f"{code}() cannot be judged; rows that it changes stay locked until the migration ends",
                "Change large tables in batches: in a command or a task, or use atomic = False and a commit per batch.",
            )

    # -- queries

    def never_null(self, table: str, column: str) -> bool:
        """Return whether a valid check constraint excludes NULL, so that PostgreSQL need not scan the table."""
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
        """Return whether the database default is volatile, as random() is and now() is not."""
        if self.connection.vendor != "postgresql":
            return False
        with self.connection.schema_editor(collect_sql=True) as editor:
            sql, _ = editor.db_default_sql(field)
        functions = [name.lower() for name in re.findall(r'(\w+)"?\s*\(', sql)]
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_proc WHERE provolatile = 'v' AND proname = ANY(%s)", [functions])
            return cursor.fetchone() is not None


UNDER_LOCK = (
    "Until it ends, requests and tasks that use the table wait.\n"
    "Split it: the schema change in one migration, the code in the next one."
)
MAINTENANCE = "Do it in a maintenance window."
REMOVE = "Remove it in two releases: first from the code (SeparateDatabaseAndState, state_operations), then here."
RENAME = "Keep the column's name with db_column, or add a new column and migrate to it over two releases."
NOT_VALID = "Use AddConstraintNotValid (django.contrib.postgres) now, and ValidateConstraint in a later migration."
UNIQUE = (
    "Use RunSQL with CREATE UNIQUE INDEX CONCURRENTLY in a migration of its own with atomic = False, "
    "with this operation in state_operations."
)

# Operations of Django that hold no lock for long and remove nothing.
HARMLESS = CONCURRENT | {
    *("AddConstraintNotValid", "AlterConstraint", "AlterModelManagers", "AlterModelOptions", "AlterModelTableComment"),
    *("AlterOrderWithRespectTo", "CollationOperation", "CreateExtension", "CreateModel", "RemoveConstraint"),
    *("RemoveIndex", "RenameIndex"),
}


def flatten(operations: list[Any]) -> Iterator[Any]:
    """Return the operations that change the database, in order."""
    for operation in operations:
        if is_a(operation, "SeparateDatabaseAndState"):
            yield from flatten(operation.database_operations)
        else:
            yield operation


def is_quick(operation: Any) -> bool:
    """Return whether a RunPython or RunSQL does nothing, or only what holds no lock for long."""
    if is_a(operation, "RunPython"):
        return getattr(operation.code, "__name__", "") == "noop"
    sql = operation.sql
    parts = [sql] if isinstance(sql, str) else [part if isinstance(part, str) else part[0] for part in sql]
    statements = [re.sub(r"--.*", "", statement) for part in parts for statement in part.split(";")]
    return all(HARMLESS_SQL.match(statement) for statement in statements)


def is_a(operation: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(operation).__mro__)


def read_tables(connection: Any) -> dict[str, Table]:
    """Return every table of the database by name, with the estimates of PostgreSQL's statistics."""
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            return {name: Table(name, 0, 0) for name in connection.introspection.table_names(cursor)}
    with connection.cursor() as cursor:
        # A table that was never analyzed has no estimate: assume 100 bytes per row.
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
    """Return the table that a foreign key with a constraint refers to, or ""."""
    if field.remote_field and getattr(field, "db_constraint", False):
        return field.remote_field.model._meta.db_table
    return ""


def changes_rows(old: str, new: str) -> bool:
    """Return whether PostgreSQL has to rewrite or check a column's rows to change its type."""
    if old == new or (old.startswith("varchar") and new in ("text", "varchar")) or (old, new) == ("cidr", "inet"):
        return False
    lengths = [LENGTHS.fullmatch(kind) for kind in (old, new)]
    if not all(lengths) or old.partition("(")[0] != new.partition("(")[0]:
        return not (old == "text" and new == "varchar")
    (before, *old_scale), (after, *new_scale) = ([int(number) for number in match[1].split(",")] for match in lengths)
    return after < before or old_scale != new_scale
