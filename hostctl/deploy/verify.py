"""The current release again: instead of a deployment, check that it serves, and start what does not run."""

from __future__ import annotations

import time

from .. import causes
from ..application import Application
from ..host import Host
from ..settings import ReleaseError
from ..status import SETTLE, beat_warnings, previous_release, problems
from .context import LOG_LINES
from .rebuild import rebuild_live
from .record import Record

# Seconds that workers, and pages on a busy host, may take to answer.
ANSWER_SECONDS = 20
# Seconds for loading the application that asks the workers.
LOAD_SECONDS = 100
# Seconds of the log in which the cause is looked for.
LOG_SECONDS = 600


def verify(host: Host) -> list[str]:
    """Check pages, workers and beat of the current release; return lines about what had to be started.

    Raises ReleaseError, which says where to look and how to roll back, when the release does not run.
    """
    if not host.current_release():
        raise ReleaseError("No release is live: deploy one first.")
    host = host.about(host.current_release())
    started = [rebuild_live(host)] if host.lacks_python(host.current_release()) else []
    started += start_missing(host)
    seconds = host.settings.health_check_timeout if started else ANSWER_SECONDS
    found = wait_until_stable(host, seconds, SETTLE if started else 0)
    lines = {one["process"]: one["text"] for one in found}
    lines |= {process: text for process, text in silent_workers(host, seconds).items() if process not in lines}
    if lines:
        raise ReleaseError("\n".join([*started, explain(host, lines)]))
    return [*started, *(f"Warning: {text}" for text in beat_warnings(host))]


def wait_until_stable(host: Host, seconds: float, stable: float) -> list[dict[str, str]]:
    """Wait until everything runs, `stable` seconds from now at the earliest; return what does not after `seconds`."""
    began = time.monotonic()
    while True:
        found, passed = problems(host), time.monotonic() - began
        if passed >= (seconds if found else stable):
            return found
        time.sleep(0.5)


def start_missing(host: Host) -> list[str]:
    """Start the processes of the current release that do not run; return lines that say so."""
    record, manager = Record(host.settings), host.manager
    units = host.units(host.current_release())
    missing = [state.unit for state in manager.states_of(units) if not state.runs]
    lacks_beat = host.settings.beat and not manager.beat_runs()
    stopped = [timer["name"] for timer in host.cron.states(host.current_release()) if timer["timer"] != "active"]
    if not missing and not lacks_beat and not stopped:
        return []
    names = [host.process_name(unit) for unit in missing] + (["beat"] if lacks_beat else []) + stopped
    lines = [f"Started, since they did not run: {', '.join(names)}."]
    # A deployment that begins now would start and stop the same processes.
    record.hold()
    try:
        manager.prepare(host.current_release())
        alone = {host.process_name(unit) for unit in host.process_units(host.current_release(), single=True)}
        manager.stop([unit for unit in host.other_units(host.current_release()) if host.process_name(unit) in alone])
        manager.start(missing)
        if lacks_beat:
            manager.restart_beat(host.current_release())
        if stopped:
            host.cron.start(host.current_release())
    except ReleaseError as error:
        lines.append(str(error))
    finally:
        record.release()
    return lines


def silent_workers(host: Host, seconds: float) -> dict[str, str]:
    """Ask the workers which queues they consume, for up to `seconds`; return what is wrong, by process."""
    settings, release = host.settings, host.current_release()
    pairs = zip(host.worker_units(release), settings.workers, strict=True)
    # The pool solo answers nothing while it runs a task.
    nodes = {host.node(unit): worker for unit, worker in pairs if worker.pool != "solo"}
    if not nodes:
        return {}
    application = Application(host, release)
    try:
        queues = {node: worker.queues for node, worker in nodes.items()}
        answer = application.ask("consumed", settings.celery_app, seconds, queues, seconds=seconds + LOAD_SECONDS)
    except ReleaseError as error:
        return {"worker": str(error)}
    finally:
        application.close()
    found = dict.fromkeys(answer["silent"], f"no answer within {seconds} s")
    found |= {node: f"does not consume {', '.join(queues)}" for node, queues in answer["missing"].items()}
    return {f"worker-{nodes[node].name}": text for node, text in sorted(found.items())}


def explain(host: Host, found: dict[str, str]) -> str:
    """Return what does not run, where to look, and how to roll back."""
    program, release = f"{host.settings.name}ctl", host.current_release()
    try:
        back = (
            f"To roll back to {previous_release(host)}: playbooks/rollback.yml, or `{program} rollback` on the server."
        )
    except ReleaseError:
        back = "There is no earlier release to roll back to: fix the project and deploy it."
    return "\n".join(
        [
            *(f"{process}: {text}" for process, text in found.items()),
            *cause_lines(host, list(found)),
            f"Release {release} is live, but does not run: {', '.join(found)}. On the server, "
            f"`{program} logs {next(iter(found))}` shows why. {back}",
        ]
    )


def cause_lines(host: Host, processes: list[str]) -> list[str]:
    """Return a line with the cause that the logs of processes show, if there is one."""
    release = host.current_release()
    candidates = [*host.units(release), f"{host.settings.name}-beat"]
    units = [unit for unit in candidates if host.process_name(unit) in processes]
    logs = host.manager.recent_logs(units, LOG_LINES, since=time.time() - LOG_SECONDS) if units else ""
    cause = causes.killed_for_memory(logs, "memory_mb (app_web or app_workers)") or causes.find(
        logs, str(host.path(release))
    )
    return [f"Cause: {cause}"] if cause else []
