"""Create, compare and rename databases on this host's PostgreSQL, as its superuser.

The program switches to the system user postgres, as roles/postgresql does. A database that it creates has the settings
and privileges that roles/postgresql/templates/database.sql.j2 gives; a test keeps them equal.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .database import Database
from .settings import ReleaseError, tail

# The superuser calls no functions that a dump has put into `public`. (Stronger than ALTER DATABASE … SET.)
OPTIONS = "-c search_path=pg_catalog -c standard_conforming_strings=on"
# The comment of a database that an import has not completed. Others are never dropped.
UNFINISHED = "Unfinished import"
CREATE = f"""
CREATE DATABASE :"new" OWNER :"owner" TEMPLATE template0 STRATEGY file_copy
  ENCODING UTF8 LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8';
COMMENT ON DATABASE :"new" IS '{UNFINISHED}';
REVOKE ALL ON DATABASE :"new" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"new" TO :"runtime";
\\connect :"new"
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
 WHERE has_schema_privilege('public', 'public', 'CREATE') \\gexec
SELECT format('GRANT USAGE, CREATE ON SCHEMA public TO %I', :'owner')
 WHERE NOT has_schema_privilege(:'owner', 'public', 'CREATE') \\gexec
SELECT format('GRANT USAGE ON SCHEMA public TO %I', :'runtime')
 WHERE NOT has_schema_privilege(:'runtime', 'public', 'USAGE') \\gexec
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"runtime";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public
  GRANT SELECT, USAGE, UPDATE ON SEQUENCES TO :"runtime";
"""
# A trusted extension is created by the owner, as a migration would create it.
EXTENSION = """
SELECT format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION %I', :'schema', :'owner')
 WHERE :'schema' NOT IN ('public', 'pg_catalog') \\gexec
SELECT format('SET ROLE %I', :'owner') WHERE :'by_owner' = 'yes' \\gexec
CREATE EXTENSION IF NOT EXISTS :"extension" WITH SCHEMA :"schema" CASCADE;
RESET ROLE;
SELECT format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I', oid::regclass, :'owner')
  FROM pg_class JOIN pg_depend ON classid = 'pg_class'::regclass AND objid = oid AND deptype = 'e'
 WHERE relkind IN ('r', 'p') AND NOT has_table_privilege(:'owner', oid, 'INSERT') \\gexec
"""
# Of schemas and objects that are neither PostgreSQL's nor an extension's.
SCHEMAS = """
SELECT oid, nspname FROM pg_namespace
 WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_namespace'::regclass AND objid = pg_namespace.oid
                      AND deptype = 'e')
"""
# What roles/postgresql grants in the schema public, in each schema.
GRANT = f"""
WITH schemas AS ({SCHEMAS})
SELECT format(statement, nspname, :'runtime', :'owner')
  FROM schemas, unnest(ARRAY[
         'GRANT USAGE ON SCHEMA %1$I TO %2$I',
         'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO %2$I',
         'GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA %1$I TO %2$I',
         'ALTER DEFAULT PRIVILEGES FOR ROLE %3$I IN SCHEMA %1$I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %2$I',
         'ALTER DEFAULT PRIVILEGES FOR ROLE %3$I IN SCHEMA %1$I GRANT SELECT, USAGE, UPDATE ON SEQUENCES TO %2$I'
       ]) AS statement
 WHERE nspname <> 'public' OR statement ~ '^GRANT SELECT' \\gexec
SELECT format('GRANT SELECT, UPDATE ON LARGE OBJECT %s TO %I', oid, :'runtime') FROM pg_largeobject_metadata \\gexec
"""
FOREIGN = f"""
WITH schemas AS ({SCHEMAS}), objects AS (
       SELECT 'pg_class'::regclass AS class, oid, relnamespace AS namespace, relowner AS owner, relname AS name
         FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
 UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, proowner, proname FROM pg_proc
 UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace, typowner, typname
             FROM pg_type WHERE typtype IN ('d', 'e', 'r')
 UNION ALL SELECT 'pg_namespace'::regclass, oid, oid, nspowner, nspname FROM pg_namespace WHERE nspname <> 'public')
SELECT schemas.nspname || '.' || objects.name AS name, pg_get_userbyid(owner) AS owner
  FROM objects JOIN schemas ON schemas.oid = namespace
 WHERE pg_get_userbyid(owner) <> '%(owner)s'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = class AND objid = objects.oid AND deptype = 'e')
"""
DENIED = f"""
WITH schemas AS ({SCHEMAS})
SELECT schemas.nspname || '.' || relname AS name FROM pg_class JOIN schemas ON schemas.oid = relnamespace
 WHERE CASE WHEN relkind = 'S' THEN NOT has_sequence_privilege('%(runtime)s', pg_class.oid, 'USAGE')
            WHEN relkind IN ('r', 'p', 'v', 'm', 'f') THEN
                 NOT has_table_privilege('%(runtime)s', pg_class.oid, 'SELECT')
              OR NOT has_table_privilege('%(runtime)s', pg_class.oid, 'INSERT')
              OR NOT has_table_privilege('%(runtime)s', pg_class.oid, 'UPDATE')
              OR NOT has_table_privilege('%(runtime)s', pg_class.oid, 'DELETE') END
