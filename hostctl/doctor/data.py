"""PostgreSQL and Redis of this host."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..backup.tools import ACCOUNT, ToolError, call
from ..redis_connection import RedisConnection, RedisError, parse_info
from .finding import BAD, OK, WARN, Context, Finding, duration, plural, worst

# Shares of max_connections, and of Redis's maxmemory.
FULL_WARN, FULL_BAD = 0.8, 0.95
# Seconds that a session may hold a transaction open and do nothing.
IDLE_SECONDS = 600
# Ages of the oldest transaction ID; at two billion PostgreSQL stops writing.
XID_WARN, XID_BAD, XID_LIMIT = 500_000_000, 1_000_000_000, 2_000_000_000
# Seconds that a completed segment of the write-ahead log may wait to be archived.
ARCHIVE_WARN, ARCHIVE_BAD = 120, 300
TIMEOUT = 3
# One query, as the superuser: it has connections reserved.
QUERY = """
SELECT json_build_object(
  'version', split_part(current_setting('server_version'), ' ', 1),
  'limit', current_setting('max_connections')::int,
  'connections', count(*),
  'oldest', coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0),
  'idle', coalesce(extract(epoch FROM max(clock_timestamp() - state_change)
                                   FILTER (WHERE state LIKE 'idle in transaction%')), 0),
  'idle_process', (array_agg(pid ORDER BY state_change) FILTER (WHERE state LIKE 'idle in transaction%'))[1],
  'waiting', count(*) FILTER (WHERE wait_event_type = 'Lock'),
  'xid', (SELECT max(age(datfrozenxid)) FROM pg_database),
  'archiving', current_setting('archive_mode') <> 'off',
  'failed', (SELECT last_failed_wal FROM pg_stat_archiver
              WHERE last_failed_time > coalesce(last_archived_time, '-infinity')),
  'ready', (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)
              FROM pg_ls_archive_statusdir() WHERE name ~ '[.]ready$'))
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid();
"""


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


def postgresql(context: Context) -> Finding | None:
    """Return how full and how old PostgreSQL of this host is, what blocks it, and whether it archives."""
    version = context.configuration.postgresql
    if not version:
        return None
    unit = f"postgresql@{version}-main"
    try:
        state = json.loads(ask_postgresql())
    except ToolError as error:
        text = f"does not answer: {str(error).removeprefix('psql failed: ').splitlines()[0]}"
        return Finding(BAD, text, f"systemctl start {unit}; journalctl -u {unit} -n 30")
    values = {
        "database_connections": float(state["connections"]), "database_connections_limit": float(state["limit"]),
    }  # fmt: skip
    problems = [one for one in problems_of_postgresql(state, unit) if one]
    text = (
        f"{state['version']}, {state['connections']} of {state['limit']} connections, oldest transaction "
        f"{duration(state['oldest'])}, XID {100 * state['xid'] / XID_LIMIT:.1f} %"
    )
    text += f", {plural(state['waiting'], 'session')} waiting for a lock" if state["waiting"] else ""
    text += ", archives" if state["archiving"] else ""
    if not problems:
        return Finding(OK, text, values=values)
    remedies = "\n".join(dict.fromkeys(problem.remedy for problem in problems))
    told = "; ".join(problem.text for problem in problems)
    state_of_all = worst([problem.state for problem in problems])
    return Finding(state_of_all, told, remedies, values, alert=any(problem.alerts for problem in problems))


def ask_postgresql() -> str:
    flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
    environment = {
        "PGCONNECT_TIMEOUT": str(TIMEOUT), "PGAPPNAME": "doctor",
        "PGOPTIONS": f"-c search_path=pg_catalog -c statement_timeout={TIMEOUT * 1000}",
    }  # fmt: skip
    command = ["psql", *flags, "--dbname=postgres"]
    return call(command, seconds=TIMEOUT + 1, user=ACCOUNT, environment=environment, stdin=QUERY)


def problems_of_postgresql(state: dict[str, Any], unit: str) -> list[Finding | None]:
    activity = "runuser -u postgres -- psql -c 'SELECT pid, usename, state, state_change, left(query, 60) FROM"
    activity += " pg_stat_activity ORDER BY state_change'"
    used = state["connections"] / state["limit"]
    text = f"{state['connections']} of {state['limit']} connections are in use"
    idle = f"process {state['idle_process']} has held a transaction open for {duration(state['idle'])}"
    idle += f" (limit {duration(IDLE_SECONDS)}) and does nothing"
    xid = f"the oldest transaction ID is {state['xid']:,} old"
    vacuum = "# vacuum does not get through\nrunuser -u postgres -- vacuumdb --all --freeze"
    wal = f"{state['failed'] or 'a segment'} of the write-ahead log waits to be archived for {duration(state['ready'])}"
    waits = state["ready"] if state["archiving"] else 0
    end = f"{activity}\nrunuser -u postgres -- psql -c 'SELECT pg_terminate_backend({state['idle_process']})'"
    full = f"journalctl -u {unit} -n 30; df -h /var/lib/pgbackrest"
    return [
        graded(used, (FULL_WARN, FULL_BAD), percent, text, activity),
        Finding(WARN, idle, end, alert=True) if state["idle"] >= IDLE_SECONDS else None,
        graded(state["xid"], (XID_WARN, XID_BAD), "{:,}".format, xid, vacuum),
        graded(waits, (ARCHIVE_WARN, ARCHIVE_BAD), duration, wal, full),
    ]


def graded(
    value: float, bounds: tuple[float, float], formatted: Callable[[float], str], text: str, remedy: str
) -> Finding | None:
    """Return a finding by two bounds, which its text has, too; None below both."""
    warn, bad = bounds
    if value < warn:
        return None
    state, limit = (BAD, bad) if value >= bad else (WARN, warn)
    return Finding(state, f"{text} (limit {formatted(limit)})", remedy)


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


# --- Redis ---------------------------------------------------------------------------------------------------------


def redis(context: Context) -> Finding | None:
    """Return how full each Redis of this host is, and whether it writes what it must keep."""
    names = [name for name in ("broker", "cache") if name in context.configuration.redis]
    if not names:
        return None
    secrets = context.configuration.secrets()
    found = [redis_instance(name, secrets[f"{name.upper()}_URL"]) for name in names]
    problems = [one for one in found if one.state != OK]
    return Finding(
        worst([one.state for one in found]),
        "; ".join(one.text for one in problems or found),
        "\n".join(dict.fromkeys(one.remedy for one in problems)),
        {name: value for one in found for name, value in one.values.items()},
        alert=any(one.alerts for one in found),
    )


def redis_instance(name: str, url: str) -> Finding:
    remedy = f"systemctl start redis-server@{name}; journalctl -u redis-server@{name} -n 30"
    if not url:
        return Finding(WARN, f"{name}: how to ask it is not known yet", "ansible-playbook -i INVENTORY site.yml")
    try:
        with RedisConnection(url, TIMEOUT) as connection:
            [answer] = connection.ask(["INFO"])
    except (OSError, RedisError) as error:
        return Finding(BAD, f"{name} does not answer: {error}", remedy)
    info = parse_info(answer if isinstance(answer, bytes) else b"")
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    values = {f"redis_memory:{name}": float(used)}
    text = f"{name} {mebibytes(used)}{f' of {mebibytes(limit)}' if limit else ''} MiB"
    if info.get("loading") == "1":
        return Finding(WARN, f"{name} is loading its data since its start", remedy, values)
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        return Finding(BAD, f"{name} cannot write its data to disk", f"df -h /var/lib/redis; {remedy}", values)
    # One that evicts is full on purpose.
    if limit and info.get("maxmemory_policy", "noeviction") == "noeviction" and used >= FULL_WARN * limit:
        is_bad = used >= FULL_BAD * limit
        text += f" (limit {percent(FULL_BAD if is_bad else FULL_WARN)}): at the limit it refuses tasks"
        fix = f"{remedy}\n# the lines queues and workers say what fills it"
        return Finding(BAD if is_bad else WARN, text, fix, values)
    text += ", AOF ok" if info.get("aof_enabled") == "1" else ""
    evicted = int(info.get("evicted_keys", 0))
    return Finding(OK, f"{text}, {evicted:,} evicted" if evicted or name == "cache" else text, values=values)


def mebibytes(number: int) -> str:
    return f"{number / 2**20:,.0f}"
