"""hostctl/watch/page.py: the status page; and the rules and the dashboard of docs/monitoring."""

from __future__ import annotations

import html.parser
import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from hostctl.deploy.record import history_file
from hostctl.doctor import checks
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Context, Finding
from hostctl.host import Host
from hostctl.watch import graph, history, page, pause, textfile
from tests.hostctl.fakes import NEW, OLD, make_release

NOW = 1_795_962_005
DAY = 86400
DOCS = Path(__file__).parents[2] / "docs/monitoring"


@pytest.fixture
def context(host: Host, tmp_path: Path) -> Context:
    places = {name: tmp_path / name for name in ("etc", "state", "web")}
    configuration = Configuration("shop", "vps1", ["web"], "https://shop.example.org", **places)
    return Context(host, configuration, now=NOW)


def deployed(host: Host, release: str, ended: float, *, status: int = 0) -> None:
    since = time.strftime("%FT%TZ", time.gmtime(ended - 40))
    entry = {"action": "deploy", "release": release, "status": status, "since": since, "seconds": 40.0}
    with history_file(host.settings).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def fill(context: Context, values: dict[int, dict[str, float]]) -> str:
    return "".join(sections(context, values))


def sections(context: Context, values: dict[int, dict[str, float]]) -> list[str]:
    """Record values by their age in seconds; return the graphs."""
    with history.opened(context.configuration.state_folder / "history.sqlite") as kept:
        for age, found in sorted(values.items(), reverse=True):
            kept.record(NOW - age, found)
        return page.graphs(context, kept)


def figures(text: str, section: str) -> dict[str, ElementTree.Element]:
    """Return the figures of a section by title."""
    part = text[text.index(f'<section id="{section}">') :]
    found = re.findall(r"<figure>.*?</figure>", part[: part.index("</section>")], re.S)
    elements = [ElementTree.fromstring(one) for one in found]
    return {element.findtext("figcaption/b", ""): element for element in elements}


def lines(figure: ElementTree.Element, kind: str) -> list[str]:
    return [path.get("d", "") for path in figure.iter("path") if path.get("class", "").startswith(kind)]


