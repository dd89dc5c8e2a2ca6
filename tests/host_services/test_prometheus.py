"""docs/monitoring: the rules and the dashboard in a real Prometheus, with what hostctl/watch/textfile.py writes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl.doctor.checks import CHECKS
from hostctl.doctor.finding import BAD, OK, WARN, Finding
from hostctl.watch import pause, textfile

DOCS = Path(__file__).parents[2] / "docs/monitoring"
# The text of each rule by its name. (The application's environment may have no YAML.)
RULES = dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n\n|\Z)", (DOCS / "rules.yml").read_text(), re.S))
DASHBOARD = json.loads((DOCS / "dashboard.json").read_text())
INSTANCE = "10.0.0.5:9100"
OLD, NEW = "91be02-55aa10", "3fa4c0-938f98"
HOUR, DAY, GIB = 3600, 86400, 2**30
# Of a server that is well; of the metrics with a label, two series.
WELL: dict[str, float] = {
    "site_up": 1, "site_seconds": 0.031, "requests": 240, "requests_5xx": 0, "latency_p50": 0.02, "latency_p95": 0.1,
    "queue_waiting:default": 3, "queue_waiting:heavy": 0, "queue_age:default": 4, "queue_age:heavy": 0,
    "tasks_finished": 60, "tasks_failed": 0, "cpu": 0.2, "memory_used": 0.6 * GIB, "memory_total": GIB,
    "memory:shop-web": 0.2 * GIB, "memory:shop-worker-default": 0.1 * GIB, "swap_used": 0, "disk_used": 9.1 * GIB,
    "disk_total": 24 * GIB, "inodes_used": 0.12, "database_connections": 9, "database_connections_limit": 50,
    "redis_memory:broker": 3 * 2**20, "redis_memory:cache": 12 * 2**20, "backup_age": 6 * HOUR, "offsite_age": 14,
    "drill_age": 2 * DAY, "certificate_days": 61.4, "beat_age": 3,
}  # fmt: skip
Situation = dict[str, Any]


def written(
    patch: pytest.MonkeyPatch, now: float, differs: Situation | None = None, paused: set[str] | None = None,
    release: str = NEW,
) -> str:  # fmt: skip
    """Return the textfile of a server that is well, except for `differs`: values, and the states of checks."""
    differs = differs or {}
    found = {check.name: Finding(differs.get(check.name, OK), "") for check in CHECKS}
    values = WELL | {name: value for name, value in differs.items() if name not in found}
    pauses = [pause.Pause("a deployment", frozenset(paused or ()), now + 60)]
    patch.setattr(pause, "pauses", lambda context: pauses)
    return textfile.describe(
        SimpleNamespace(configuration=SimpleNamespace(name="shop"), now=now, release=release), found, values
    )


def test_the_values_are_all_that_the_watch_writes() -> None:
    assert {name.partition(":")[0] for name in WELL} == set(textfile.METRICS)


def test_promtool_reads_the_textfile(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=written(monkeypatch, 1), capture_output=True, text=True, check=False)
    # Days, as certificates are spoken of.
    assert done.stderr.splitlines() == ['seedbed_certificate_days use base unit "seconds" instead of "days"']


# --- Rules


@dataclass(frozen=True)
class Rule:
    """When a rule fires: in a situation that has lasted for so many minutes. In that of `silent` it does not.

    A situation may be a function of the minute. `paused`: a pause of this check silences the rule.
    """

    bad: Situation | Callable[[int], Situation]
    silent: Situation | Callable[[int], Situation]
    minutes: int
    severity: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)
    paused: str = ""
    to_do: str = "On the server: sudo shopctl doctor"


def errors(number: float) -> Callable[[int], Situation]:
    """Return 5xx in one minute, of about 400 requests in five."""
    return lambda minute: {"requests": 80, "requests_5xx": number if minute == 10 else 0}


def disk(bytes_per_minute: float) -> Callable[[int], Situation]:
    return lambda minute: {"disk_used": 15 * GIB + minute * bytes_per_minute}


WITHIN_TWO_DAYS = 9 * GIB / (48 * 60)
EXPECTED = {
    "SeedbedCheckBad": Rule(
        {"beat": BAD}, {"beat": WARN}, 2, "critical", "beat is bad", {"check": "beat"}, paused="beat"
    ),
    "SeedbedCheckWarns": Rule(
        {"web": WARN}, {"web": OK}, 60, "warning", "web has a warning", {"check": "web"}, paused="web"
    ),
    "SeedbedSiteDown": Rule(
        {"site_up": 0}, {"site_up": 1}, 2, "critical", "the site does not answer", paused="site"
    ),
    "SeedbedErrors": Rule(
        errors(7), errors(5), 10, "critical", "7 answers with 5xx in five minutes, more than 1 %", paused="site"
    ),
    "SeedbedQueueWaits": Rule(
        {"queue_age:heavy": 301}, {"queue_age:heavy": 300}, 2, "warning",
        "the next task of the queue heavy has waited for 5m 1s", {"queue": "heavy"}, paused="queues",
    ),
    "SeedbedBackupLate": Rule(
        {"backup_age": 26 * HOUR + 1}, {"backup_age": 26 * HOUR}, 0, "warning", "the last backup is 1d 2h 0m 1s old",
        paused="backup",
    ),
    "SeedbedDrillLate": Rule(
        {"drill_age": 9 * DAY + 1}, {"drill_age": 9 * DAY}, 0, "warning", "no restore was rehearsed for 9d 0h 0m 1s"
    ),
    "SeedbedDiskFull": Rule(
        {"disk_used": 21.7 * GIB}, {"disk_used": 21.5 * GIB}, 0, "critical",
        "90.42% of the disk or of its inodes are in use",
    ),
    "SeedbedDiskFills": Rule(
        disk(1.02 * WITHIN_TWO_DAYS), disk(0.7 * WITHIN_TWO_DAYS), 6 * 60 + 30, "warning",
        "at the pace of the last day, the disk is full within two days",
    ),
    "SeedbedConnections": Rule(
        {"database_connections": 40}, {"database_connections": 39}, 2, "warning",
        "80% of PostgreSQL's connections are in use", paused="postgresql",
    ),
    "SeedbedCertificate": Rule(
        {"certificate_days": 19.4}, {"certificate_days": 20}, 0, "warning", "the certificate expires in 19.4 days"
    ),
}  # fmt: skip


def series(texts: list[str], alert: str = "") -> list[dict[str, str]]:
    """Return these textfiles, one a minute, as input of `promtool test rules`; with `alert`, of its metrics alone."""
    metrics = set(re.findall(r"seedbed_\w+", RULES[alert])) if alert else set()
    values: dict[str, list[str]] = {}
    for minute, text in enumerate(texts):
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if not line.startswith("#") and (not metrics or name.partition("{")[0] in metrics):
                values.setdefault(name, ["_"] * minute).append(value)
    labels = f',instance="{INSTANCE}",job="node"}}'
    return [{"series": name[:-1] + labels, "values": " ".join(found)} for name, found in values.items()]


def group(input_series: list[dict[str, str]], alert: str, expected: dict[int, list[dict]]) -> dict[str, Any]:
    """Return a test of promtool: which alerts of this name fire, by the minute."""
    tests = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": alerts} for minute, alerts in expected.items()
    ]
    return {"interval": "1m", "input_series": input_series, "alert_rule_test": tests}


def check(folder: Path, *groups: dict[str, Any], evaluated_every: str = "1m") -> None:
    """Run `promtool test rules`."""
    file = folder / "test.json"
    tests = {"rule_files": [str(DOCS / "rules.yml")], "evaluation_interval": evaluated_every, "tests": groups}
    file.write_text(json.dumps(tests))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fired(rule: Rule) -> list[dict]:
    """Return the alert as `promtool test rules` expects it."""
    return [
        {
            "exp_labels": {"app": "shop", "instance": INSTANCE, "job": "node", "severity": rule.severity} | rule.labels,
            "exp_annotations": {"summary": f"shop on {INSTANCE}: {rule.summary}", "description": rule.to_do},
        }
    ]


def in_situation(
    patch: pytest.MonkeyPatch, alert: str, situation: Situation | Callable[[int], Situation],
    paused: Callable[[int], bool] = lambda minute: False,
) -> list[dict[str, str]]:  # fmt: skip
    """Return the series of a rule's metrics in a situation; `paused` says in which minutes."""
    rule = EXPECTED[alert]
    texts = [
        written(
            patch, 60 * minute, situation(minute) if callable(situation) else situation,
            {rule.paused} if paused(minute) else None,
        )
        for minute in range(rule.minutes + 3)
    ]  # fmt: skip
    return series(texts, alert)


