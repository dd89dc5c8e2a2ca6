"""The function by which the application's role refreshes a materialized view or empties a table, as documented."""

from __future__ import annotations

import re
from types import SimpleNamespace

import psycopg
import pytest
from test_import_database import NAME, OWNER, ROOT, execute, server

__all__ = ["server"]

SCHEMA = """
CREATE TABLE sale (price integer);
CREATE MATERIALIZED VIEW report AS SELECT sum(price) AS total FROM sale;
"""


def documented() -> tuple[str, str]:
    """Return the statements of the migration in docs/your-project.md, and those that undo it."""
    text = (ROOT / "docs/your-project.md").read_text()
    [block] = re.findall(r"```python\n(migrations\.RunSQL\(.*?)```", text, re.S)
    return eval(block.strip().rstrip(","), {"migrations": SimpleNamespace(RunSQL=lambda *sql: sql)})


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("statement", "question", "answer"),
    [
        ("REFRESH MATERIALIZED VIEW report", "SELECT total FROM report", 3),
        ("TRUNCATE sale", "SELECT sum(price) FROM sale", None),
    ],
)
def test_documented_function_does_what_only_the_owner_may(statement: str, question: str, answer: int | None) -> None:
    forward, backward = documented()
    assert "REFRESH MATERIALIZED VIEW report" in forward
    execute(SCHEMA, NAME, OWNER)
    execute(forward.replace("REFRESH MATERIALIZED VIEW report", statement), NAME, OWNER)
    execute("INSERT INTO sale VALUES (1), (2)", NAME, NAME)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(statement, NAME, NAME)
    execute("SELECT refresh_report()", NAME, NAME)
    assert execute(question, NAME, NAME) == [(answer,)]
    execute(backward, NAME, OWNER)
    with pytest.raises(psycopg.errors.UndefinedFunction):
        execute("SELECT refresh_report()", NAME, NAME)