class Balanced(html.parser.HTMLParser):
    """Fails on an element that is not closed, and lists what a page loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "path"):
            self.open.append(tag)
        self.active += [tag] if tag in ("script", "iframe", "img") else []
        self.active += [name for name, _ in attributes if name.startswith("on")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_says_what_the_doctor_finds(context: Context) -> None:
    make_release(context.host, NEW)
    context.host.switch(NEW)
    deployed(context.host, NEW, NOW - 7200)
    found = {
        "site": Finding(OK, "200 in 31 ms", "not needed"),
        "queues": Finding(WARN, "default waits", "shopctl logs worker-default\nthen look again"),
        "backup": Finding(BAD, "<script>alert(1)</script> & <!--# echo -->", "set app_backup_target"),
    }
    page.write(context, found, sections(context, {60: {"requests": 3, "queue_age:<b>": 5}}))
    text = context.configuration.page.read_text()
    assert context.configuration.page.stat().st_mode & 0o777 == 0o644
    assert "Something is broken" in text
    assert '<time datetime="2026-11-29T14:20:05Z">2026-11-29 14:20 UTC</time>' in text
    assert f"release <code>{NEW}</code>, live for 2 h" in text
    assert "shopctl logs worker-default\nthen look again" in text
    assert "not needed" not in text
    # What others say neither runs, nor is it an instruction to nginx.
    reader = Balanced()
    reader.feed(text)
    assert reader.active == []
    assert reader.open == []
    assert text.count("<!--#") == 6


def test_what_is_bad_comes_first(context: Context) -> None:
    states = {"site": OK, "web": WARN, "queues": BAD, "beat": OK, "disk": BAD, "reboot": WARN}
    text = page.render(context, {name: Finding(state, "text") for name, state in states.items()}, [])
    assert re.findall(r"</span><b>(\w+)</b>", text) == ["queues", "disk", "web", "reboot", "site", "beat"]


def places(text: str) -> tuple[list[str], list[str]]:
    """Return the sections of a page, and those that its links lead to."""
    return re.findall(r'<section id="(\w+)">', text), re.findall(r'<a href="#(\w+)">', text)


def test_graphs_of_the_last_hours_precede_checks_that_are_ok(context: Context) -> None:
    found = {"site": Finding(OK, "200"), "web": Finding(WARN, "text"), "queues": Finding(BAD, "text")}
    graphs = sections(context, {60: {"requests": 3}})
    text = page.render(context, found, graphs)
    assert places(text) == (["wrong", "hours", "ok", "day", "week"], ["hours", "ok", "day", "week"])
    parts = {part.partition('"')[0]: part for part in text.split('<section id="')[1:]}
    assert re.findall(r"</span><b>(\w+)</b>", parts["wrong"]) == ["queues", "web"]
    assert re.findall(r"</span><b>(\w+)</b>", parts["ok"]) == ["site"]
    # All are ok; none is; there is no history.
    assert places(page.render(context, {"site": found["site"]}, graphs))[0] == ["hours", "ok", "day", "week"]
    only_bad = page.render(context, {"queues": found["queues"]}, graphs)
    assert places(only_bad) == (["wrong", "hours", "day", "week"], ["hours", "day", "week"])
    assert places(page.render(context, found, [])) == (["wrong", "ok"], [])


def test_a_host_without_release_or_values_has_a_page(context: Context) -> None:
    page.write(context, {}, sections(context, {}))
    text = context.configuration.page.read_text()
    assert "no release is live" in text
    assert "<section id" not in text


def test_nginx_is_told_for_how_long_the_page_is_new(context: Context) -> None:
    text = page.render(context, {}, [])
    new = re.search(r'expr="\$date_gmt = /(.*?)/"', text)
    assert new
    for later, is_new in ((0, True), (60, True), (180, True), (300, False), (-60, False)):
        shown = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(NOW + later))
        assert bool(re.search(new[1], shown)) is is_new


def test_only_graphs_with_values_are_shown(context: Context) -> None:
    text = fill(context, {60: {"requests": 3, "cpu": 0.2, "unknown": 1}})
    assert re.findall(r'<section id="(\w+)">\n<h2>(.*?)</h2>', text) == [
        ("hours", "Last 3 hours"),
        ("day", "Last 24 hours"),
        ("week", "Last 7 days"),
    ]
    for section in ("hours", "day", "week"):
        assert list(figures(text, section)) == ["Requests", "Processor"]


def test_the_first_graph_has_a_point_for_each_minute(context: Context) -> None:
    text = fill(context, {age: {"cpu": 0.5} for age in [DAY, *range(0, 4 * 3600, 60)]})
    [path] = lines(figures(text, "hours")["Processor"], "line")
    xs = [float(x) for x in re.findall(r"[M ]?([\d.]+) [\d.]+", path)]
    assert (len(xs), xs[0], xs[-1]) == (180, graph.LEFT, graph.WIDTH - graph.RIGHT)
    assert times(text, "hours") == ["11:30", "12:00", "12:30", "13:00", "13:30", "14:00"]


def test_the_axes_of_a_young_host_begin_with_its_first_value(context: Context) -> None:
    text = fill(context, {age: {"cpu": 0.5} for age in range(0, 3000, 60)})
    for section, points in (("hours", 50), ("day", 11), ("week", 2)):
        [path] = lines(figures(text, section)["Processor"], "line")
        assert path.startswith(f"M{graph.LEFT}.0 ")
        assert path.endswith(f"{graph.WIDTH - graph.RIGHT}.0 64.0")
        assert len(path.split()) == 2 * points
    assert times(text, "hours") == ["13:40", "13:50", "14:00", "14:10"]
    assert times(text, "week") == ["13:10", "13:20", "13:30", "13:40", "13:50"]


def test_the_first_value_has_an_axis(context: Context) -> None:
    text = fill(context, {0: {"cpu": 0.5}})
    for section in ("hours", "day", "week"):
        assert lines(figures(text, section)["Processor"], "line") == ["M354.0 64.0h.01"]


def test_the_axes_of_a_host_that_was_off_show_the_gap(context: Context) -> None:
    text = fill(context, {age: {"cpu": 0.5} for age in (30 * DAY, 60, 0)})
    for section in ("hours", "day"):
        [path] = lines(figures(text, section)["Processor"], "line")
        assert float(path[1:].split()[0]) > graph.WIDTH - graph.RIGHT - 5


def times(text: str, section: str) -> list[str]:
    """Return the times of the axis of a section's first graph."""
    figure = next(iter(figures(text, section).values()))
    return [one.text or "" for one in figure.iter("text") if one.get("text-anchor") == "middle"]


