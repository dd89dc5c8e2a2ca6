"""Move the application's PostgreSQL cluster to a newer version, and back: the host's part of the action of this name.

Needs Debian's Python, its standard library and Debian's postgresql-common. Reads the request from stdin, as documented
in the action; prints the result, or {"failed", "msg"}, as JSON. What is done is written to STATE before it is begun, so
that a run that was killed at any point is completed, or reverted, by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

STATE = "/var/lib/seedbed/postgresql-upgrade.json"
LOCK = "/run/seedbed-postgresql-upgrade.lock"
LOG = "/var/log/seedbed-postgresql-upgrade.log"
# Steps of an upgrade, as STATE names them: the application stops; the copy is made; it is made, and to be checked; the
# application may write to it; everything is done. Then those of the way back.
BEGUN, COPYING, COPIED, RELEASED, DONE, RETURNING, RETURNED = (
    "begun",
    "copying",
    "copied",
    "released",
    "done",
    "returning",
    "returned",
)
# The old cluster has every row until here: a failure reverts.
REVERTIBLE = (BEGUN, COPYING, COPIED)
UNFINISHED = (*REVERTIBLE, RELEASED)
# Databases of users have numbers from this one on.
FIRST_USER_DATABASE = 16384
# What a copy needs beside the size of the databases: WAL, the logs of pg_upgrade.
EXTRA_BYTES = 512 * 2**20
OTHER_DATABASES = """
SELECT datname FROM pg_database
 WHERE NOT datistemplate AND datname <> 'postgres' AND datname <> ALL (%(databases)s)
   AND pg_get_userbyid(datdba) <> ALL (%(roles)s)
 ORDER BY 1
"""
# Not those that only look, such as a monitor's.
SESSIONS = """
SELECT format('%%s in %%s (%%s, process %%s)', usename, coalesce(datname, '-'),
              coalesce(nullif(application_name, ''), host(client_addr), 'local'), pid)
  FROM pg_stat_activity
 WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() AND usename <> ALL (%(roles)s)
   AND backend_start < now() - interval '5 s'
 ORDER BY pid
"""
# Of every table that is not PostgreSQL's own.
TABLES = """
SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema' AND relpersistence <> 't'
 ORDER BY 1
