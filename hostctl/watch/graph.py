"""Graphs as SVG: lines or stacked areas over time, with axes, and releases as vertical lines."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from html import escape

from ..settings import utc

WIDTH, HEIGHT = 360, 132
LEFT, RIGHT, TOP, BOTTOM = 48, 6, 14, 18
# The room between the labels of two releases.
LABEL_ROOM = 50
COLORS = 8
# Seconds between the times of the axis: the first with which there is room for their labels.
TICKS, MOST_TICKS = (60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400), 7
# Series: average and maximum by number of the part of time.
Parts = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Graph:
    """`series`: name of the values and what the legend calls them; a name that ends in `:` is one series per label.

    `unit`: count, seconds, bytes or share. `highest`: show the maximum of each part of time, not its average.
    `limit`: the name of a value that is drawn as an upper bound. `least`: what the axis shows at least, where it
    is not what LEAST says.
    """

    title: str
    unit: str
    series: tuple[tuple[str, str], ...]
    note: str = ""
    stacked: bool = False
    highest: bool = False
    limit: str = ""
    least: float = 0
    # Drawn in red.
    errors: tuple[str, ...] = ()

    def names(self, known: set[str]) -> list[tuple[str, str]]:
        """Return name and label of the series that are there."""
        found = []
        for name, label in self.series:
            if name.endswith(":"):
                found += [(one, one.partition(":")[2]) for one in sorted(known) if one.startswith(name)]
            elif name in known:
                found.append((name, label))
        return found


GRAPHS = (
    Graph("Requests", "count", (("requests", "requests"),), "per minute"),
    Graph(
        "Errors", "count", (("requests_5xx", "5xx"),), "answers with 5xx per minute",
        highest=True, errors=("requests_5xx",),
    ),
    Graph("Latency", "seconds", (("latency_p50", "half"), ("latency_p95", "95 %")), "of requests took less"),
    Graph("Queue depth", "count", (("queue_waiting:", ""),), "messages that wait", highest=True),
    Graph("Queue age", "seconds", (("queue_age:", ""),), "of the oldest message", highest=True, least=60),
    Graph(
        "Tasks", "count", (("tasks_finished", "finished"), ("tasks_failed", "failed")), "per minute",
        errors=("tasks_failed",),
    ),
    Graph("Processor", "share", (("cpu", "in use"),)),
    Graph("Memory", "bytes", (("memory_used", "in use"), ("swap_used", "swap")), limit="memory_total"),
    Graph("Memory by service", "bytes", (("memory:", ""),), stacked=True),
    Graph("Disk", "bytes", (("disk_used", "in use"),), limit="disk_total"),
    Graph(
        "Database", "count", (("database_connections", "connections"),), "connections",
        highest=True, limit="database_connections_limit",
    ),
    Graph("Redis", "bytes", (("redis_memory:", ""),), "memory"),
    Graph("Backup", "seconds", (("backup_age", "age"),), "time since the last one", least=3600),
    Graph(
        "Off-site copy", "seconds", (("offsite_age", "age"),), "time since the last one",
        highest=True, least=60,
    ),
    Graph("Restore drill", "seconds", (("drill_age", "age"),), "time since the last one", least=4 * 86400),
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """`size` parts of time of `step` seconds from `start` on; `marks` are times and names of releases."""

    start: int
    step: int
    size: int
    marks: list[tuple[float, str]] = field(default_factory=list)

    def x(self, part: float) -> float:
        return LEFT + part / max(1, self.size - 1) * (WIDTH - LEFT - RIGHT)

    def x_of(self, moment: float) -> float:
        return self.x((moment - self.start) / self.step)

    @property
    def end(self) -> int:
        """Return the beginning of the last part."""
        return self.start + self.step * (self.size - 1)

    @property
    def has_days(self) -> bool:
        """Return whether a time of the range needs its day."""
        return self.end - self.start > 86400

    def shown_marks(self) -> list[tuple[float, str]]:
        """Return the releases of the range, oldest first."""
        return [mark for mark in self.marks if self.start <= mark[0] < self.end + self.step]


@dataclass(frozen=True)
class Row:
    """A row of the legend, as text."""

    label: str
    now: str
    least: str
    most: str


@dataclass(frozen=True)
class Line:
    """A series that is drawn. `now`: its last value, None when that is too old to be called so."""

    label: str
    number: int | str
    values: dict[int, float]
    parts: Parts
    now: float | None


def draw(
    graph: Graph, span: Range, series: dict[str, Parts], newest: dict[str, float]
) -> tuple[str, list[tuple[int | str, Row]]]:
    """Return the picture, and the legend's rows with the numbers of their colors."""
    lines = [
        Line(label, color(graph, name, number), values_of(graph, series[name]), series[name], newest.get(name))
        for number, (name, label) in enumerate(graph.names({name for name, parts in series.items() if parts}))
    ]
    if graph.stacked:
        lines = largest(lines)
    limit = max((high for _, high in series.get(graph.limit, {}).values()), default=0)
    top = axis_top(graph, lines, limit)
    shapes = [grid(graph.unit, top, span)]
    shapes += stack(lines, span, top) if graph.stacked else [curve(line, span, top, len(lines) == 1) for line in lines]
    if limit and limit <= top:
        shapes.append(f'<path class="limit" d="M{LEFT} {y_of(limit, top):.1f}H{WIDTH - RIGHT}"/>')
    shapes.append(releases(span))
    if not lines:
        shapes = [grid(graph.unit, top, span)]
    title = f"{graph.title} {graph.note}".strip()
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(shapes)}</svg>'
    return picture, [(line.number, row(graph.unit, line)) for line in lines]


