"""The status page: what the doctor has found, and graphs. Static HTML and SVG, without scripts."""

from __future__ import annotations

import time
from html import escape

from ..deploy.record import began_at, history
from ..doctor.finding import BAD, OK, STATES, WARN, Context, Finding, duration, worst
from ..settings import Settings, utc
from . import style
from .files import replace_file
from .graph import GRAPHS, Graph, Range, draw
from .history import HOUR, History, Series

# Graphs: key, title, seconds that they show, seconds that a point stands for.
RANGES = (("hours", "3 hours", 3 * 3600, 60), ("day", "24 hours", 86400, 300), ("week", "7 days", 7 * 86400, 3600))
# Points that the axis of a young host has at least.
LEAST_POINTS = 2
# Seconds for which a value is what is now.
NEW = 180
# Older than so many minutes, the page says that it is old: nginx compares its own time, by SSI.
OLD_MINUTES = 3
MOST_RELEASES = 40
# Releases that are named above the graphs of a range.
NAMED_RELEASES = 4
VERDICTS = {OK: "All is well", WARN: "Needs attention", BAD: "Something is broken"}
MARKS = {OK: "ok", WARN: "!", BAD: "x"}


def write(context: Context, found: dict[str, Finding], graph_sections: list[str]) -> None:
    """Write the page. Raises OSError."""
    replace_file(context.configuration.page, render(context, found, graph_sections), 0o644)