"""
DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1"
EXTENSIONS = "SELECT extname FROM pg_extension ORDER BY 1"
# Predefined roles differ between versions.
ROLES = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"


class UpgradeError(Exception):
    """What is wrong, and what to type."""


def run(*command: str, log: IO[str] | None = None, text: str | None = None) -> str:
    """Run a command in English and return its output, or write that to `log`. Raises UpgradeError with its end.

    `text` is its input.
    """
    done = subprocess.run(
        command, cwd="/", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}, text=True, input=text,
        stdin=None if text is not None else subprocess.DEVNULL, stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
    )  # fmt: skip
    if done.returncode != 0:
        output = Path(log.name).read_text(errors="replace") if log else done.stderr or done.stdout
        last = "\n".join(output.strip().splitlines()[-15:])
        raise UpgradeError(f"{' '.join(command[:4])} … failed with exit status {done.returncode}:\n{last}")
    return done.stdout or ""


def literals(words: list[str]) -> str:
    """Return an array of SQL."""
    quoted = ", ".join("'" + word.replace("'", "''") + "'" for word in words)
    return f"ARRAY[{quoted}]::text[]"


def size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


@dataclass
class State:
    """What STATE holds. `rows` are those of each table by database, `kept` the setting of the maintenance page."""

    step: str = ""
    old: str = ""
    new: str = ""
    since: str = ""
    maintenance: bool = False
    replace: bool = False
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    extensions: dict[str, list[str]] = field(default_factory=dict)
    roles: list[str] = field(default_factory=list)


class Cluster:
    """The cluster `main` of one version."""

    def __init__(self, version: str, root: Path) -> None:
        self.version = version
        self.root = root
        self.folder = root / f"etc/postgresql/{version}/main"
        self.data = root / f"var/lib/postgresql/{version}/main"
        self.unit = f"postgresql@{version}-main.service"

    @property
    def title(self) -> str:
        return f"PostgreSQL {self.version}/main"

    @property
    def exists(self) -> bool:
        return (self.folder / "postgresql.conf").exists()

    @property
    def is_ours(self) -> bool:
        """Has Seedbed configured it?"""
        return (self.folder / "conf.d/60-seedbed.conf").exists()

    @property
    def has_databases(self) -> bool:
        """Has it databases beside those of a new cluster? Its files say so, whether it runs or not."""
        names = (path.name for path in self.data.glob("base/*"))
        return any(name.isdigit() and int(name) >= FIRST_USER_DATABASE for name in names)

    @property
    def starts_at_boot(self) -> bool:
        text = (self.folder / "start.conf").read_text() if (self.folder / "start.conf").exists() else ""
        return re.sub(r"#.*", "", text).strip() in ("", "auto")

    @property
    def port(self) -> int:
        text = (self.folder / "postgresql.conf").read_text()
        return int((re.findall(r"^\s*port\s*=\s*'?(\d+)", text, re.MULTILINE) or ["5432"])[-1])

    @property
    def runs(self) -> bool:
        with suppress(UpgradeError):
            run("pg_ctlcluster", self.version, "main", "status")
            return True
        return False

    def program(self, name: str) -> Path:
        return self.root / f"usr/lib/postgresql/{self.version}/bin/{name}"

    def ask(self, sql: str, database: str = "postgres") -> list[str]:
        """Return the lines that psql prints, as the superuser. Raises UpgradeError."""
        command = ["runuser", "--user", "postgres", "--", "psql", "--no-psqlrc", "--quiet", "-tA"]
        command += ["--set=ON_ERROR_STOP=1", f"--port={self.port}", f"--dbname={database}"]
        script = f"SET search_path = pg_catalog; SET statement_timeout = 0;\n{sql};"
        return run(*command, text=script).splitlines()

    def start(self) -> None:
        if not self.runs:
            run("systemctl", "start", self.unit)

    def stop(self) -> None:
        """Stop it however it was started: a killed pg_upgrade leaves a server that systemd does not know."""
        run("systemctl", "stop", self.unit)
        if self.runs:
            run("pg_ctlcluster", "--skip-systemctl-redirect", "-m", "fast", self.version, "main", "stop")

    def start_at_boot(self, enabled: bool) -> None:
        """Set start.conf, which Debian's generator of units reads, and the unit, which roles/postgresql enables."""
        (self.folder / "start.conf").write_text("auto\n" if enabled else "manual\n")
        run("systemctl", "enable" if enabled else "disable", "--quiet", self.unit)
        run("systemctl", "daemon-reload")

    def set_port(self, port: int) -> None:
        if self.port != port:
            run("pg_conftool", self.version, "main", "set", "port", str(port))

    def drop(self) -> None:
        """Remove it, also the part that a killed pg_createcluster has made."""
        if self.exists:
            run("systemctl", "disable", "--now", "--quiet", self.unit)
            run("pg_dropcluster", "--stop", self.version, "main")
            run("systemctl", "daemon-reload")
        for folder in (self.folder, self.data):
            if folder.exists():
                shutil.rmtree(folder)

    def bytes(self) -> int:
        """Return the size of its databases on disk; WAL is not copied."""
        total = 0
        for place, folders, names in os.walk(self.data):
            folders[:] = [name for name in folders if name != "pg_wal"]
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(place) / name).lstat().st_blocks * 512
        return total


