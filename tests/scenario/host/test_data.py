"""Redis and PostgreSQL: settings that keep the data, and accounts with the least privileges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from installation import Installation, run_python
from testinfra.host import Host

# --- Redis -------------------------------------------------------------------------------

REDIS = """
import json, os, redis
client = redis.Redis.from_url(os.environ["VARIABLE"], decode_responses=True)
answers = {}
for command in json.loads('COMMANDS'):
    try:
        answers[command] = client.execute_command(*command.split())
    except redis.RedisError as error:
        answers[command] = type(error).__name__
print(json.dumps(answers))
"""
BROKER, CACHE = "CELERY_BROKER_URL", "CACHE_URL"
ADMINISTRATION = [
    *("FLUSHALL", "CONFIG GET maxmemory", "CONFIG SET dir /tmp", "ACL LIST", "MONITOR"),
    *("REPLICAOF 127.0.0.1 1", "SAVE", "SHUTDOWN"),
]


def ask_redis(host: Host, app: Installation, variable: str, *commands: str) -> dict[str, Any]:
    """Return Redis's answers to the application's own account; an error is its name."""
    script = REDIS.replace("VARIABLE", variable).replace("COMMANDS", json.dumps(commands))
    python = f"/srv/{app.name}/current/.venv/bin/python"
    return json.loads(run_python(host, script, environment=[f"/etc/{app.name}/next/app.env"], python=python))


@pytest.fixture(scope="module")
def answers(host: Host, app: Installation) -> dict[str, dict[str, Any]]:
    """The answers to commands that the application may use, and to those that it may not."""
    commands = ["PING", "INFO", *ADMINISTRATION]
    return {variable: ask_redis(host, app, variable, *commands) for variable in (BROKER, CACHE)}


@pytest.mark.parametrize("variable", [BROKER, CACHE])
def test_redis_answers_the_application(answers: dict[str, dict[str, Any]], variable: str) -> None:
    assert answers[variable]["PING"] is True


def outcomes(host: Host, commands: Sequence[str]) -> dict[str, str]:
    """Return what each command prints, with its status as the last word. All run over one connection."""
    parts = [f"{{ {command}; echo $?; }} 2>&1 | tr '\\n' ' '; echo" for command in commands]
    return dict(zip(commands, host.check_output("; ".join(parts)).split("\n"), strict=True))


def test_redis_refuses_unauthenticated_clients(host: Host) -> None:
    commands = [f"redis-cli -p {port} {words}" for port in (6379, 6380) for words in ("PING", "INFO", "KEYS '*'")]
    answers = outcomes(host, commands)
    assert {command: said for command, said in answers.items() if "NOAUTH" not in said} == {}


def test_redis_refuses_a_wrong_password(host: Host, app: Installation) -> None:
    users = [(user, port) for user in ("default", app.name) for port in (6379, 6380)]
    answers = outcomes(host, [f"REDISCLI_AUTH=wrong redis-cli --user {user} -p {port} PING" for user, port in users])
    assert {command: said for command, said in answers.items() if "WRONGPASS" not in said or "PONG" in said} == {}


@pytest.mark.parametrize("variable", [BROKER, CACHE])
def test_application_may_not_administer_redis(answers: dict[str, dict[str, Any]], variable: str) -> None:
    refused = {command: answers[variable][command] for command in ADMINISTRATION}
    assert refused == dict.fromkeys(ADMINISTRATION, "NoPermissionError")


def test_broker_persists_and_never_evicts(answers: dict[str, dict[str, Any]]) -> None:
    info = answers[BROKER]["INFO"]
    assert info["aof_enabled"] == 1
    assert info["aof_last_write_status"] == "ok"
    assert info["maxmemory_policy"] == "noeviction"
    assert info["maxmemory"] > 0


def test_cache_evicts_the_least_recently_used(answers: dict[str, dict[str, Any]]) -> None:
    info = answers[CACHE]["INFO"]
    assert info["maxmemory_policy"] == "allkeys-lru"
    assert info["aof_enabled"] == 0
    assert info["maxmemory"] > 0


# --- PostgreSQL --------------------------------------------------------------------------

SQL = """
import json, os, psycopg
answers = {}
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    for statement in json.loads('STATEMENTS'):
        try:
            connection.execute(statement)
            answers[statement] = "done"
        except psycopg.Error as error:
            answers[statement] = type(error).__name__
        connection.rollback()
print(json.dumps(answers))
"""
ROWS = [
    "SELECT count(*) FROM shop_order",
    "INSERT INTO shop_pageview (page, count) VALUES ('of a test', 1)",
    "UPDATE shop_pageview SET count = count + 1",
    "DELETE FROM shop_pageview",
]
SCHEMA = [
    "CREATE TABLE of_a_test (id int)",
    "ALTER TABLE shop_pageview ADD COLUMN of_a_test int",
    "DROP TABLE shop_pageview",
    "TRUNCATE shop_pageview",
    "CREATE SCHEMA of_a_test",
]
SUPERUSER = ["CREATE ROLE of_a_test", "COPY shop_pageview TO '/tmp/of_a_test'"]


def ask_database(host: Host, app: Installation, files: list[str], statements: list[str]) -> dict[str, str]:
    """Return the outcome of each statement with the account in these files; all are rolled back."""
    script = SQL.replace("STATEMENTS", json.dumps(statements).replace("'", r"\'"))
    python = f"/srv/{app.name}/current/.venv/bin/python"
    environment = [f"/etc/{app.name}/next/{file}" for file in files]
    return json.loads(run_python(host, script, environment=environment, python=python))


def test_running_application_changes_rows_only(host: Host, app: Installation) -> None:
    answers = ask_database(host, app, ["app.env"], ROWS + SCHEMA + SUPERUSER)
    assert {statement: answers[statement] for statement in ROWS} == dict.fromkeys(ROWS, "done")
    refused = {statement: answers[statement] for statement in SCHEMA + SUPERUSER}
    assert set(refused.values()) == {"InsufficientPrivilege"}, refused


def test_migrations_may_change_the_schema(host: Host, app: Installation) -> None:
    answers = ask_database(host, app, ["app.env", "migrate.env"], SCHEMA[:4] + SUPERUSER)
    assert {statement: answers[statement] for statement in SCHEMA[:4]} == dict.fromkeys(SCHEMA[:4], "done")
    refused = {statement: answers[statement] for statement in SUPERUSER}
    assert set(refused.values()) == {"InsufficientPrivilege"}, refused


def test_database_requires_a_password(host: Host, app: Installation) -> None:
    psql = f"PGPASSWORD=wrong psql --no-password -h 127.0.0.1 -d {app.name} -c 'SELECT 1' -U"
    answers = outcomes(host, [f"{psql} {user}" for user in (app.name, f"{app.name}_owner", "postgres")])
    for command, said in answers.items():
        assert "password authentication failed" in said, command
        assert said.split()[-1] == "2", command


def test_passwords_are_stored_as_verifiers(host: Host, app: Installation) -> None:
    stored = "SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolpassword IS NOT NULL"
    assert host.check_output(f'cd / && runuser -u postgres -- psql -tAc "{stored}"'.replace("$", r"\$")) == "t"