def render(context: Context, found: dict[str, Finding], graph_sections: list[str]) -> str:
    """Return the page: what is wrong, the graphs of the last hours, the checks that are ok, the longer graphs."""
    name, host = escape(context.configuration.name), escape(context.configuration.host)
    state = worst([finding.state for finding in found.values()])
    written = utc(context.now)
    # What is bad comes first: it is what a phone shows.
    ordered = sorted(found.items(), key=lambda item: -STATES.index(item[1].state))
    wrong = [describe(one, finding) for one, finding in ordered if finding.state != OK]
    well = [describe(one, finding) for one, finding in ordered if finding.state == OK]
    links = [f'<a href="#{key}">{title}</a>' for key, title, *_ in RANGES]
    links[1:1] = ['<a href="#ok">Checks</a>'] if well else []
    nav = f"<nav>{' '.join(links)}</nav>" if graph_sections else ""
    sections = [
        section("wrong", "Checks that are not ok", wrong),
        *graph_sections[:1],
        section("ok", "Checks that are ok", well),
        *graph_sections[1:],
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta http-equiv="refresh" content="60">
<link rel="icon" href="data:,">
<title>{MARKS[state]} {name} on {host}</title>
<style>{style.CSS}</style>
</head>
<body>
<header>
<h1>{name} <small>on {host}</small></h1>
<p class="verdict {state}">{VERDICTS[state]}</p>
<p class="soft">Written <time datetime="{iso(context.now)}">{written}</time>{release_note(context)}</p>
{old_note(name, context.now, written)}
{nav}
</header>
<main>
{"".join(sections)}</main>
</body>
</html>
"""


def release_note(context: Context) -> str:
    if not context.release:
        return " · no release is live"
    since = next((when for when, release in reversed(switches(context.settings)) if release == context.release), 0)
    age = f", live for {duration(context.now - since)}" if since else ""
    return f" · release <code>{escape(context.release)}</code>{age}"


def old_note(name: str, now: float, written: str) -> str:
    """Return what nginx makes a warning of when the time is none of the next minutes."""
    minutes = [time.strftime("%Y-%m-%dT%H:%M", time.gmtime(now + 60 * later)) for later in range(OLD_MINUTES + 1)]
    text = f"This page is old: nothing has been written since {written}. On the server, look at"
    text += f" <code>systemctl status {name}-watch.timer {name}-watch</code>."
    return (
        '<!--# config timefmt="%Y-%m-%dT%H:%M" -->'
        f'<!--# set var="old" value="<p class=old>{text}</p>" -->'
        f'<!--# if expr="$date_gmt = /({"|".join(minutes)})/" --><!--# set var="old" value="" --><!--# endif -->'
        '<!--# echo var="old" encoding="none" default="" -->'
    )


def section(key: str, title: str, items: list[str]) -> str:
    """Return a list of findings with its title."""
    if not items:
        return ""
    return f'<section id="{key}">\n<h2>{title}</h2>\n<ul class="checks">\n{"".join(items)}</ul>\n</section>\n'


def describe(name: str, finding: Finding) -> str:
    """Return a finding as an item of the list."""
    remedy = ""
    if finding.state != OK and finding.remedy:
        remedy = f"<pre>{escape(finding.remedy)}</pre>"
    return (
        f'<li class="{finding.state}"><span class="mark">{MARKS[finding.state]}</span><b>{escape(name)}</b>'
        f"<div>{escape(finding.text)}{remedy}</div></li>\n"
    )


def graphs(context: Context, kept: History) -> list[str]:
    """Return the graphs of the last hours, day and week: a section of each, or none without values."""
    now = int(context.now)
    marks = switches(context.settings)[-MOST_RELEASES:]
    newest = kept.newest(now - NEW, now)
    first = kept.first()
    spans = [span_of(seconds, step, now, first, marks) for _, _, seconds, step in RANGES]
    found = [
        kept.by_hours(span.start, now) if span.step == HOUR else kept.by_minutes(span.start, now, span.step)
        for span in spans
    ]
    known = set().union(*found)
    shown = [graph for graph in GRAPHS if graph.names(known)]
    if not shown:
        return []
    return [
        f'<section id="{key}">\n<h2>Last {title}</h2>\n{named_releases(span)}<div class="graphs">\n'
        + "\n".join(figure(context, graph, span, series, newest) for graph in shown)
        + "\n</div>\n</section>\n"
        for (key, title, *_), span, series in zip(RANGES, spans, found, strict=True)
    ]


def named_releases(span: Range) -> str:
    """Return a line with the newest releases of a range, newest first: touch screens show no tooltips."""
    shown = span.shown_marks()[::-1]
    if not shown:
        return ""
    names = ", ".join(
        f"<code>{escape(release)}</code> at {time_in(span, moment)}" for moment, release in shown[:NAMED_RELEASES]
    )
    more = f", and {len(shown) - NAMED_RELEASES} before" if len(shown) > NAMED_RELEASES else ""
    return f'<p class="soft releases">Releases: {names} UTC{more}</p>\n'


def time_in(span: Range, moment: float) -> str:
    """Return a time; with its day in a range of several days, and if it is not of the day on which the range ends."""
    is_today = time.gmtime(moment)[:3] == time.gmtime(span.end)[:3]
    return time.strftime("%H:%M" if is_today and not span.has_days else "%a %H:%M", time.gmtime(moment))


def span_of(seconds: int, step: int, now: int, first: int | None, marks: list[tuple[float, str]]) -> Range:
    """Return the range of a graph. It ends now; on a young host it begins with the first value."""
    last = now // step * step
    start = last - seconds + step
    if first is not None:
        start = max(start, min(first // step * step, last - (LEAST_POINTS - 1) * step))
    return Range(start, step, (last - start) // step + 1, marks)


def figure(context: Context, graph: Graph, span: Range, series: Series, newest: dict[str, float]) -> str:
    """Return a graph with its title, and a legend with numbers."""
    picture, legend = draw(graph, span, series, newest)
    own = f"{context.configuration.name}-"
    rows = "".join(
        f'<tr><th><i class="s{number}"></i>{escape(row.label.removeprefix(own))}</th>'
        f"<td>{row.now}</td><td>{row.least}</td><td>{row.most}</td></tr>"
        for number, row in legend
    )
    table = (
        f"<table><tr><th></th><td>now</td><td>min</td><td>max</td></tr>{rows}</table>"
        if rows
        else '<p class="soft">no data</p>'
    )
    caption = f"<figcaption><b>{escape(graph.title)}</b> {escape(graph.note)}</figcaption>"
    return f"<figure>{caption}\n{picture}\n{table}</figure>"


def switches(settings: Settings) -> list[tuple[float, str]]:
    """Return when each successful deployment or rollback of this host has ended, and its release, oldest first."""
    found = []
    for entry in history(settings):
        if entry.get("status") == 0 and entry.get("action") in ("deploy", "rollback"):
            try:
                began = began_at(entry)
                found.append((began + float(entry.get("seconds", 0)), str(entry["release"])))
            except (KeyError, ValueError):
                # A line of another version.
                continue
    return found


def iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
