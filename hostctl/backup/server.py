"""PostgreSQL of this host, as its superuser: the canary, the archive, and the passwords of the application's roles.

The canary is a row outside of the application's schema, in the database `postgres`. Each run of `ship` sets it to the
present time: how old it is in a restored database says what was lost, in any application.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import ReleaseError, tail
from .configuration import Configuration
from .tools import ACCOUNT

# Seconds until a segment that was just completed must be in the repository.
ARCHIVE_SECONDS = 20

# What is written before the position is read is restored with it.
CANARY = """
CREATE SCHEMA IF NOT EXISTS seedbed;
CREATE TABLE IF NOT EXISTS seedbed.canary (name text PRIMARY KEY, at timestamptz NOT NULL);
SELECT archiving AND coalesce(last_failed_time, '-infinity') <= coalesce(last_archived_time, '-infinity') AS works
  FROM pg_stat_archiver, (SELECT current_setting('archive_mode') = 'on' AS archiving) AS mode \\gset
INSERT INTO seedbed.canary VALUES (:'name', clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET at = excluded.at
RETURNING to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at,
          extract(epoch FROM at) AS seconds \\gset
SELECT pg_current_wal_insert_lsn() AS lsn \\gset
-- While segments cannot be archived, no more are begun than PostgreSQL fills.
SELECT pg_walfile_name(CASE WHEN :'works' = 't' THEN pg_switch_wal() ELSE pg_current_wal_lsn() END) AS segment \\gset
SELECT json_build_object('at', :'at', 'seconds', :seconds, 'lsn', :'lsn', 'segment', :'segment',
                         'system_id', (SELECT system_identifier::text FROM pg_control_system()));
"""
ARCHIVER = """
SELECT json_build_object('archived', last_archived_wal, 'failed', last_failed_wal,
                         'fails', last_failed_time > coalesce(last_archived_time, '-infinity'))
  FROM pg_stat_archiver;
"""
ROLES = """
SELECT coalesce(json_agg(json_build_object('name', rolname, 'login', rolcanlogin, 'verifier', rolpassword)), '[]')
  FROM pg_authid WHERE rolname = ANY (string_to_array(:'roles', ','));
"""
# Not in the server's log.
ROLE = """
SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1;
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \\gexec
SELECT format('GRANT %I TO %I', :'runtime', :'role')
 WHERE :'role' LIKE :'runtime' || '\\_2' AND NOT pg_has_role(:'role', :'runtime', 'USAGE') \\gexec
SELECT format('ALTER ROLE %I %s PASSWORD %L', :'role', :'login', nullif(:'verifier', '')) \\gexec
"""


class NotArchivingError(ReleaseError):
    """PostgreSQL does not archive yet: it was running when that was configured, and needs a restart."""


@dataclass(frozen=True)
class Canary:
    """The canary as it was written: when, and the position and segment of the write-ahead log that contain it."""

    at: str
    seconds: float
    lsn: str
    segment: str
    system_id: str


class Server:
    """PostgreSQL at a socket: that of this host, or one in a folder of its own."""

    def __init__(self, configuration: Configuration, socket: Path | None = None, port: int = 0) -> None:
        self.configuration = configuration
        self.connection = {"PGHOST": str(socket), "PGPORT": str(port)} if socket else {}

    def run(self, script: str, database: str = "postgres", seconds: float = 60, **variables: str) -> str:
        """Run a script of psql and return its output. Raises ReleaseError with its first error.

        The variables are visible in the list of processes.
        """
        flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
        flags += [f"--set={name}={value}" for name, value in variables.items()]
        environment = {
            "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "backup",
            "PGOPTIONS": f"-c search_path=pg_catalog -c statement_timeout={round(seconds * 1000)}",
        }  # fmt: skip
        account = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            done = subprocess.run(
                ["psql", *flags, "--dbname", database], input=script, env=environment | self.connection, cwd="/",
                capture_output=True, text=True, check=False, timeout=seconds + 15, **account,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ReleaseError(f"PostgreSQL does not answer within {seconds:.0f} s.") from None
        if done.returncode != 0:
            raise ReleaseError(self.problem(tail(done.stderr, 5)))
        return done.stdout.strip()

    def problem(self, error: str) -> str:
        """Return an error of psql, or what to type if the server of this host does not run."""
        if "connection to server" in error and not self.connection:
            name = self.configuration.program
            return (
                f"PostgreSQL does not answer: systemctl status {self.configuration.service}. If it cannot start: "
                f"{name} backup restore --show"
            )
        return f"PostgreSQL: {error}"

    def ask(self, script: str, database: str = "postgres", **variables: str) -> Any:
        """Return the value of a script that prints one JSON value."""
        return json.loads(self.run(script, database, **variables))

    # -- the canary and the archive

    def write_canary(self) -> Canary:
        """Set the canary to the present time, and complete the segment that contains it."""
        return Canary(**self.ask(CANARY, name=self.configuration.name))

    def canary_age(self, moment: float) -> float | None:
        """Return by how many seconds the canary of a restored database is older than a moment; None without one."""
        found = self.run(
            "SELECT extract(epoch FROM at) FROM seedbed.canary WHERE name = :'name'", name=self.configuration.name
        )
        return moment - float(found) if found else None

    def require_archive(self) -> None:
        """Raise NotArchivingError, with the restart that it takes, while archive_mode is off."""
        require_version(self)
        if self.run("SHOW archive_mode") != "on":
            raise NotArchivingError(
                "PostgreSQL archives nothing yet (archive_mode is off), so there are no backups. It takes a restart, "
                "in which requests fail for a second; type at a quiet moment: "
                f"systemctl restart {self.configuration.service}"
            )

    def wait_archived(self, segment: str) -> None:
        """Wait until a segment is in the repository. Raises ReleaseError with what prevents it."""
        deadline = time.monotonic() + ARCHIVE_SECONDS
        while True:
            found = self.ask(ARCHIVER)
            if (found["archived"] or "")[8:24] >= segment[8:]:
                return
            if time.monotonic() >= deadline:
                raise ReleaseError(
                    f"PostgreSQL cannot archive {found['failed'] or segment}. See why: "
                    f"journalctl -u {self.configuration.service} -n 30; df -h {self.configuration.repository}"
                )
            time.sleep(0.1)

    def segment_bytes(self) -> int:
        """Return the size of a segment of the write-ahead log."""
        return int(self.run("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'"))

    # -- roles and sizes

    def roles(self) -> list[dict[str, Any]]:
        """Return the application's roles with the verifiers of their passwords."""
        names = [self.configuration.owner, *self.configuration.roles]
        return self.ask(ROLES, roles=",".join(names))

    def set_roles(self, roles: list[dict[str, Any]]) -> None:
        """Give the application's roles the passwords that it knows: those of a backup may be older."""
        for role in roles:
            values = {"role": role["name"], "login": "LOGIN" if role["login"] else "NOLOGIN"}
            # Not as a variable: a verifier is for no list of processes. It has no quotes.
            verifier = f"\\set verifier '{role['verifier'] or ''}'\n"
            self.run(verifier + ROLE, runtime=self.configuration.roles[0], **values)

    def size(self) -> int:
        """Return the bytes of all databases."""
        return int(self.run("SELECT sum(pg_database_size(oid)) FROM pg_database WHERE datallowconn"))


def require_version(server: Server) -> None:
    """Raise ReleaseError when PostgreSQL of another version serves; one that does not answer passes."""
    try:
        number = server.run("SHOW server_version_num")[:-4]
    except ReleaseError:
        return
    if number != server.configuration.version:
        raise ReleaseError(
            f"PostgreSQL {number} serves, and the backups of this server are of PostgreSQL "
            f"{server.configuration.version}: run playbooks/upgrade-postgresql.yml, which moves the database."
        )