class Upgrade:
    """The clusters of a host, and what a run has done with them. The files are below `root`."""

    def __init__(self, request: dict[str, Any], root: Path = Path("/")) -> None:
        self.root = root
        self.request = request
        self.playbook: str = request["playbook"]
        self.state_file = root / STATE.lstrip("/")
        self.state = self.read()
        self.new = Cluster(request["version"], root)
        self.old = Cluster(self.state.old, root) if self.state.step in UNFINISHED else self.former()

    def read(self) -> State:
        try:
            return State(**json.loads(self.state_file.read_text()))
        except FileNotFoundError:
            return State()

    def write(self, step: str, **more: Any) -> None:
        """Write the state to disk, in one step."""
        self.state = State(**(asdict(self.state) | {"step": step} | more))
        self.state_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = self.state_file.with_suffix(".new")
        with part.open("w") as file:
            json.dump(asdict(self.state), file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.state_file)

    def former(self) -> Cluster | None:
        """Return the newest cluster of an earlier version that Seedbed has configured."""
        folders = self.root.glob("etc/postgresql/*/main")
        versions = [int(folder.parent.name) for folder in folders if folder.parent.name.isdigit()]
        clusters = [Cluster(str(number), self.root) for number in sorted(versions) if number < int(self.new.version)]
        return next((cluster for cluster in reversed(clusters) if cluster.is_ours), None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises UpgradeError while another run, or what a killed run has started, still works."""
        path = self.root / LOCK.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                busy = self.programs()
            except BlockingIOError:
                busy = ["another run"]
            if busy:
                raise UpgradeError(
                    f"An upgrade of PostgreSQL is still running on this host ({busy[0]}). `tail -f {LOG}` shows it; "
                    "run the playbook again when it has ended."
                )
            yield

    def programs(self) -> list[str]:
        """Return the running programs of an upgrade; a killed run leaves them."""
        found = []
        for path in self.root.glob("proc/[0-9]*/comm"):
            # A process may end meanwhile.
            with suppress(OSError):
                # The kernel cuts pg_upgradecluster off.
                if (name := path.read_text().strip()).startswith("pg_upgrade"):
                    found.append(f"{name}, process {path.parent.name}")
        return found

    def require_step(self, *steps: str) -> None:
        """Raise UpgradeError unless the last step is one of these: another run may have reverted it."""
        if self.state.step not in steps:
            raise UpgradeError("Another run has ended this upgrade meanwhile. Run the playbook again.")

    # -- before anything changes

    @property
    def is_needed(self) -> bool:
        """Does an earlier version still have the databases, or is an upgrade unfinished?"""
        if self.state.step in UNFINISHED:
            return True
        return bool(self.old) and (self.old.starts_at_boot or not self.new.has_databases)

    def plan(self) -> dict[str, Any]:
        """Return what a run would do: {"needed", "step", "old", "new", "lines"}. Raises UpgradeError.

        `step` is that of an unfinished upgrade, or "".
        """
        step, new = self.state.step, self.new.version
        if step == RETURNING:
            raise UpgradeError(
                f"The return to PostgreSQL {self.state.old} was interrupted. Complete it: {self.playbook} -e "
                "upgrade_back=true"
            )
        found = {"needed": self.is_needed, "step": step if step in UNFINISHED else "", "new": new}
        found["old"] = self.old.version if self.old else ""
        if not self.is_needed:
            return found | {
                "lines": [f"PostgreSQL {new} has the databases: there is nothing to upgrade.", *self.kept()]
            }
        with self.locked():
            unfinished = f"The upgrade of {self.old.title} continues after the step {step}."
            return found | {"lines": [unfinished if step in UNFINISHED else self.inspect()]}

    def kept(self) -> list[str]:
        """Return lines about the old cluster, if there still is one."""
        if not self.old or not self.old.exists:
            return []
        lines = [
            f"{self.old.title} ({size(self.old.bytes())}) is kept and does not run. To remove it:",
            f"  {self.playbook} -e drop_old_cluster=true",
        ]
        if self.state.step == DONE:
            lines += [
                f"To return to it, without what was written since {self.state.since}:",
                f"  {self.playbook} -e upgrade_back=true",
            ]
        return lines

    def inspect(self) -> str:
        """Return what is copied. Raises UpgradeError if that would fail, or take what belongs to others along."""
        self.require_programs()
        self.require_replaceable()
        if not self.old.runs:
            raise UpgradeError(
                f"{self.old.title}, which has the databases, is down. Type on the host: systemctl start {self.old.unit}"
            )
        names = {"databases": literals(self.request["databases"]), "roles": literals(self.request["roles"])}
        if not self.request["others"]:
            if found := self.old.ask(OTHER_DATABASES % names):
                raise UpgradeError(
                    f"{self.old.title} has databases of others: {', '.join(found)}. Their applications are without "
                    f"them meanwhile, and then use PostgreSQL {self.new.version}. If that is meant, type: "
                    f"{self.playbook} -e upgrade_other_databases=true"
                )
            if found := self.old.ask(SESSIONS % names):
                raise UpgradeError(
                    f"Others use {self.old.title} now: {'; '.join(found[:5])}. End these sessions, and run the "
                    f"playbook again; or let it end them: {self.playbook} -e upgrade_other_databases=true"
                )
        self.require_extensions()
        return self.require_space()

    def require_programs(self) -> None:
        """Raise UpgradeError without the programs of both versions."""
        for cluster, name in ((self.old, "postgres"), (self.new, "pg_upgrade")):
            if not cluster.program(name).exists():
                raise UpgradeError(
                    f"{cluster.program(name)} is missing: both versions must be installed. Type on the host: "
                    f"apt-get install postgresql-{cluster.version}"
                )

    def require_replaceable(self) -> None:
        """Raise UpgradeError if the cluster of the new version, which makes room, has databases."""
        if not self.new.has_databases or self.request["replace"]:
            return
        if self.state.step == RETURNED:
            reason = f"what was written since {self.state.since}, before the return to {self.old.title}"
        else:
            reason = "databases"
        raise UpgradeError(
            f"{self.new.title} exists and has {reason}; the databases of {self.old.title} would replace it. To delete "
            f"{self.new.title}, type: {self.playbook} -e replace_new_cluster=true"
        )

    def require_extensions(self) -> None:
        """Raise UpgradeError if an extension is not installed for the new version."""
        folder = self.root / f"usr/share/postgresql/{self.new.version}/extension"
        names = sorted({name for found in self.extensions(self.old).values() for name in found})
        if missing := [name for name in names if not (folder / f"{name}.control").exists()]:
            raise UpgradeError(
                f"PostgreSQL {self.new.version} does not have the extension {', '.join(missing)}. Install its package "
                f"on the host; to find it: apt-cache search postgresql-{self.new.version} | grep -i {missing[0]}"
            )

    def require_space(self) -> str:
        """Return the size of the copy. Raises UpgradeError if there is no room for it."""
        needed = self.old.bytes()
        place = self.old.data.parents[1]
        free = shutil.disk_usage(place).free
        if free < needed + EXTRA_BYTES:
            raise UpgradeError(
                f"{place} has {size(free)} free; the copy of {self.old.title} needs {size(needed + EXTRA_BYTES)}. "
                "Free some: du -xh --max-depth=3 / | sort -h | tail"
            )
        return f"{self.old.title} is copied to PostgreSQL {self.new.version} ({size(needed)}; {size(free)} are free)."

    # -- the upgrade

    def begin(self) -> dict[str, Any]:
        """Record that the application is about to be stopped."""
        if self.state.step in UNFINISHED:
            return {"changed": False, "maintenance": self.state.maintenance}
        given = {"maintenance": self.request["maintenance"], "replace": self.request["replace"]}
        self.state = State()
        self.write(BEGUN, old=self.old.version, new=self.new.version, since=now(), **given)
        return {"changed": True, "maintenance": self.state.maintenance}

    def copy(self) -> dict[str, Any]:
        """Make the new cluster from the old one, and leave both stopped; the new one has the port."""
        self.require_step(*UNFINISHED)
        if self.state.step not in (BEGUN, COPYING):
            return {"changed": False}
        with self.locked():
            if self.state.step == BEGUN:
                if self.new.has_databases and not self.state.replace:
                    self.require_replaceable()
                self.old.start()
                self.write(COPYING, **self.contents(self.old))
            self.prepare()
            with (self.root / LOG.lstrip("/")).open("w") as log:
                command = ("pg_upgradecluster", "-v", self.new.version, "-m", "upgrade", "--no-start")
                run(*command, self.old.version, "main", log=log)
            self.old.start_at_boot(False)
            self.write(COPIED)
        return {"changed": True}

    def prepare(self) -> None:
        """Remove the new cluster, which is empty or the half of a copy, and make the old one as it was."""
        self.new.drop()
        self.old.set_port(self.request["port"])
        self.old.start_at_boot(True)
        # A server that a killed pg_upgrade has started does not have systemd's sandbox.
        self.old.stop()
        self.old.start()

    def contents(self, cluster: Cluster) -> dict[str, Any]:
        """Return what must be equal before and after."""
        return {
            # Monitoring may write to the database postgres meanwhile.
            "rows": {name: self.rows(cluster, name) for name in cluster.ask(DATABASES) if name != "postgres"},
            "extensions": self.extensions(cluster),
            "roles": cluster.ask(ROLES),
        }

    def rows(self, cluster: Cluster, database: str) -> dict[str, int]:
        tables = cluster.ask(TABLES, database)
        counts = [f"SELECT count(*) FROM ONLY {name}" for name in tables]
        found = cluster.ask("; ".join(counts), database) if counts else []
        return dict(zip(tables, map(int, found), strict=True))

    def extensions(self, cluster: Cluster) -> dict[str, list[str]]:
        return {name: cluster.ask(EXTENSIONS, name) for name in cluster.ask(DATABASES)}

    def check(self) -> dict[str, Any]:
        """Compare the new cluster, which runs, with the old one; update its statistics. Raises UpgradeError."""
        self.require_step(COPIED, RELEASED)
        if self.state.step == RELEASED:
            return {"changed": False}
        with self.locked():
            if differences := self.differences(self.contents(self.new)):
                raise UpgradeError(
                    f"{self.new.title} differs from {self.old.title}: {'; '.join(differences[:5])}. (The databases "
                    "must not be written to during the upgrade.)"
                )
            # What pg_upgradecluster runs after a start: statistics for the planner, and hooks of packages.
            hooks = ("run-parts", "--lsbsysinit", "-a", self.old.version, "-a", "main", "-a", self.new.version)
            folder = "/etc/postgresql-common/pg_upgradecluster.d"
            run("runuser", "--user", "postgres", "--", *hooks, "-a", "finish", folder)
        return {"changed": True}

    def differences(self, found: dict[str, Any]) -> list[str]:
        """Return what is not as recorded of the old cluster."""
        lines = []
        for database, tables in self.state.rows.items():
            present = found["rows"].get(database)
            if present is None:
                lines.append(f"the database {database} is missing")
                continue
            for table in sorted({*tables, *present}):
                if (before := tables.get(table)) != (after := present.get(table)):
                    lines.append(f"{database}: {table} has {after} rows instead of {before}")
            lost = set(self.state.extensions.get(database, [])) - set(found["extensions"].get(database, []))
            lines += [f"{database}: the extension {name} is missing" for name in sorted(lost)]
        return lines + [f"the role {name} is missing" for name in self.state.roles if name not in found["roles"]]

    def release(self) -> dict[str, Any]:
        """Record that the application may write to the new cluster: from here on, nothing is reverted."""
        self.require_step(COPIED, RELEASED)
        if self.state.step == RELEASED:
            return {"changed": False}
        self.write(RELEASED, since=now())
        return {"changed": True}

    def finish(self) -> dict[str, Any]:
        """Record the end, and return what was done and what may follow."""
        self.require_step(RELEASED, DONE)
        changed = self.state.step == RELEASED
        if changed:
            self.write(DONE)
        tables = [rows for tables in self.state.rows.values() for rows in tables.values()]
        lines = [
            f"PostgreSQL {self.new.version} has the databases since {self.state.since}; before, PostgreSQL "
            f"{self.state.old} had them. {sum(tables):,} rows in {len(tables)} tables are the same in both.",
        ]
        return {"changed": changed, "lines": lines + self.kept()}

    def revert(self) -> dict[str, Any]:
        """Make the old cluster serve again, and remove the copy; only before the application could write to that."""
        if self.state.step not in REVERTIBLE:
            return {"changed": False}
        with self.locked():
            if self.state.step in (COPYING, COPIED):
                self.prepare()
            self.old.start()
            self.state_file.unlink()
        return {"changed": True}

    # -- afterwards

    def back(self) -> dict[str, Any]:
        """Make the old cluster serve again; the new one keeps what was written since. Raises UpgradeError."""
        if self.state.step not in (RELEASED, DONE, RETURNING, RETURNED):
            raise UpgradeError(f"No upgrade to PostgreSQL {self.new.version} is recorded on this host.")
        self.old = Cluster(self.state.old, self.root)
        if not self.old.exists:
            raise UpgradeError(f"{self.old.title} was removed: there is no way back to it.")
        changed = self.state.step != RETURNED
        if changed:
            with self.locked():
                self.write(RETURNING)
                self.exchange()
                self.write(RETURNED)
        lines = [
            f"PostgreSQL {self.old.version} has the databases again, as they were at {self.state.since}. What was "
            f"written since is in {self.new.title}, which does not run.",
            "site.yml stops until the databases are upgraded again, which deletes that cluster:",
            f"  {self.playbook} -e replace_new_cluster=true",
        ]
        return {"changed": changed, "old": self.old.version, "lines": lines}

    def exchange(self) -> None:
        """Stop the new cluster, and have the old one start instead of it. May be repeated after a kill."""
        if self.new.exists:
            self.new.stop()
            self.new.start_at_boot(False)
            if self.new.port == self.request["port"]:
                self.new.set_port(self.old.port)
        self.old.set_port(self.request["port"])
        self.old.start_at_boot(True)
        self.old.start()

    def drop(self) -> dict[str, Any]:
        """Remove the old cluster that an upgrade has kept. Raises UpgradeError while it is in use."""
        if not self.old:
            return {"changed": False, "lines": ["There is no cluster of an earlier version."]}
        if self.is_needed or self.state.step == RETURNING:
            raise UpgradeError(f"{self.old.title} has the databases: upgrade them first ({self.playbook}).")
        with self.locked():
            freed = size(self.old.bytes())
            self.old.drop()
        line = f"{self.old.title} ({freed}) is removed. For its programs: apt-get purge postgresql-{self.old.version}"
        return {"changed": True, "lines": [line]}


def now() -> str:
    return time.strftime("%F %T %Z")


ACTIONS = ("plan", "begin", "copy", "check", "release", "finish", "revert", "back", "drop")


def main() -> dict[str, Any]:
    request = json.load(sys.stdin)
    try:
        upgrade = Upgrade(request)
        if request["check"] and request["step"] != "plan":
            return {"changed": True}
        return {"changed": False} | getattr(upgrade, request["step"])()
    except UpgradeError as error:
        return {"failed": True, "msg": str(error)}


if __name__ == "__main__":
    print(json.dumps(main()))
