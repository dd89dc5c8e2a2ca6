"""The logs of the application's processes: systemd's journal, or Supervisor's log files."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from typing import Any, NoReturn

from .processes.supervisor import LOGS
from .settings import ReleaseError, Settings, tail


def process_pattern(settings: Settings, process: str) -> str:
    """Return a glob for the units of a process.

    That is web, worker, worker-NAME or process-NAME (or NAME), cron-NAME, beat or flower; "" stands for all.

    Raises ReleaseError for another name.
    """
    names = {"": "*", "web": "web@*", "worker": "worker-*", "beat": "beat", "flower": "flower"}
    names |= {f"cron-{name}": f"cron-{name}" for name in settings.cron}
    for kind, found in {"worker": settings.workers, "process": settings.processes}.items():
        for one in found:
            names[f"{kind}-{one.name}"] = f"{kind}-{one.name}@*"
            names.setdefault(one.name, names[f"{kind}-{one.name}"])
    if process not in names:
        raise ReleaseError(f"There is no process {process!r}; choose from: {', '.join(sorted(filter(None, names)))}.")
    return f"{settings.name}-{names[process]}"


def in_files(settings: Settings, process: str) -> bool:
    """Return whether a process logs to files. Flower and commands on a timer are always units of systemd."""
    return settings.manager == "supervisor" and process != "flower" and not process.startswith("cron-")


def log_files(settings: Settings, pattern: str) -> list[str]:
    return sorted(str(file) for file in (LOGS / settings.name).glob(f"{pattern}.log"))


def command(settings: Settings, process: str, *, follow: bool, lines: int) -> list[str]:
    """Return the command that shows the logs."""
    pattern = process_pattern(settings, process)
    if in_files(settings, process):
        files = log_files(settings, pattern)
        if not files:
            raise ReleaseError(f"{LOGS / settings.name} has no log {pattern}.log.")
        return ["tail", f"--lines={lines}", *(["-F"] if follow else []), *files]
    return ["journalctl", "--no-pager", f"--lines={lines}", f"--unit={pattern}", *(["--follow"] if follow else [])]


def show(settings: Settings, process: str, *, follow: bool, lines: int) -> NoReturn:
    """Become the command that shows the logs."""
    words = command(settings, process, follow=follow, lines=lines)
    os.execvp(words[0], words)


def entries(settings: Settings, process: str, lines: int) -> list[dict[str, Any]]:
    """Return the last lines as {"unit", "time", "message"}; Supervisor's log files have no time: None."""
    pattern = process_pattern(settings, process)
    if in_files(settings, process):
        return [
            {"unit": file.stem, "time": None, "message": line}
            for file in sorted((LOGS / settings.name).glob(f"{pattern}.log"))
            for line in tail(file.read_text(errors="replace"), lines).splitlines()
        ]
    words = [*command(settings, process, follow=False, lines=lines), "--output=json"]
    output = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return [journal_entry(json.loads(line)) for line in output.splitlines() if line.startswith("{")]


def journal_entry(fields: dict[str, Any]) -> dict[str, Any]:
    when = datetime.fromtimestamp(int(fields["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
    message = fields.get("MESSAGE") or ""
    # The journal gives text that is not UTF-8 as a list of bytes.
    text = bytes(message).decode(errors="replace") if isinstance(message, list) else message
    unit = fields.get("UNIT") or fields.get("_SYSTEMD_UNIT", "")
    return {"unit": unit.removesuffix(".service"), "time": when.isoformat(), "message": text}
