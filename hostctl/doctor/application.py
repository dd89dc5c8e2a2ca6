"""The application: its site, its processes, and beat."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import beat
from ..processes.state import ProcessState
from ..processes.systemd import UNITS, Systemd
from ..settings import read_file, utc
from ..status import page_problem, problem_of
from ..watch.machine import unit_of
from .finding import BAD, OK, WARN, Context, Finding, duration, plural

# Where nginx answers on this host.
HTTPS = ("127.0.0.1", 443)
PROCESSES = Path("/proc")
# Requests of the doctor and of the watch, which the watch does not count.
AGENT = "seedbed-watch"
# What a request to a socket says that is not there, or on which nothing listens.
NO_LISTENER = re.compile(r"\[Errno (?:2|111)\]")
# Seconds for which requests with an error count, and what is too many: more than so many, and than such a share.
ERROR_SECONDS, ERRORS, ERROR_SHARE = 300, 5, 0.01
# Restarts within so many seconds that are too many.
RESTART_SECONDS, RESTARTS = 600, 3
# Seconds after the time of its next tick at which beat is late.
BEAT_WARN, BEAT_BAD = 90, 180


# --- The site ------------------------------------------------------------------------------------------------------


def site(context: Context) -> Finding | None:
    """Request the health page by the release's own socket, and through nginx as a visitor does."""
    if "web" not in context.configuration.groups:
        return None
    if not context.release:
        return no_release(context)
    remedy = f"{context.program} logs web; tail /var/log/nginx/{context.configuration.name}.error.log"
    maintenance = (context.configuration.web / context.configuration.name / "maintenance").is_symlink()
    # A health page that is not exempt from maintenance (nginx_maintenance_paths) is the page of maintenance.
    expected = {context.settings.health_status, 503} if maintenance else {context.settings.health_status}
    began = time.monotonic()
    problem = page_problem(context.host, context.release)
    if not problem and (status := visit(context)) not in expected:
        problem = f"status {status} through nginx" if status else "nginx does not answer on port 443"
        remedy = f"systemctl status nginx; nginx -t; {remedy}"
    seconds = time.monotonic() - began
    if NO_LISTENER.search(problem):
        problem = "no web process listens, so visitors get nginx's error page (502)"
        remedy = f"systemctl start {context.configuration.name}; {context.program} verify; {remedy}"
    if problem:
        return Finding(BAD, problem, remedy, {"site_up": 0.0})
    requests, errors = recent_requests(context)
    text = f"https://{site_host(context)} in {seconds * 1000:.0f} ms"
    text += f", release {context.release}; 5xx {errors:,} of {requests:,} in 5 min"
    values = {"site_up": 1.0, "site_seconds": round(seconds, 4)}
    if maintenance:
        command = "ansible-playbook -i INVENTORY playbooks/maintenance.yml -e maintenance_state=off"
        return Finding(WARN, f"maintenance mode is on: visitors get its page; {text}", command, values)
    if errors > ERRORS and errors > ERROR_SHARE * requests:
        return Finding(BAD, f"{errors:,} of {requests:,} requests in 5 min failed (5xx)", remedy, values)
    return Finding(OK, text, values=values)


