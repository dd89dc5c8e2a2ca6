"""Databases for tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg


@contextmanager
def new_database(template: str = "") -> Iterator[str]:
    """The URL of an empty database, or of a copy of the one at the URL `template`, to which nothing is connected.

    DATABASE_URL is a role that may create one.
    """
    server, name = os.environ["DATABASE_URL"], f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {urlsplit(template).path[1:] or 'template1'}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