def never(rule: Rule) -> dict[int, list[dict]]:
    return {minute: [] for minute in range(rule.minutes + 3)}


@pytest.mark.parametrize("alert", EXPECTED)
def test_a_rule_fires_at_its_threshold_after_its_duration(
    alert: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = EXPECTED[alert]
    expected = ({rule.minutes - 1: []} if rule.minutes else {}) | {rule.minutes: fired(rule)}
    groups = [
        group(in_situation(monkeypatch, alert, rule.bad), alert, expected),
        group(in_situation(monkeypatch, alert, rule.silent), alert, never(rule)),
    ]
    if rule.paused:
        paused = in_situation(monkeypatch, alert, rule.bad, lambda minute: True)
        groups.append(group(paused, alert, never(rule)))
    check(tmp_path, *groups)


def test_few_errors_of_many_requests_are_no_alert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = in_situation(monkeypatch, "SeedbedErrors", lambda minute: errors(7)(minute) | {"requests": 140})
    check(tmp_path, group(few, "SeedbedErrors", {10: []}))


def test_errors_before_the_end_of_a_pause_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    explained = in_situation(monkeypatch, "SeedbedErrors", errors(7), lambda minute: minute <= 10)
    check(tmp_path, group(explained, "SeedbedErrors", {11: [], 12: []}))


def test_a_deployment_is_no_pace_of_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GiB within minutes, and nothing before and after."""
    alert = "SeedbedDiskFills"
    deployed = in_situation(monkeypatch, alert, lambda minute: {"disk_used": (15 + 2 * (minute > 30)) * GIB})
    check(tmp_path, group(deployed, alert, {minute: [] for minute in range(0, 6 * 60 + 30, 5)}))


def test_a_watch_that_stopped_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alert = "SeedbedWatchStopped"
    timer = "On the server: systemctl status shop-watch.timer; journalctl -u shop-watch -n 50"
    rule = Rule({}, {}, 0, "critical", "nothing was checked for five minutes", to_do=timer)
    stopped = [written(monkeypatch, 60 * min(minute, 10)) for minute in range(20)]
    # A server that was off shows its last file until the watch has run.
    booted = [written(monkeypatch, 0 if minute < 62 else 60 * minute) if minute > 60 else "" for minute in range(70)]
    check(
        tmp_path,
        group(series(stopped, alert), alert, {10: [], 15: [], 16: fired(rule)}),
        group(series(booted, alert), alert, {minute: [] for minute in range(60, 70)}),
    )


def test_a_server_that_does_not_report_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    to_do = f"On the machine of Prometheus: curl http://{INSTANCE}/metrics; on the server: "
    to_do += "systemctl status prometheus-node-exporter"
    rule = Rule({}, {}, 0, "critical", "Prometheus gets nothing from this server", to_do=to_do)
    given = series([written(monkeypatch, 60 * minute) for minute in range(11)], "SeedbedServerMissing")
    # Prometheus marks the series of a target that does not answer.
    gone = [one | {"values": f"{one['values']} stale"} for one in given]
    # The alert fires although other servers report.
    others = [one | {"series": one["series"].replace("10.0.0.5", "10.0.0.6"), "values": "1x30"} for one in given]
    check(
        tmp_path,
        group(gone + others, "SeedbedServerMissing", {10: [], 15: [], 16: fired(rule), 30: fired(rule)}),
        # One alert for it, not two.
        group(gone, "SeedbedMissing", {30: []}),
    )
    # It lasts for days.
    check(tmp_path, group(gone, "SeedbedServerMissing", {6 * 24 * 60: fired(rule)}), evaluated_every="1h")


def test_servers_that_never_reported_are_missing(tmp_path: Path) -> None:
    to_do = "On the machine of Prometheus: curl http://localhost:9090/api/v1/targets; on the servers: "
    to_do += "systemctl status prometheus-node-exporter"
    alert = {
        "exp_labels": {"severity": "critical"},
        "exp_annotations": {"summary": "No server of Seedbed reports to Prometheus", "description": to_do},
    }
    check(tmp_path, group([], "SeedbedMissing", {4: [], 5: [alert]}))


def test_every_rule_has_a_test() -> None:
    assert RULES.keys() == EXPECTED.keys() | {"SeedbedWatchStopped", "SeedbedServerMissing", "SeedbedMissing"}


def test_a_server_that_is_well_fires_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    well = group(series([written(monkeypatch, 60 * minute) for minute in range(70)]), "", {})
    well["alert_rule_test"] = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []} for alert in RULES for minute in (0, 5, 69)
    ]
    check(tmp_path, well)


# --- The dashboard


# The last hour; in the middle of it a release is switched, which is slower.
END = int(time.time()) // 60 * 60
SWITCH = END - HOUR // 2


class Prometheus:
    """A server with an hour of values."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str | int) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=10).status == 200
        except OSError:
            return False

    def query(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the series of a target of the dashboard, with its variables as Grafana replaces them."""
        expression = (
            target["expr"].replace("$app", "shop").replace("$instance", re.escape(INSTANCE).replace("\\", r"\\"))
        )
        if target.get("instant"):
            return self.get("/api/v1/query", query=expression, time=END)["result"]
        return self.get("/api/v1/query_range", query=expression, start=END - HOUR, end=END, step=60)["result"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    labels = f',instance="{INSTANCE}",job="node"}}'
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        for now in range(END - HOUR, END + 60, 60):
            release, slower = (NEW, {"latency_p95": 0.4}) if now >= SWITCH else (OLD, {})
            for line in written(patch, now, slower, release=release).splitlines():
                if not line.startswith("#"):
                    lines.append(f"{line.replace('}', labels)} {now}\n")
    (folder / "values").write_text("".join([*lines, "# EOF\n"]))
    import_values = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "values", "data"]
    subprocess.run(import_values, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    configuration = f"global: {{evaluation_interval: 1s}}\nrule_files: [{DOCS / 'rules.yml'}]\n"
    (folder / "prometheus.yml").write_text(configuration)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Prometheus(free.getsockname()[1])
    options = {
        "config.file": "prometheus.yml",
        "storage.tsdb.path": "data",
        "web.listen-address": server.url.removeprefix("http://"),
        "log.level": "warn",
    }
    process = subprocess.Popen(["prometheus", *(f"--{name}={value}" for name, value in options.items())], cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while not server.is_ready():
            assert process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < deadline, "Prometheus is not ready after 120 s"
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(120)


TARGETS = {
    f"{panel['title']} {target['refId']}": target for panel in DASHBOARD["panels"] for target in panel["targets"]
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_panel_shows_values(prometheus: Prometheus, name: str) -> None:
    target = TARGETS[name]
    found = prometheus.query(target)
    [metric] = set(re.findall(r"seedbed_\w+", target["expr"]))
    [(kind, label)] = [
        (kind, label) for kind, (known, label, _) in {**textfile.METRICS, "": (textfile.STATE[0], "check", "")}.items()
        if known == metric
    ]  # fmt: skip
    # Each series by a name of its own in the legend.
    legends = [
        re.sub(r"{{(\w+)}}", lambda name, of=one: of["metric"][name[1]], target["legendFormat"]) for one in found
    ]
    assert len(set(legends)) == len(found)
    expected = len(CHECKS) if metric == textfile.STATE[0] else sum(one.partition(":")[0] == kind for one in WELL)
    assert len(found) == expected
    assert all(not label or one["metric"][label] for one in found)
    assert target.get("instant") or {len(one["values"]) for one in found} == {61}


def test_variables_have_values(prometheus: Prometheus) -> None:
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"].replace("$app", "shop")
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
            where = {"match[]": metric, "start": END - HOUR, "end": END}
            found[variable["name"]] = prometheus.get(f"/api/v1/label/{label}/values", **where)
    assert found == {"app": ["shop"], "instance": [INSTANCE]}


def test_a_release_is_an_annotation_when_it_is_switched(prometheus: Prometheus) -> None:
    [annotation] = DASHBOARD["annotations"]["list"]
    found = {
        one["metric"]["release"]: [at for at, _ in one["values"]] for one in prometheus.query(annotation["target"])
    }
    assert found == {OLD: [END - HOUR, END - HOUR + 60], NEW: [SWITCH, SWITCH + 60]}


def test_prometheus_loads_the_rules(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 30
    while True:
        [group] = prometheus.get("/api/v1/rules")["groups"]
        health = [rule["health"] for rule in group["rules"]]
        if "unknown" not in health:
            break
        assert time.monotonic() < deadline, f"Rules are not evaluated after 30 s: {group}"
        time.sleep(0.1)
    assert health == ["ok"] * (len(EXPECTED) + 3)
