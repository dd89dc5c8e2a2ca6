"""Watch a new release for some minutes after its deployment: find crashes, failed health checks, and answers 5xx.

A deployment watches its release for seconds; what breaks later is told by this check, with the release's name and the
command that rolls back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..deploy import health
from ..deploy.record import began_at, history
from ..doctor.finding import BAD, OK, Context, Finding, duration, plural
from ..host import Host
from ..processes.state import ProcessState
from ..settings import ReleaseError
from ..status import previous_release, problem_of

# Answers 5xx are too many when they are more than so many, more than this share, and so many times the share before.
ERRORS, SHARE, TIMES = 5, 0.01, 3
# After the time of watching, those of so many seconds count.
RECENT = 300
# Seconds for the health page.
ANSWER_SECONDS = 3


@dataclass(frozen=True)
class Deployed:
    """A deployment that has succeeded. Times in seconds since 1970."""

    release: str
    by: str
    began: float
    ended: float


def look(context: Context) -> Finding | None:
    """Return how the live release does; bad while it is new and has a problem.

    After app_watch_minutes it stays bad only if the problem was found before and is still there: then the other checks
    tell the rest.
    """
    deployed = last_deployment(context)
    if not context.release:
        return None
    if not deployed:
        return Finding(OK, context.release)
    is_new = context.now - deployed.ended < context.configuration.watch_minutes * 60
    memory = remembered(context, deployed)
    problems = find_problems(context, deployed, memory, is_new=is_new) if is_new or memory["found"] else []
    if context.watches:
        context.memory["release"] = memory | {"found": problems}
    age = f"deployed {duration(max(0.0, context.now - deployed.ended))} ago by {deployed.by}"
    if not problems:
        return Finding(OK, f"{deployed.release}, {age}" + (", is watched" if is_new else ""))
    return Finding(BAD, f"{deployed.release}, {age}: {'; '.join(problems)}", remedy(context))


def last_deployment(context: Context) -> Deployed | None:
    """Return the last deployment, if its release is live: not after a rollback, nor during another deployment."""
    done = [entry for entry in history(context.settings) if entry["status"] == 0]
    if not done or done[-1]["action"] != "deploy" or done[-1]["release"] != context.release:
        return None
    entry = done[-1]
    began = began_at(entry)
    return Deployed(entry["release"], entry["by"], began, began + entry["seconds"])


def remembered(context: Context, deployed: Deployed) -> dict[str, Any]:
    """Return what is kept of this deployment: the share of 5xx before it, and what was found last."""
    kept = context.memory.get("release", {})
    if kept.get("ended") == deployed.ended:
        return kept
    # Of a minute that was measured before the deployment began: later, the list no longer has it.
    before = [entry for entry in context.memory.get("requests", []) if entry[0] <= deployed.began]
    return {"release": deployed.release, "ended": deployed.ended, "share_before": share(before), "found": []}


def find_problems(context: Context, deployed: Deployed, memory: dict[str, Any], *, is_new: bool) -> list[str]:
    host = context.host.about(deployed.release)
    states = host.manager.states_of(host.units(deployed.release))
    # What a person has stopped is no fault of the release: the lines of the processes say it.
    stopped = {state.unit for state in states if state.state in ("inactive", "deactivating")}
    problems = process_problems(host, [state for state in states if state.unit not in stopped], is_new=is_new)
    if host.settings.web and not stopped & set(host.web_units(deployed.release)):
        problems += [text] if (text := health_problem(host, deployed.release)) else []
    since = deployed.ended if is_new else context.now - RECENT
    if text := error_problem(context.memory.get("requests", []), since, memory["share_before"]):
        problems.append(text)
    return problems


def process_problems(host: Host, states: list[ProcessState], *, is_new: bool) -> list[str]:
    """Return which processes do not run, or were restarted since they were started for the first time."""
    problems = []
    for state in states:
        text = problem_of(state)
        if not text and is_new and state.restarts:
            text = f"restarted {plural(state.restarts, 'time')}"
        problems += [f"{host.process_name(state.unit)}: {text}"] if text else []
    return problems


def health_problem(host: Host, release: str) -> str:
    """Return what is wrong with the health page, in two requests: one timeout on a busy machine is no problem."""
    text = health.problem(host.settings, host.socket(release), release, ANSWER_SECONDS)
    if text.startswith("no answer"):
        text = health.problem(host.settings, host.socket(release), release, ANSWER_SECONDS)
    return f"health check {host.settings.health_path or '/'}: {text}" if text else ""


def error_problem(requests: list[list[float]], since: float, share_before: float) -> str:
    """Return how many requests were answered 5xx since then, if they are many more than before; else ""."""
    entries = [entry for entry in requests if entry[0] > since]
    count, errors = sum(entry[1] for entry in entries), sum(entry[2] for entry in entries)
    now = share(entries)
    if errors <= ERRORS or now <= SHARE or now <= TIMES * share_before:
        return ""
    return f"{plural(errors, 'answer')} 5xx of {plural(count, 'request')} ({now:.1%}; before {share_before:.1%})"


def share(entries: list[list[float]]) -> float:
    """Return the share of 5xx, from 0 to 1."""
    count = sum(entry[1] for entry in entries)
    return sum(entry[2] for entry in entries) / count if count else 0.0


def remedy(context: Context) -> str:
    """Return how to return to the release before, if there is one, and where to look."""
    lines = [f"{context.program} logs"]
    try:
        previous = previous_release(context.host)
    except ReleaseError:
        return lines[0]
    if context.settings.barriers:
        command = "ansible-playbook -i INVENTORY playbooks/rollback.yml"
    else:
        command = f"{context.program} rollback"
    return "\n".join([command, f"# It returns to {previous}.", *lines])