"""
TABLES = f"""
WITH schemas AS ({SCHEMAS})
SELECT format('%I.%I', schemas.nspname, relname) AS name
  FROM pg_class JOIN schemas ON schemas.oid = relnamespace
 WHERE relkind = 'r' AND NOT EXISTS (SELECT FROM pg_depend
                                      WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
 ORDER BY 1
"""
# In one transaction: a killed program leaves either both names or none changed.
RENAME = """
SELECT format('SELECT pg_terminate_backend(%s)', pid) FROM pg_stat_activity
 WHERE datname IN (:'present', :'new') AND pid <> pg_backend_pid() \\gexec
BEGIN;
ALTER DATABASE :"present" RENAME TO :"aside";
ALTER DATABASE :"new" RENAME TO :"present";
COMMIT;
"""


@dataclass(frozen=True)
class Names:
    """The database of the application, its owner, and the role that the application's login roles belong to."""

    database: str
    owner: str
    runtime: str


class DatabaseServer:
    """PostgreSQL on this host."""

    account = "postgres"

    def __init__(self, database: Database, names: Names, connection: Mapping[str, str] | None = None) -> None:
        self.programs = database.programs
        self.names = names
        port = database.connection.get("PGPORT", "")
        self.connection = dict(connection or {}) | ({"PGPORT": port} if port else {})

    def run(self, script: str, database: str = "postgres", **variables: str) -> str:
        """Run a script of psql and return its output. Raises ReleaseError with its first error."""
        flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
        values = {"owner": self.names.owner, "runtime": self.names.runtime} | variables
        flags += [f"--set={name}={value}" for name, value in values.items()]
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10", "PGOPTIONS": OPTIONS}
        environment |= self.connection
        account = {"user": self.account, "group": self.account, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            done = subprocess.run(
                [str(self.programs / "psql"), *flags, "--dbname", database], input=script, env=environment, cwd="/",
                capture_output=True, text=True, check=False, **account,
            )  # fmt: skip
        except (FileNotFoundError, LookupError, ValueError) as error:
            raise ReleaseError(f"PostgreSQL of this host cannot be asked: {error}") from None
        if done.returncode != 0:
            raise ReleaseError(tail(done.stderr, 5))
        return done.stdout

    def ask(self, sql: str, database: str = "postgres") -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return json.loads(self.run(f"SELECT coalesce(jsonb_agg(answer), '[]') FROM ({sql}) AS answer;", database))

    # -- databases

    def databases(self) -> dict[str, dict[str, str]]:
        """Return {"owner", "comment"} of each database."""
        rows = self.ask(
            "SELECT datname AS name, pg_get_userbyid(datdba) AS owner, "
            "coalesce(shobj_description(oid, 'pg_database'), '') AS comment FROM pg_database"
        )
        return {row["name"]: row for row in rows}

    def create(self, new: str) -> None:
        """Create an empty database with the privileges of a first release."""
        self.run(CREATE, new=new)

    def drop_unfinished(self, name: str) -> None:
        """Drop a database that an import has created and not completed."""
        if (found := self.databases().get(name)) and found["comment"] == UNFINISHED:
            self.run('DROP DATABASE :"name" WITH (FORCE)', name=name)

    def comment(self, name: str, text: str) -> None:
        self.run("COMMENT ON DATABASE :\"name\" IS :'text'", name=name, text=text)

    def rename(self, *, present: str, new: str, aside: str) -> None:
        """Rename `present` to `aside` and `new` to `present`; sessions of both are ended."""
        self.run(RENAME, present=present, new=new, aside=aside)

    # -- what a database has

    def settings(self) -> set[str]:
        return {row["name"] for row in self.ask("SELECT name FROM pg_settings")}

    def free_space(self) -> tuple[str, int]:
        """Return the folder of the data, and its free bytes."""
        [row] = self.ask("SELECT current_setting('data_directory') AS folder")
        status = os.statvfs(row["folder"])
        return row["folder"], status.f_bavail * status.f_frsize

    def rows(self, database: str) -> dict[str, int]:
        """Return the number of rows of each table; partitions count, their parents do not."""
        names = [row["name"] for row in self.ask(TABLES, database)]
        counts = [f"SELECT {quoted(name)} AS name, count(*) AS rows FROM {name}" for name in names]
        found = [self.ask(" UNION ALL ".join(counts[at : at + 100]), database) for at in range(0, len(counts), 100)]
        return {row["name"].removeprefix("public."): row["rows"] for part in found for row in part}

    def extensions(self, database: str) -> set[str]:
        return {row["name"] for row in self.ask("SELECT extname AS name FROM pg_extension", database)}

    def trusted_extensions(self) -> set[str]:
        return {row["name"] for row in self.ask("SELECT name FROM pg_available_extension_versions WHERE trusted")}

    def create_extension(self, database: str, extension: str, schema: str, *, by_owner: bool) -> None:
        self.run(EXTENSION, database, extension=extension, schema=schema, by_owner="yes" if by_owner else "no")

    def grant(self, database: str) -> None:
        """Grant the application its privileges on every table and sequence, and check owners and privileges.

        Raises ReleaseError when an object has another owner, or the application no access to it.
        """
        self.run(GRANT, database)
        if found := self.ask(FOREIGN % vars(self.names), database):
            owners = ", ".join(f"{row['name']} ({row['owner']})" for row in found[:5])
            raise ReleaseError(f"These objects do not belong to {self.names.owner}: {owners}")
        if found := self.ask(DENIED % vars(self.names), database):
            raise ReleaseError(f"{self.names.runtime} has no access to {', '.join(row['name'] for row in found[:5])}")


def quoted(text: str) -> str:
    """Return a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