def color(graph: Graph, name: str, number: int) -> int | str:
    return "x" if name in graph.errors else number % COLORS


def values_of(graph: Graph, parts: Parts) -> dict[int, float]:
    return {part: (high if graph.highest else average) for part, (average, high) in sorted(parts.items())}


def largest(lines: list[Line]) -> list[Line]:
    """Return the largest series, and the sum of the others."""
    ordered = sorted(lines, key=lambda line: (line.label == "others", -sum(line.values.values())))
    shown, rest = ordered[: COLORS - 1], ordered[COLORS - 1 :]
    if rest:
        values: dict[int, float] = {}
        for line in rest:
            for part, value in line.values.items():
                values[part] = values.get(part, 0) + value
        parts = {part: (value, value) for part, value in values.items()}
        now = [line.now for line in rest if line.now is not None]
        shown.append(Line("others", 0, values, parts, sum(now) if now else None))
    return [replace(line, number=number) for number, line in enumerate(shown)]


def axis_top(graph: Graph, lines: list[Line], limit: float) -> float:
    """Return the upper end of the axis, above all values; above the limit, where they are near to it."""
    if graph.unit == "share":
        return 1.0
    if graph.stacked:
        top = max(totals(lines).values(), default=0)
    else:
        top = max((value for line in lines for value in line.values.values()), default=0)
    if limit and top > limit / 4:
        top = max(top, limit)
    return rounded_up(max(top, graph.least), graph.unit)


def totals(lines: list[Line]) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in lines:
        for part, value in line.values.items():
            found[part] = found.get(part, 0) + value
    return found


# --- Shapes


