"""What is deployed on this host and what runs, as data and as text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import __version__, beat, parked
from .backup.notes import notes
from .deploy import health
from .deploy.record import Record, history
from .host import Host, release_of
from .processes.state import ProcessState
from .settings import ReleaseError, utc

# A process that was restarted so often, the last time less than so many seconds ago, does not keep running.
RESTARTS, STEADY = 2, 120
# Seconds after a start or a first restart until a process counts as stable. (deploy/verify.py waits for longer.)
SETTLE = 15


def status(host: Host) -> dict[str, Any]:
    """Return everything that one call of `status --json` answers."""
    current = host.current_release()
    return {
        "current": current,
        "releases": host.built(),
        "running": running(host),
        "beat": host.manager.beat_runs(),
        "cron": host.cron.states(current),
        "problems": problems(host),
        "domain": host.settings.of(current).domain if current else "",
        "health_path": host.settings.of(current).health_path if current else "",
        "health_status": host.settings.of(current).health_status if current else 200,
        "warnings": beat_warnings(host),
        "backup": notes(host.settings),
        "alerts": alert_notes(host),
        "versions": host.facts(current).get("versions", {}),
        # A release of an earlier version has not recorded it.
        "admin_page": host.facts(current).get("admin_page", "/admin/"),
        "parked": parked.number(host.settings, current, host.facts(current).get("key_prefix", "")),
        "deployment": Record(host.settings).unfinished() or None,
        "configuration": configuration(host),
        "version": __version__,
    }


def alert_notes(host: Host) -> list[str]:
    """Return why no one may be told when something breaks; [] when alerts arrive, or monitoring is off."""
    # These modules import this one.
    from .doctor.commands import context_of
    from .watch import alerts

    if not (alerts.UNITS / f"{host.settings.name}-watch.timer").exists():
        return []
    try:
        finding = alerts.look(context_of(host))
    except ReleaseError:
        return []
    return [finding.text] if finding and finding.state != "ok" else []


def beat_warnings(host: Host) -> list[str]:
    """Return what beat does not do although it runs."""
    return beat.warnings(host.settings) if host.manager.beat_runs() else []


def running(host: Host) -> list[dict[str, Any]]:
    return [
        {
            "unit": process.unit,
            "process": host.process_name(process.unit),
            "release": release_of(process.unit),
            "state": process.state,
            "restarts": process.restarts,
            "since": moment(process.since),
            "memory_kills": process.memory_kills,
        }
        for process in host.manager.states()
    ]


def moment(seconds: int) -> str:
    return time.strftime("%FT%TZ", time.gmtime(seconds)) if seconds else ""


def problems(host: Host) -> list[dict[str, str]]:
    """Return what of the current release should run and does not, each as {"process", "unit", "text"}.

    Asks the web process for its health page. Workers are not asked: see deploy/verify.py.
    """
    release = host.current_release()
    if not release:
        return []
    host = host.about(release)
    beat_unit = f"{host.settings.name}-beat"
    found = []
    if host.lacks_python(release):
        text = "its Python is gone (an upgrade of Debian): run site.yml, which makes its .venv again"
        found.append({"process": "release", "unit": "", "text": text})
    for state in host.manager.states_of(host.units(release) + ([beat_unit] if host.settings.beat else [])):
        process = "beat" if state.unit == beat_unit else host.process_name(state.unit)
        text = problem_of(state) or (page_problem(host, release) if process == "web" else "")
        found += [{"process": process, "unit": state.unit, "text": text}] if text else []
    for timer in host.cron.states(release):
        if timer["timer"] != "active":
            unit = f"{host.settings.name}-{timer['name']}.timer"
            found.append({"process": timer["name"], "unit": unit, "text": f"its timer is {timer['timer']}"})
    return found


def problem_of(state: ProcessState) -> str:
    """Return why a process does not run, or does not keep running; "" when it does."""
    since = f" since {utc(state.since)}" if state.since else ""
    if not state.runs:
        return f"{state.state}{since}"
    if state.restarts and time.time() - state.since < (STEADY if state.restarts >= RESTARTS else SETTLE):
        return f"{state.state}{since}, restarted {state.restarts} time{'s' if state.restarts > 1 else ''}"
    return ""


def page_problem(host: Host, release: str) -> str:
    """Return what is wrong with the health page on the release's own socket, or ""."""
    for _ in range(2):
        problem = health.problem(host.settings, host.socket(release), release)
        # One timeout on a busy machine is no problem.
        if not problem.startswith("no answer"):
            break
    return f"health check {host.settings.health_path}: {problem}" if problem else ""


