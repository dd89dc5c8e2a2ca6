"""The ledger as the tests read it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

TICK = "ledger.tick"


@dataclass(frozen=True)
class Entry:
    """A line: START or END of a task, or an EFFECT. Times are seconds since the epoch; `sent_*` is of the message."""

    event: str
    at: float
    release: str
    id: str = ""
    name: str = ""
    worker: str = ""
    state: str = ""
    key: str = ""
    sent_at: float = 0.0
    sent_by: str = ""


@dataclass(frozen=True)
class Ledger:
    """All entries, in the order of their writing."""

    entries: list[Entry]

    @classmethod
    def parse(cls, text: str) -> Ledger:
        """Parse the file's text, except an incomplete last line. Raises ValueError for any other invalid line."""
        known = {field.name for field in fields(Entry)}
        whole, _, _ = text.rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        return cls(
            [
                Entry(**{name: value for name, value in line.items() if name in known and value is not None})
                for line in lines
            ]
        )

    def since(self, at: float) -> Ledger:
        return Ledger([entry for entry in self.entries if entry.at >= at])

    def of(self, event: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.event == event]

    @property
    def ended(self) -> set[str]:
        """The ids of the tasks that succeeded."""
        return {entry.id for entry in self.of("END") if entry.state == "SUCCESS"}

    @property
    def failures(self) -> list[Entry]:
        """The ends of tasks that neither succeeded nor will be retried. Without a state, a task is delivered again."""
        return [entry for entry in self.of("END") if entry.state not in ("SUCCESS", "RETRY", "")]

    @property
    def effects(self) -> Counter[str]:
        """The number of times that each effect happened."""
        return Counter(entry.key for entry in self.of("EFFECT"))

    @property
    def ticks(self) -> list[Entry]:
        """Each tick's first start, in the order of sending."""
        first: dict[str, Entry] = {}
        for entry in self.of("START"):
            if entry.name == TICK:
                first.setdefault(entry.id, entry)
        return sorted(first.values(), key=lambda entry: entry.sent_at)

    def twice(self, ids: Iterable[str] | None = None) -> dict[str, int]:
        """Return the tasks that started more than once, with their counts; only of these ids, if given."""
        starts = Counter(entry.id for entry in self.of("START"))
        wanted = starts if ids is None else set(ids)
        return {task: count for task, count in starts.items() if count > 1 and task in wanted}
