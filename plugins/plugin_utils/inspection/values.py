"""What the evaluator knows about a value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

# So many values of one expression are considered.
MOST = 8


@dataclass(frozen=True)
class Unknown:
    """A value that only running the project would tell; `names` are environment variables that it depends on."""

    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FromEnvironment:
    """A value that depends on environment variables, and what it is in the environment of a release."""

    names: frozenset[str]
    value: Any = Unknown()


@dataclass(frozen=True)
class Either:
    """The values that branches of the code give; which one it is, is unknown."""

    values: tuple[Any, ...]


@dataclass
class Call:
    """A call of something outside of the project, such as kombu.Queue("mail") or crontab(minute=5)."""

    name: str
    arguments: list[Any] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class External:
    """A module, function or class outside of the project, by its dotted name."""

    name: str


UNKNOWN = Unknown()


def either(*values: Any) -> Any:
    """Return what one of several branches gives."""
    flat: list[Any] = []
    for value in values:
        for item in value.values if isinstance(value, Either) else [value]:
            if not any(item is other or same(item, other) for other in flat):
                flat.append(item)
    if len(flat) > MOST and all(isinstance(item, list) for item in flat):
        # Of lists that conditions extend, such as urlpatterns: all items, since the combinations double with each.
        union: list[Any] = []
        for item in itertools.chain.from_iterable(flat):
            union += [item] if not any(item is other or same(item, other) for other in union) else []
        return union
    if not flat or len(flat) > MOST:
        return Unknown(names_of(values))
    return flat[0] if len(flat) == 1 else Either(tuple(flat))


def same(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:
        return False


def names_of(value: Any, depth: int = 6) -> frozenset[str]:
    """Return the environment variables that a value, or a part of it, depends on."""
    if depth == 0:
        return frozenset()
    if isinstance(value, FromEnvironment):
        return value.names | names_of(value.value, depth - 1)
    if isinstance(value, Unknown):
        return value.names
    parts: Any = ()
    if isinstance(value, Either):
        parts = value.values
    elif isinstance(value, Call):
        parts = [*value.arguments, *value.keywords.values()]
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    return frozenset().union(*(names_of(part, depth - 1) for part in parts))


def possibilities(value: Any) -> list[Any]:
    """Return the values that a value may have in the environment of a release, without unknown ones."""
    if isinstance(value, FromEnvironment):
        return possibilities(value.value)
    if isinstance(value, Either):
        return [item for part in value.values for item in possibilities(part)]
    return [] if isinstance(value, Unknown) else [value]


def plain(value: Any) -> Any:
    """Return the one value that it has in the environment of a release; Unknown where there are several."""
    found = possibilities(value)
    several = isinstance(value, Either) or (isinstance(value, FromEnvironment) and isinstance(value.value, Either))
    return found[0] if len(found) == 1 and not several else Unknown(names_of(value))


def is_known(value: Any) -> bool:
    return not isinstance(value, Unknown | FromEnvironment | Either)


def lift(function: Callable[..., Any], *values: Any) -> Any:
    """Apply a function to values, some of which may be unknown or depend on the environment."""
    if all(is_known(value) for value in values):
        try:
            return function(*values)
        except Exception:
            return Unknown(frozenset().union(*map(names_of, values)))
    if any(isinstance(value, FromEnvironment) for value in values):
        names = frozenset().union(*(value.names for value in values if isinstance(value, FromEnvironment)))
        inner = [value.value if isinstance(value, FromEnvironment) else value for value in values]
        result = lift(function, *inner)
        if isinstance(result, FromEnvironment):
            return FromEnvironment(names | result.names, result.value)
        return FromEnvironment(names, result)
    if any(isinstance(value, Unknown) for value in values):
        return Unknown(frozenset().union(*map(names_of, values)))
    choices = [value.values if isinstance(value, Either) else (value,) for value in values]
    combined = list(itertools.islice(itertools.product(*choices), MOST * 2))
    return either(*(lift(function, *combination) for combination in combined))


def truth(value: Any) -> bool | None:
    """Return whether a condition holds in the environment of a release; None where that is unknown."""
    if isinstance(value, FromEnvironment):
        return truth(value.value)
    if isinstance(value, Either):
        answers = {truth(item) for item in value.values}
        return answers.pop() if len(answers) == 1 else None
    if isinstance(value, Unknown | Call | External):
        return None
    try:
        return bool(value)
    except Exception:
        return None


def walk(value: Any, depth: int = 8) -> Iterator[Any]:
    """Yield a value and its parts."""
    yield value
    if depth == 0:
        return
    parts: Any = ()
    if isinstance(value, FromEnvironment):
        parts = [value.value]
    elif isinstance(value, Either):
        parts = value.values
    elif isinstance(value, Call):
        parts = [*value.arguments, *value.keywords.values()]
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    for part in list(parts):
        yield from walk(part, depth - 1)


def text_of(value: Any) -> str:
    """Return a text or path as text; "" for others."""
    value = plain(value)
    return str(value) if isinstance(value, str | PurePosixPath) else ""