def configuration(host: Host) -> dict[str, str]:
    """Return the hashes of the environment and of the process definitions that Ansible last wrote to this host."""
    folder = host.settings.etc / "configuration"
    return {name: stripped_text(folder / name) for name in ("environment", "processes")}


def stripped_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def describe(found: dict[str, Any]) -> str:
    """Format a status for a terminal."""
    lines = [f"current     {found['current'] or 'none'}", f"built       {', '.join(found['releases']) or 'none'}"]
    for process in found["running"]:
        restarts = f", {process['restarts']} restarts" if process["restarts"] else ""
        since = f" since {process['since']}" if process["since"] else ""
        kills = f", {process['memory_kills']} killed at the memory limit" if process["memory_kills"] else ""
        lines.append(f"running     {process['unit']} ({process['state']}{since}{restarts}{kills})")
    lines += ["running     beat"] if found["beat"] else []
    for timer in found["cron"]:
        last = f"last run {moment(timer['last'])}: {timer['result']}" if timer["last"] else "has not run yet"
        lines.append(f"on a timer  {timer['name']} ({'runs now' if timer['state'] == 'activating' else last})")
    if found["parked"]:
        lines.append(f"parked      {parked.number_of(found['parked'])}, which no worker runs: see `tasks parked list`")
    lines += [f"problem     {one['process']}: {one['text']}" for one in found["problems"]]
    lines += [f"warning     {text}" for text in found["warnings"]]
    lines += [f"backup      {text}" for text in found["backup"]]
    lines += [f"alerts      {text}" for text in found["alerts"]]
    if state := found["deployment"]:
        request = f"{state['action']} {state['release']} by {state['by']} since {state['since']}"
        lines.append(f"deployment  {request}, at step {state['step']}")
    return "\n".join(lines)


def previous_release(host: Host) -> str:
    """Return the release that was current when the current one was deployed, or else an earlier one.

    Raises ReleaseError when there is none.
    """
    built, current = host.built(), host.current_release()
    for entry in reversed(history(host.settings)):
        if entry["action"] == "deploy" and entry["status"] == 0 and entry["release"] == current:
            if entry.get("previous") in built and entry["previous"] != current:
                return entry["previous"]
            break
    older = built[built.index(current) + 1 :] if current in built else built
    if not older:
        available = ", ".join(built) or "none"
        raise ReleaseError(
            f"There is no release before {current or 'the first'} on this host; available: {available}.{newer(host)}"
        )
    return older[0]


def newer(host: Host) -> str:
    """Return the command that goes to a newer release, as a sentence; "" where there is none."""
    if not (others := [release for release in host.built() if release != host.current_release()]):
        return ""
    if host.settings.barriers:
        return f" To go to a newer one: ansible-playbook -i INVENTORY playbooks/rollback.yml -e release_id={others[0]}"
    return f" To go to a newer one: {host.settings.name}ctl rollback {others[0]}"


def table(entries: list[dict[str, Any]]) -> str:
    """Format the history for a terminal, newest first."""
    rows = [("when", "action", "release", "by", "seconds", "outcome")]
    for entry in reversed(entries):
        row = [entry["since"], entry["action"], entry["release"], entry["by"], str(entry["seconds"]), entry["outcome"]]
        rows.append(tuple(row))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    )
