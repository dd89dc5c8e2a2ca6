"""Measured values: a week by the minute, a year by the hour.

SQLite keeps one row for each value: 40 of them need about 20 MB in the end, however long the host runs.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..settings import say

HOUR = 3600
MINUTES_KEPT = 7 * 86400
HOURS_KEPT = 366 * 86400
# So that unexpected labels cannot fill the disk.
MOST_SERIES = 200
SCHEMA = """
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS minute (time INTEGER, series INTEGER, value REAL, PRIMARY KEY (time, series)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hour (time INTEGER, series INTEGER, average REAL, maximum REAL, PRIMARY KEY (time, series))
    WITHOUT ROWID;
"""
DELETE_UNUSED_SERIES = "DELETE FROM series WHERE id NOT IN (SELECT series FROM minute UNION SELECT series FROM hour)"
# Average and maximum of parts of time, by name and number of the part.
Series = dict[str, dict[int, tuple[float, float]]]


@contextmanager
def opened(path: Path) -> Iterator[History]:
    """Open the history, and begin it where there is none.

    A damaged file is kept as NAME.damaged, and a new one is begun. Raises sqlite3.OperationalError, as on a full disk.
    """
    try:
        connection = connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        keep_damaged(path, error)
        connection = connect(path)
    with closing(connection):
        try:
            yield History(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            # The next run begins a new one.
            keep_damaged(path, error)


def connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # SQLite would create it with the mode of the umask.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=5)
    try:
        # One fsync fewer a minute; a file that a power failure damages is replaced.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def keep_damaged(path: Path, error: sqlite3.DatabaseError) -> None:
    damaged = path.with_name(f"{path.name}.damaged")
    say(f"The history {path} is damaged ({error}): it is kept as {damaged.name}, and a new one begins.")
    path.rename(damaged)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


class History:
    """An open history."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def record(self, now: float, values: dict[str, float]) -> None:
        """Add the values of a minute; remove what is too old and, once an hour, series without values."""
        minute = int(now) // 60 * 60
        with self.connection:
            numbers = self.numbers(list(values))
            rows = [(minute, numbers[name], value) for name, value in values.items() if name in numbers]
            self.connection.executemany("INSERT OR REPLACE INTO minute VALUES (?, ?, ?)", rows)
            self.sum_up(minute // HOUR * HOUR)
            self.connection.execute("DELETE FROM minute WHERE time < ?", (minute - MINUTES_KEPT,))
            self.connection.execute("DELETE FROM hour WHERE time < ?", (minute - HOURS_KEPT,))
            # It reads both tables, so not in each minute.
            if minute % HOUR == 0:
                self.connection.execute(DELETE_UNUSED_SERIES)

    def numbers(self, names: list[str]) -> dict[str, int]:
        """Return the numbers of series; new ones get one as long as there are not too many."""
        known = dict(self.connection.execute("SELECT name, id FROM series"))
        for name in [name for name in names if name not in known][: max(0, MOST_SERIES - len(known))]:
            known[name] = self.connection.execute("INSERT INTO series (name) VALUES (?)", (name,)).lastrowid
        return known

    def sum_up(self, until: int) -> None:
        """Write the averages and maxima of the hours that have ended since the last time."""
        last = self.connection.execute("SELECT max(time) FROM hour WHERE time < ?", (until,)).fetchone()[0]
        since = 0 if last is None else last + HOUR
        if since >= until:
            return
        self.connection.execute(
            "INSERT OR REPLACE INTO hour SELECT time / 3600 * 3600, series, avg(value), max(value) FROM minute"
            " WHERE time >= ? AND time < ? GROUP BY 1, 2",
            (since, until),
        )

    def first(self) -> int | None:
        """Return the time of the first minute that is kept; of its hour, where only that is kept; None without any."""
        minute = self.connection.execute("SELECT min(time) FROM minute").fetchone()[0]
        hour = self.connection.execute("SELECT min(time) FROM hour").fetchone()[0]
        if minute is None or hour is None:
            return hour if minute is None else minute
        return hour if hour < minute // HOUR * HOUR else minute

    def newest(self, since: int, now: int) -> dict[str, float]:
        """Return the last value of each series that has one since then."""
        # SQLite takes the other columns from the row that has the maximum.
        query = (
            "SELECT name, value, max(time) FROM minute JOIN series ON id = series"
            " WHERE time >= ? AND time <= ? GROUP BY series"
        )
        return {name: value for name, value, _ in self.connection.execute(query, (since, now))}

    def by_minutes(self, since: int, now: int, step: int) -> Series:
        """Return the values from `since` on, in parts of `step` seconds numbered from 0."""
        return self.parts(
            "SELECT name, (time - ?) / ?, avg(value), max(value) FROM minute JOIN series ON id = series"
            " WHERE time >= ? AND time <= ? GROUP BY series, 2",
            (since, step, since, now),
        )

    def by_hours(self, since: int, now: int) -> Series:
        """Return the values from `since`, a full hour, on, in hours numbered from 0; the present one so far."""
        found = self.parts(
            "SELECT name, (time - ?) / 3600, average, maximum FROM hour JOIN series ON id = series"
            " WHERE time >= ? AND time <= ?",
            (since, since, now),
        )
        present = now // HOUR * HOUR
        for name, parts in self.by_minutes(present, now, HOUR).items():
            found.setdefault(name, {})[(present - since) // HOUR] = parts[0]
        return found

    def parts(self, query: str, values: tuple[int, ...]) -> Series:
        found: Series = {}
        for name, part, average, maximum in self.connection.execute(query, values):
            found.setdefault(name, {})[part] = (average, maximum)
        return found