def legend(text: str, section: str, title: str) -> list[list[str]]:
    rows = figures(text, section)[title].findall("table/tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows[1:]]


def test_now_is_the_last_value(context: Context) -> None:
    ages = {age: {"queue_waiting:io": 0, "cpu": 0.1} for age in range(60, 7200, 60)}
    text = fill(context, ages | {0: {"queue_waiting:io": 3, "cpu": 0.9}})
    for section in ("hours", "day", "week"):
        assert legend(text, section, "Queue depth") == [["io", "3", "0", "3"]]
        # The points of a day and a week are averages, which do not reach it.
        assert legend(text, section, "Processor") == [["in use", "90 %", "10 %", "90 %"]]


def test_the_least_is_not_above_now(context: Context) -> None:
    """The points of a week are the maxima of hours."""
    ages = {age: {"database_connections": 5 if age % 600 == 0 else 1} for age in range(60, 3 * 3600, 60)}
    text = fill(context, ages | {0: {"database_connections": 2}})
    assert legend(text, "hours", "Database") == [["connections", "2", "1", "5"]]
    assert legend(text, "week", "Database") == [["connections", "2", "2", "5"]]


@pytest.mark.parametrize(
    ("name", "title", "axis"),
    [
        ("queue_age:io", "Queue age", ["0", "30 s", "60 s"]),
        ("latency_p50", "Latency", ["0", "50 ms", "100 ms"]),
        ("backup_age", "Backup", ["0", "30 min", "60 min"]),
        ("requests_5xx", "Errors", ["0", "1", "2"]),
        ("drill_age", "Restore drill", ["0", "2 d", "4 d"]),
    ],
)
def test_an_axis_without_height_has_a_sensible_one(context: Context, name: str, title: str, axis: list[str]) -> None:
    figure = figures(fill(context, {age: {name: 0} for age in (60, 0)}), "hours")[title]
    assert [one.text for one in figure.iter("text") if one.get("text-anchor") == "end"] == axis


def test_a_line_has_gaps_where_nothing_was_measured(context: Context) -> None:
    ages = [*range(0, 3600, 300), *range(7200, 9000, 300)]
    text = fill(context, {age: {"latency_p50": 0.01, "latency_p95": 0.2} for age in ages})
    paths = lines(figures(text, "day")["Latency"], "line")
    assert [path.count("M") for path in paths] == [2, 2]
    assert paths[0].endswith("354.0 109.0")


def test_a_peak_of_a_minute_is_seen(context: Context) -> None:
    text = fill(context, {age: {"queue_age:io": 900 if age == 7260 else 1} for age in range(7200, 7500, 60)})
    rows = figures(text, "day")["Queue age"].findall("table/tr")
    # Too old to be what is now.
    label, now, _, most = ("".join(cell.itertext()) for cell in rows[1])
    assert (label, now, most) == ("io", "-", "15 min")


def test_releases_are_vertical_lines(context: Context) -> None:
    deployed(context.host, OLD, NOW - 5 * DAY)
    deployed(context.host, "3fa4c0d-93", NOW - 12 * 3600)
    deployed(context.host, "failed-1", NOW - 3600, status=1)
    history_file(context.settings).open("a").write('{"action": "deploy", "status": 0}\n')
    text = fill(context, {age: {"requests": 1} for age in (8 * DAY, 60)})
    marks = {key: list(figures(text, key)["Requests"].iter("g")) for key in ("day", "week")}
    assert {key: [mark.findtext("text") for mark in found] for key, found in marks.items()} == {
        "day": ["3fa4c0d"],
        "week": ["3fa4c0d", "old"],
    }
    x = float(re.findall(r"M([\d.]+)", marks["day"][0].find("path").get("d"))[0])
    assert x == pytest.approx(graph.LEFT + (graph.WIDTH - graph.LEFT - graph.RIGHT) / 2, abs=3)


def test_releases_are_named_above_the_graphs(context: Context) -> None:
    """Of those that have a line, the newest ones."""
    deployed(context.host, "older-1", NOW - 10 * DAY)
    deployed(context.host, "friday-1", NOW - 2 * DAY)
    for hours in (8, 7, 6):
        deployed(context.host, f"r{hours}-1", NOW - hours * 3600)
    deployed(context.host, "r5-<1>", NOW - 5 * 3600)
    deployed(context.host, "failed-1", NOW - 3600, status=1)
    text = fill(context, {age: {"requests": 1} for age in (8 * DAY, 60)})
    named = dict(re.findall(r'<section id="(\w+)">\n<h2>[\w ]+</h2>\n<p class="soft releases">(.*?)</p>', text))
    named = {key: re.sub("</?code>", "", line) for key, line in named.items()}
    day = "Releases: r5-&lt;1&gt; at 09:20, r6-1 at 08:20, r7-1 at 07:20, r8-1 at 06:20 UTC"
    assert named == {"day": day, "week": day.replace(" at ", " at Sun ") + ", and 1 before"}
    marks = {key: len(list(figures(text, key)["Requests"].iter("g"))) for key in ("hours", "day", "week")}
    assert marks == {"hours": 0, "day": 4, "week": 5}


def test_releases_of_the_day_before_are_named_with_their_day(context: Context) -> None:
    """Also in the section of the last 24 hours."""
    for release, hours in (("evening-1", 20), ("midnight-1", 14.5), ("today-1", 14)):
        deployed(context.host, release, NOW - hours * 3600)
    text = fill(context, {age: {"requests": 1} for age in (8 * DAY, 60)})
    named = re.findall(r'<p class="soft releases">(.*?)</p>', text)[0]
    expected = "Releases: today-1 at 00:20, midnight-1 at Sat 23:50, evening-1 at Sat 18:20 UTC"
    assert re.sub("</?code>", "", named) == expected


def test_releases_of_one_hour_share_a_label() -> None:
    span = graph.Range(NOW // 3600 * 3600 - 7 * DAY, 3600, 168, [(NOW - 2 * DAY + 60 * n, f"r{n}-1") for n in range(5)])
    assert graph.releases(span).count("<text") == 1
    assert graph.releases(span).count("<path") == 5


def test_memory_by_service_is_stacked_and_bounded(context: Context) -> None:
    sizes = {f"memory:shop-{number}": (number + 1) * 2**20 for number in range(20)}
    figure = figures(fill(context, {60: sizes, 0: sizes}), "day")["Memory by service"]
    assert len(lines(figure, "stack")) == graph.COLORS
    rows = [["".join(cell.itertext()) for cell in row] for row in figure.findall("table/tr")]
    assert rows[1][:2] == ["19", "20 MiB"]
    assert rows[-1][:2] == ["others", f"{sum(range(1, 14))} MiB"]
    assert "300 MiB" in "".join(figure.itertext())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0"),
        (0.031, "seconds", "31 ms"),
        (1.5, "seconds", "1.5 s"),
        (90, "seconds", "90 s"),
        (7 * 3600, "seconds", "7 h"),
        (9 * DAY, "seconds", "9 d"),
        (1536, "bytes", "1.5 KiB"),
        (612 * 2**20, "bytes", "612 MiB"),
        (24 * 2**30, "bytes", "24 GiB"),
        (0.256, "share", "26 %"),
        (1204, "count", "1,204"),
        (0.4, "count", "0.4"),
    ],
)
def test_numbers_have_units(value: float, unit: str, text: str) -> None:
    assert graph.text_of(value, unit) == text