def y_of(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def curve(line: Line, span: Range, top: float, alone: bool) -> str:
    """Return a line with gaps where there are no data; one that is alone with an area below it, and its maxima."""
    runs = runs_of(line.values)
    points = [points_of(run, span, top) for run in runs]
    shapes = []
    if alone:
        floor = f"{y_of(0, top):.1f}"
        # The averages and above them, fainter, the maxima.
        upper = [points_of([(part, line.parts[part][1]) for part, _ in run], span, top) for run in runs]
        for kind, outlines in (("peak", upper), ("area", points)):
            shapes += [
                f'<path class="{kind} s{line.number}" d="M{outline}L{span.x(run[-1][0]):.1f} {floor}'
                f'H{span.x(run[0][0]):.1f}Z"/>'
                for run, outline in zip(runs, outlines, strict=True)
                if len(run) > 1
            ]
    # A point that is alone is as wide as the line.
    path = "".join(f"M{outline}{'' if len(run) > 1 else 'h.01'}" for run, outline in zip(runs, points, strict=True))
    return "".join(shapes) + f'<path class="line s{line.number}" d="{path}"/>'


def stack(lines: list[Line], span: Range, top: float) -> list[str]:
    """Return areas on top of each other, the first one at the bottom."""
    floor = dict.fromkeys(sorted(totals(lines)), 0.0)
    shapes = []
    for line in lines:
        ceiling = {part: value + line.values.get(part, 0) for part, value in floor.items()}
        for run in runs_of(ceiling):
            upper = points_of(run, span, top)
            lower = points_of([(part, floor[part]) for part, _ in reversed(run)], span, top)
            shapes.append(f'<path class="stack s{line.number}" d="M{upper}L{lower}Z"/>')
        floor = ceiling
    return shapes


def runs_of(values: dict[int, float]) -> list[list[tuple[int, float]]]:
    """Return runs of parts without a gap between them."""
    runs: list[list[tuple[int, float]]] = []
    for part, value in values.items():
        if runs and runs[-1][-1][0] == part - 1:
            runs[-1].append((part, value))
        else:
            runs.append([(part, value)])
    return runs


def points_of(run: list[tuple[int, float]], span: Range, top: float) -> str:
    return " ".join(f"{span.x(part):.1f} {y_of(value, top):.1f}" for part, value in run)


def grid(unit: str, top: float, span: Range) -> str:
    """Return the axes: three values, and times (UTC)."""
    shapes = []
    for share in (0, 0.5, 1):
        y = y_of(share * top, top)
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        shapes.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{text_of(share * top, unit)}</text>')
    seconds_shown = span.end - span.start
    every = next(seconds for seconds in TICKS if seconds == TICKS[-1] or seconds_shown <= MOST_TICKS * seconds)
    for moment in range(-(-span.start // every) * every, span.end + 1, every):
        x = span.x_of(moment)
        shapes.append(f'<path class="grid" d="M{x:.1f} {HEIGHT - BOTTOM}v3"/>')
        if LEFT + 8 < x < WIDTH - RIGHT - 8:
            label = tick(moment, days=span.has_days)
            shapes.append(f'<text x="{x:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{label}</text>')
    return "".join(shapes)


def tick(moment: int, *, days: bool) -> str:
    """Return the time, or the day of the week at its beginning where the axis has several days."""
    return time.strftime("%a" if days and moment % 86400 == 0 else "%H:%M", time.gmtime(moment))


def releases(span: Range) -> str:
    """Return a vertical line for each release, with its short name where there is room."""
    shapes, occupied = [], float(WIDTH + LABEL_ROOM)
    # The newest one has a label in any case.
    for moment, release in reversed(span.shown_marks()):
        x = min(span.x_of(moment), WIDTH - RIGHT)
        label = ""
        if x <= occupied - LABEL_ROOM:
            occupied = x
            anchor = "end" if x > WIDTH - RIGHT - LABEL_ROOM else "start" if x < LEFT + LABEL_ROOM else "middle"
            label = f'<text x="{x:.1f}" y="9" text-anchor="{anchor}">{escape(short(release))}</text>'
        shapes.append(
            f'<g class="release"><title>{escape(release)}, {utc(moment)}</title>'
            f'<path d="M{x:.1f} {TOP - 2}V{HEIGHT - BOTTOM}"/>{label}</g>'
        )
    return "".join(shapes)


def short(release: str) -> str:
    return release.partition("-")[0][:7]


# --- Numbers


def row(unit: str, line: Line) -> Row:
    """Return what the legend says of a series: its last value; the least and the most of what the graph shows."""
    # A point of a graph may be an average or a maximum; the last value must not be outside of the two.
    shown = [*line.values.values(), *([] if line.now is None else [line.now])]
    now = "-" if line.now is None else text_of(line.now, unit)
    return Row(line.label, now, text_of(min(shown), unit), text_of(max(shown), unit))


SIZES = {
    "bytes": ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB")),
    "seconds": ((0.001, "ms"), (1, "s"), (60, "min"), (3600, "h"), (86400, "d")),
    "count": ((1, ""), (10**6, "M")),
    "share": ((0.01, "%"),),
}
# The least that an axis shows, so that noise does not look like an event.
LEAST = {"bytes": 2**20, "seconds": 0.1, "count": 2, "share": 1}


def size_of(value: float, unit: str) -> tuple[float, str]:
    """Return the unit in which a value is written. Minutes, hours and days begin at two."""
    chosen = SIZES[unit][0]
    for factor, word in SIZES[unit][1:]:
        if value >= factor * (2 if unit == "seconds" and factor > 1 else 1):
            chosen = (factor, word)
    return chosen


def text_of(value: float, unit: str) -> str:
    """Return a value with its unit, with two or three digits."""
    if value == 0:
        return "0"
    factor, word = size_of(value, unit)
    number = value / factor
    digits = 0 if number >= 10 or abs(number - round(number)) < 0.05 else 1
    return f"{number:,.{digits}f} {word}".strip()


def rounded_up(value: float, unit: str) -> float:
    """Return the next round number in the value's unit, whose half is round, too."""
    value = max(value, LEAST[unit])
    factor, _ = size_of(value, unit)
    number = value / factor
    power = 10 ** math.floor(math.log10(number))
    return next(step * power for step in (1, 2, 3, 4, 6, 8, 10) if step * power >= number * 0.9999) * factor
