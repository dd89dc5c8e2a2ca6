"""What a check has found, and what it may read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..host import Host
from ..processes.state import ProcessState
from ..settings import ReleaseError, Settings
from .configuration import Configuration

OK, WARN, BAD = "ok", "warn", "bad"
# From the best to the worst.
STATES = (OK, WARN, BAD)
# Within the limit of a check.
PROCESSES_SECONDS = 4


@dataclass(frozen=True)
class Finding:
    """How one thing is: its state, a sentence, and what to type unless it is well.

    `remedy` is lines: each can be typed as it is, or is a comment, which begins with `# `.

    `values` are numbers for the history, in bytes, seconds, or counts; the name of one of several ends in `:LABEL`
    (queue_waiting:default). `alert`: is a person told? By default of what is bad.
    """

    state: str
    text: str
    remedy: str = ""
    values: dict[str, float] = field(default_factory=dict)
    alert: bool | None = None

    @property
    def alerts(self) -> bool:
        return self.state != OK and (self.state == BAD if self.alert is None else self.alert)


@dataclass
class Context:
    """What checks read. `memory` is what the watch keeps from one minute to the next: the watch alone writes to it."""

    host: Host
    configuration: Configuration
    memory: dict[str, Any] = field(default_factory=dict)
    # Does the watch run them, not a person?
    watches: bool = False
    # The clone of Ansible that asks: `by`, `path`, and `settings`, the digest of each of its settings by name;
    # `inventories`, the files and folders that commands name.
    clone_settings: dict[str, Any] | None = None
    now: float = field(default_factory=time.time)
    lock: threading.Lock = field(default_factory=threading.Lock)
    answer: Future[dict[str, ProcessState]] | None = None

    @property
    def settings(self) -> Settings:
        return self.host.settings

    @cached_property
    def program(self) -> str:
        """The name of the program, for remedies."""
        return f"{self.configuration.name}ctl"

    @cached_property
    def release(self) -> str:
        return self.host.current_release()

    @property
    def processes(self) -> dict[str, ProcessState]:
        """The state of each unit of the current release on this host, and of beat; asked once for all checks.

        Raises ReleaseError, also when the process manager does not answer in time.
        """
        with self.lock:
            if self.answer is None:
                self.answer = Future()
                threading.Thread(target=self.ask_processes, args=[self.answer], daemon=True).start()
        try:
            return self.answer.result(PROCESSES_SECONDS)
        except TimeoutError:
            text = f"the process manager has not answered in {PROCESSES_SECONDS:g} s"
            raise ReleaseError(text) from None

    def ask_processes(self, answer: Future[dict[str, ProcessState]]) -> None:
        try:
            beat = [f"{self.configuration.name}-beat"] if self.settings.beat else []
            units = [*self.host.units(self.release), *beat] if self.release else []
            answer.set_result({state.unit: state for state in self.host.manager.states_of(units)})
        except Exception as error:
            answer.set_exception(error)


@dataclass(frozen=True)
class Check:
    """A check by name. `seconds` is its limit.

    `pauses`: a deployment or maintenance may cause what it finds, so no alert is sent meanwhile. `hourly`: it costs so
    much that the watch runs it once an hour.
    """

    name: str
    look: Callable[[Context], Finding | None]
    seconds: float = 5.0
    pauses: bool = False
    hourly: bool = False


def worst(states: list[str]) -> str:
    """Return the worst of these states."""
    return max(states, key=STATES.index, default=OK)


def plural(number: float, word: str) -> str:
    """Return `1 queue`, `2 queues`."""
    return f"{number:,.0f} {word}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds in words: 40 s, 12 min, 3 h, 5 d."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
