"""What the watch knows, for the textfile collector of Prometheus' node exporter."""

from __future__ import annotations

from pathlib import Path

from ..doctor.finding import STATES, Context, Finding
from . import pause
from .files import replace_file

FOLDER = Path("/var/lib/prometheus/node-exporter")
# By the name of a value: the metric, the label of what follows its colon, and what it says.
METRICS = {
    "site_up": ("seedbed_site_up", "", "1 if the site answers, 0 if not."),
    "site_seconds": ("seedbed_site_seconds", "", "How long the site's health page took."),
    "requests": ("seedbed_requests_per_minute", "", "Requests of visitors in the last minute."),
    "requests_5xx": ("seedbed_requests_5xx_per_minute", "", "Those that were answered with 5xx."),
    "latency_p50": ("seedbed_latency_p50_seconds", "", "Half of the requests took less."),
    "latency_p95": ("seedbed_latency_p95_seconds", "", "95 % of the requests took less."),
    "queue_waiting": ("seedbed_queue_waiting", "queue", "Messages that wait in a queue."),
    "queue_age": ("seedbed_queue_age_seconds", "queue", "How long the next message of a queue has been waiting."),
    "tasks_finished": ("seedbed_tasks_finished_per_minute", "", "Tasks that succeeded in the last minute."),
    "tasks_failed": ("seedbed_tasks_failed_per_minute", "", "Tasks that failed in the last minute."),
    "cpu": ("seedbed_cpu_ratio", "", "Share of time in which the processors worked."),
    "memory_used": ("seedbed_memory_used_bytes", "", "Memory in use."),
    "memory_total": ("seedbed_memory_total_bytes", "", "Memory of the host."),
    "memory": ("seedbed_service_memory_bytes", "service", "Anonymous memory of the processes of a service."),
    "swap_used": ("seedbed_swap_used_bytes", "", "Swap in use."),
    "disk_used": ("seedbed_disk_used_bytes", "", "Used space of the fullest file system."),
    "disk_total": ("seedbed_disk_total_bytes", "", "Its size."),
    "inodes_used": ("seedbed_inodes_used_ratio", "", "Share of inodes in use."),
    "database_connections": ("seedbed_database_connections", "", "Connections to PostgreSQL."),
    "database_connections_limit": ("seedbed_database_connections_limit", "", "The most that PostgreSQL accepts."),
    "redis_memory": ("seedbed_redis_memory_bytes", "redis", "Memory of a Redis."),
    "backup_age": ("seedbed_backup_age_seconds", "", "Time since the last backup."),
    "offsite_age": ("seedbed_offsite_age_seconds", "", "Time since the last copy off the host."),
    "drill_age": ("seedbed_drill_age_seconds", "", "Time since a restore was last rehearsed."),
    "certificate_days": ("seedbed_certificate_days", "", "Days until the certificate expires."),
    "beat_age": ("seedbed_beat_age_seconds", "", "Time since beat last ticked."),
}
STATE = ("seedbed_check_state", "What a check of the doctor has found: 0 ok, 1 warn, 2 bad.")
PAUSED = ("seedbed_alerts_paused", "Is no alert sent about a check, as during a deployment? 1 yes, 0 no.")
TIME = ("seedbed_watch_timestamp_seconds", "When these values were written.")
INFO = ("seedbed_release_info", "The live release.")


def write(context: Context, found: dict[str, Finding], values: dict[str, float]) -> None:
    """Write the file if the folder of the node exporter is there. Raises OSError."""
    if FOLDER.is_dir():
        replace_file(FOLDER / "seedbed.prom", describe(context, found, values), 0o644)


def describe(context: Context, found: dict[str, Finding], values: dict[str, float]) -> str:
    """Return the text: one metric after another."""
    app = {"app": context.configuration.name}
    quiet = {name for paused in pause.pauses(context) for name in paused.checks}
    metrics = {
        STATE: [(app | {"check": name}, STATES.index(finding.state)) for name, finding in found.items()],
        PAUSED: [(app | {"check": name}, int(name in quiet)) for name in found],
        TIME: [(app, context.now)],
        INFO: [(app | {"release": context.release}, 1)],
    }
    for name, value in values.items():
        kind, _, label = name.partition(":")
        if kind in METRICS:
            metric, label_name, text = METRICS[kind]
            labels = app | {label_name: label} if label_name else app
            metrics.setdefault((metric, text), []).append((labels, value))
    lines = []
    for (metric, text), samples in metrics.items():
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge"]
        lines += [f"{metric}{{{as_labels(labels)}}} {value:.10g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def as_labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in labels.items())


def escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