def visit(context: Context, timeout: float = 3) -> int:
    """Request the health page from nginx, and return the status; 0 without an answer. (See certificate.py for TLS.)"""
    settings = context.settings
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPConnection(settings.domain, timeout=timeout)
    try:
        plain = socket.create_connection(HTTPS, timeout)
        try:
            connection.sock = unchecked.wrap_socket(plain, server_hostname=settings.domain)
        except BaseException:
            plain.close()
            raise
        headers = {"Host": site_host(context), "User-Agent": AGENT}
        connection.request("GET", settings.health_path or "/", headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def site_host(context: Context) -> str:
    """Return the domain of the live release, with the port of the site if it is not 443.

    The configuration has the next domain already when it was changed and not yet deployed.
    """
    port = urlsplit(context.configuration.url).port
    return f"{context.settings.domain}:{port}" if port else context.settings.domain


def recent_requests(context: Context) -> tuple[int, int]:
    """Return the requests of the last minutes, and how many of them failed; as the watch has counted them."""
    minutes = [one for one in context.memory.get("requests", []) if one[0] > context.now - ERROR_SECONDS]
    return round(sum(one[1] for one in minutes)), round(sum(one[2] for one in minutes))


def no_release(context: Context) -> Finding:
    return Finding(WARN, "no release is live", "ansible-playbook -i INVENTORY playbooks/deploy.yml")


# --- Processes -----------------------------------------------------------------------------------------------------


def web(context: Context) -> Finding | None:
    """Return how the web process of the current release is."""
    return of_units(context, context.host.web_units(context.release) if context.release else [], "web")


def workers(context: Context) -> Finding | None:
    """Return how the workers, further processes, commands on a timer and Flower are."""
    host, name = context.host, context.configuration.name
    if not context.release and "worker" in context.configuration.groups and "web" not in context.configuration.groups:
        return no_release(context)
    units = host.units(context.release) if context.release else []
    units = [unit for unit in units if not host.is_web(unit)]
    flower = f"{name}-flower"
    if "scheduler" in context.configuration.groups and (UNITS / f"{flower}.service").exists():
        units.append(flower)
    timers = host.cron.states(context.release) if context.release else []
    found = of_units(context, units, "worker")
    for timer in timers:
        problem = problem_of_timer(context, timer)
        found = problem if problem and (found is None or found.state != BAD) else found
    if timers and (found is None or found.state == OK):
        found = Finding(OK, "; ".join(filter(None, [found.text if found else "", plural(len(timers), "timer")])))
    return found


def problem_of_timer(context: Context, timer: dict[str, Any]) -> Finding | None:
    """Return what is wrong with a command on a timer."""
    if timer["timer"] != "active":
        return Finding(BAD, f"{timer['name']}: its timer is {timer['timer']}", f"{context.program} verify")
    if timer["result"] != "success" and timer["state"] not in ("active", "activating"):
        text = f"{timer['name']} failed at {utc(timer['last'])}: {timer['result']}"
        return Finding(WARN, text, f"{context.program} logs {timer['name']}", alert=True)
    return None


def of_units(context: Context, units: list[str], process: str) -> Finding | None:
    """Return how units are: whether they run, how often they were restarted, and whether a signal has stopped them."""
    if not units:
        return None
    if context.host.lacks_python(context.release):
        text = "the release's Python is gone, as after an upgrade of Debian"
        return Finding(BAD, text, "ansible-playbook -i INVENTORY site.yml")
    states = states_of(context, units)
    problems = [f"{short_name(context, state)} {text}" for state in states if (text := problem_of(state))]
    restarts = {state.unit: restarts_in_a_while(context, state) for state in states}
    problems += [
        f"{short_name(context, state)} was restarted {number} times in 10 min (limit {RESTARTS})"
        for state in states if (number := restarts[state.unit]) > RESTARTS and not problem_of(state)
    ]  # fmt: skip
    stopped = stopped_processes(units)
    if problems:
        names = [short_name(context, state) for state in states if problem_of(state) or restarts[state.unit] > RESTARTS]
        return Finding(BAD, "; ".join(problems), remedy_of(context, states, names, process))
    if stopped:
        numbers = " ".join(map(str, stopped))
        return Finding(BAD, f"stopped by a signal, and does nothing: process {numbers}", f"kill -CONT {numbers}")
    names = ", ".join(short_name(context, state).removeprefix("worker-") for state in states)
    verb = "runs" if len(states) == 1 else "run"
    return Finding(OK, f"{names}: {verb}, {plural(sum(state.restarts or 0 for state in states), 'restart')}")


def remedy_of(context: Context, states: list[ProcessState], names: list[str], process: str) -> str:
    """Return how to start what does not run; `names` are those with a problem."""
    if all(state.state == "inactive" for state in states):
        # As `systemctl stop` leaves them.
        return f"systemctl start {context.configuration.name}; {context.program} verify"
    logs = names[0] if len(names) == 1 else process
    return f"{context.program} verify; {context.program} logs {logs}"


def states_of(context: Context, units: list[str]) -> list[ProcessState]:
    """Return the states of units; Flower's, which systemd has under both process managers, too."""
    flower = [unit for unit in units if unit == f"{context.configuration.name}-flower"]
    states = [context.processes[unit] for unit in units if unit in context.processes]
    return [*states, *Systemd(context.settings).process_states(flower)]


def short_name(context: Context, state: ProcessState) -> str:
    return context.host.process_name(state.unit)


def restarts_in_a_while(context: Context, state: ProcessState) -> int:
    """Return how often a unit was restarted in the last minutes; the watch remembers earlier numbers."""
    number = state.restarts or 0
    kept = context.memory.get("restarts", {}).get(state.unit, [])
    kept = [one for one in kept if one[0] > context.now - RESTART_SECONDS and one[1] <= number]
    if context.watches:
        memory = context.memory.setdefault("restarts", {})
        memory[state.unit] = [*kept, [context.now, number]]
        for unit, entries in list(memory.items()):
            # Of a release that has ended.
            if entries[-1][0] <= context.now - RESTART_SECONDS:
                memory.pop(unit, None)
    return number - kept[0][1] if kept else 0


def stopped_processes(units: list[str]) -> list[int]:
    """Return the processes of units that a signal (SIGSTOP) has stopped: they live, and do nothing."""
    found = []
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state == "T" and unit_of(folder) in units:
                found.append(int(folder.name))
        except (OSError, IndexError):  # It has ended.
            continue
    return sorted(found)


# --- Beat ----------------------------------------------------------------------------------------------------------


def look_at_beat(context: Context) -> Finding | None:
    """Return whether beat runs, ticks, and has sent what was due."""
    if not context.release or not context.settings.beat:
        return None
    logs = f"{context.program} logs beat"
    found = of_units(context, [f"{context.configuration.name}-beat"], "beat")
    if found is None or found.state != OK:
        return found
    state = beat_state(context)
    if not state:
        return Finding(OK, "runs; it has not looked at its schedule yet, or is of an earlier version")
    age, late = context.now - state["tick"], context.now - state["next_tick"]
    values = {"beat_age": round(max(0.0, age), 1)}
    if late > BEAT_WARN:
        limit = BEAT_BAD if late > BEAT_BAD else BEAT_WARN
        text = f"runs, and has not looked at its schedule for {duration(age)} (limit {limit} s late)"
        return Finding(BAD if late > BEAT_BAD else WARN, text, f"{logs}; systemctl status redis-server@broker", values)
    if overdue := beat.overdue(state, context.settings):
        return Finding(WARN, overdue[0].partition(" See ")[0], logs, values, alert=True)
    return Finding(OK, f"looked at its schedule {duration(age)} ago", values=values)


def beat_state(context: Context) -> dict[str, Any]:
    """Return what beat says of itself; {} when it does not say."""
    try:
        state = json.loads(read_file(beat.state_file(context.settings)))
        numbers = {"tick": float(state["tick"]), "next_tick": float(state["next_tick"])}
        return numbers | {"overdue": {str(name): float(at) for name, at in state["overdue"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # The application writes the file.
        return {}
