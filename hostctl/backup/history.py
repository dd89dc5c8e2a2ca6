"""Is the write-ahead log in a repository complete? pgBackRest's own commands say "ok" with segments missing in between.

A segment is named by timeline, log and number in the log, of eight hexadecimal digits each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .tools import lsn_number

# The usual size of a segment is 16 MiB, and that of a log 4 GiB.
LOG_BYTES = 2**32
SEGMENT = re.compile(r"(?:^|/)([0-9A-F]{24})-[0-9a-f]{40}(?:\.\w+)?$")


def segments(files: Iterable[str]) -> list[str]:
    """Return the segments among the files of an archive."""
    return [found[1] for file in files if (found := SEGMENT.search(file))]


def missing(found: Iterable[str], first: str, last: str, segment_bytes: int, history: str = "") -> list[str]:
    """Return the segments from `first` to `last` that were not found, each on the timeline that leads to `last`.

    `history` is the file of the last timeline: it says where each earlier one was left. Segments of other timelines, or
    after that place, are of a state that a restore gave up.
    """
    present = {(segment[:8], number(segment, segment_bytes)) for segment in found}
    ends = [(f"{int(words[0]):08X}", lsn_number(words[1]) // segment_bytes) for words in lines(history)]
    names = []
    for one in range(number(first, segment_bytes), number(last, segment_bytes) + 1):
        timeline = last[:8]
        # Backwards: a timeline may have been left earlier than the one before it.
        for parent, end in reversed(ends):
            if one >= end:
                break
            timeline = parent
        if (timeline, one) not in present:
            names.append(name(timeline, one, segment_bytes))
    return names


def lines(history: str) -> list[list[str]]:
    """Return the words of each line of a history file: timeline, position, and why it was left."""
    found = [line.split() for line in history.splitlines() if line[:1].isdigit()]
    return [words for words in found if len(words) >= 2]


def following(segment: str, segment_bytes: int) -> str:
    """Return the segment after one, on the same timeline."""
    return name(segment[:8], number(segment, segment_bytes) + 1, segment_bytes)


def number(segment: str, segment_bytes: int) -> int:
    """Return the position of a segment in its timeline."""
    return int(segment[8:16], 16) * (LOG_BYTES // segment_bytes) + int(segment[16:], 16)


def name(timeline: str, number: int, segment_bytes: int) -> str:
    """Return the segment at a position of a timeline."""
    log, place = divmod(number, LOG_BYTES // segment_bytes)
    return f"{timeline}{log:08X}{place:08X}"


def describe(names: list[str]) -> str:
    """Return the segments in words: the first ones, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