@pytest.mark.parametrize(
    ("value", "unit", "top"),
    [(0, "count", 2), (366, "count", 400), (0.7, "seconds", 0.8), (100, "seconds", 100), (5e8, "bytes", 600 * 2**20)],
)
def test_axes_end_at_round_numbers(value: float, unit: str, top: float) -> None:
    assert graph.rounded_up(value, unit) == pytest.approx(top)


def test_each_minute_has_one_run() -> None:
    """The history has one value for each minute of the clock; an interval after the last run would skip some."""
    timer = (DOCS.parents[1] / "roles/monitoring/templates/watch.timer.j2").read_text()
    starts = [line for line in timer.splitlines() if line.startswith("On")]
    assert starts == ["OnCalendar=*-*-* *:*:30"]
    assert {"RandomizedDelaySec=0", "AccuracySec=1s"} < set(timer.splitlines())


# --- docs/monitoring


METRIC = re.compile(r"\bseedbed_\w+")
DASHBOARD = json.loads((DOCS / "dashboard.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]


def written() -> set[str]:
    return {metric for metric, *_ in textfile.METRICS.values()} | {
        textfile.STATE[0],
        textfile.PAUSED[0],
        textfile.TIME[0],
        textfile.INFO[0],
    }


def test_rules_name_metrics_that_are_written() -> None:
    rules = [rule for group in yaml.safe_load((DOCS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        named = set(METRIC.findall(rule["expr"]))
        assert named
        assert named <= written()
        assert rule["annotations"]["summary"]


def test_rules_are_quiet_where_the_server_is() -> None:
    """By the checks that a deployment, a restore or a boot explains."""
    rules = {
        rule["alert"]: rule["expr"]
        for group in yaml.safe_load((DOCS / "rules.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    quiet = {alert for alert, expression in rules.items() if "seedbed_alerts_paused" in expression}
    pausing = pause.OF_DATABASE | {check.name for check in checks.CHECKS if check.pauses}
    # These name a check, or a value that one of those checks measures.
    words = ("seedbed_check_state ==", "site", "requests", "queue", "database", *(f'"{name}"' for name in pausing))
    assert quiet == {alert for alert, text in rules.items() if any(word in text for word in (*words, "backup_age"))}
    for alert in quiet:
        names = re.findall(r'seedbed_alerts_paused\{check="(\w+)"\}', rules[alert])
        assert names or "on (instance, app, check)" in rules[alert]
        assert set(names) <= pausing


LABEL = re.compile(r'\b(\w+)=~?"|\b(?:on|by) \(([\w, ]+)\)|\$labels\.(\w+)|{{(\w+)}}|, (\w+)\)$')


def labels_of(metric: str) -> set[str]:
    """Return the labels of a metric: Prometheus adds the instance."""
    own = {name: label for name, label, _ in textfile.METRICS.values()}
    own |= {textfile.STATE[0]: "check", textfile.PAUSED[0]: "check", textfile.INFO[0]: "release"}
    return {"app", "instance", own.get(metric, "")}


def assert_labels_are_written(expression: str, *texts: str) -> None:
    """Of an expression, and of texts that are rendered with its result."""
    named = {name for found in LABEL.findall(" ".join((*texts, expression))) for name in ", ".join(found).split(", ")}
    known = set().union(*(labels_of(metric) for metric in METRIC.findall(expression)))
    assert named
    assert named - {""} <= known


def test_rules_and_dashboard_name_labels_that_are_written() -> None:
    rules = [rule for group in yaml.safe_load((DOCS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        # That nothing is written has no labels.
        if rule["alert"] != "SeedbedMissing":
            assert_labels_are_written(rule["expr"], *rule["annotations"].values())
    for target in TARGETS:
        assert_labels_are_written(target["expr"], target["legendFormat"])
    [annotation] = DASHBOARD["annotations"]["list"]
    assert_labels_are_written(annotation["expr"], annotation["titleFormat"])
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert_labels_are_written(variable["query"]["query"])


def test_the_dashboard_names_metrics_that_are_written() -> None:
    named = [METRIC.findall(target["expr"]) for target in TARGETS]
    assert all(named)
    assert {metric for metrics in named for metric in metrics} <= written()
    # It has every graph of the status page.
    assert len(DASHBOARD["panels"]) == len(graph.GRAPHS) + 1


def test_panels_have_the_units_of_their_metrics() -> None:
    """Grafana's names for them."""
    units = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            [metric] = METRIC.findall(target["expr"])
            assert panel["fieldConfig"]["defaults"]["unit"] == units.get(metric.rpartition("_")[2], "short")


def test_grafana_can_import_the_dashboard() -> None:
    panels = DASHBOARD["panels"]
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"] == {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
    }  # fmt: skip
    assert DASHBOARD["schemaVersion"] >= 36  # From here on, `datasource` is an object.
    assert DASHBOARD["uid"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = []
    for place in (panel["gridPos"] for panel in panels):
        assert place["x"] + place["w"] <= 24
        columns, rows = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        cells += [(x, y) for x in columns for y in rows]
    assert len(set(cells)) == len(cells)
    asking = [*panels, *TARGETS, *DASHBOARD["annotations"]["list"], variables["app"], variables["instance"]]
    assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in asking)
    for panel in panels:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    # Grafana 8 reads the query of an annotation from `expr`, later ones from `target`.
    [annotation] = DASHBOARD["annotations"]["list"]
    assert annotation["target"]["expr"] == annotation["expr"]


def test_what_is_written_is_measured() -> None:
    """Each name of a value is in the source of a check or of the watch."""
    folder = DOCS.parents[1] / "hostctl"
    modules = [*(folder / "doctor").glob("*.py"), *(folder / "watch").glob("*.py")]
    source = "".join(path.read_text() for path in modules if path.name not in ("textfile.py", "graph.py"))
    assert [name for name in textfile.METRICS if not re.search(rf'"{name}[":]', source)] == []


def test_every_graph_is_of_values_that_prometheus_gets_too() -> None:
    names = {name.partition(":")[0] for one in graph.GRAPHS for name, _ in one.series}
    assert names | {one.limit for one in graph.GRAPHS if one.limit} <= set(textfile.METRICS)
