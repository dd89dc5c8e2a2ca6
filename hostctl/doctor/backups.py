"""The backups: on this host, off the host, and whether they can be restored. See hostctl/backup."""

from __future__ import annotations

from typing import Any

from ..backup import notes
from ..backup.configuration import Configuration
from ..backup.drill import PARTS
from ..backup.listing import ago
from ..backup.state import State
from ..backup.tools import Repository
from ..settings import ReleaseError
from .finding import BAD, OK, WARN, Context, Finding, duration, worst

# Seconds after which a copy is late, and broken: of the write-ahead log, of uploads, of base backups, of a drill.
BOUNDS = {
    "ship": (120, 300),
    "files": (3600, 6 * 3600),
    "backups": (26 * 3600, 50 * 3600),
    "drill": (9 * 86400, 16 * 86400),
}
NAMES = {"ship": "write-ahead log", "files": "uploads", "backups": "base backup", "drill": "drill"}


def configuration_of(context: Context) -> Configuration | None:
    """Return what is backed up on this host; None without backups."""
    try:
        return Configuration.load(context.settings)
    except ReleaseError:
        return None


def state_of(configuration: Configuration, kind: str) -> dict[str, Any]:
    """Return the state of a kind, with `killed` if its last run has ended without a word."""
    was_killed = notes.was_killed(configuration, kind)
    return State(configuration, kind).read() | {"killed": was_killed}


def backup(context: Context) -> Finding | None:
    """Return how old the base backups of this host are, and its copy of the write-ahead log."""
    configuration = configuration_of(context)
    if configuration is None:
        return None
    if text := notes.unfinished_restore(configuration):
        return Finding(WARN, text, f"{context.program} backup restore --show")
    if not configuration.version:
        return (
            None if configuration.target else Finding(WARN, "uploads are not copied: there is no target", of_target())
        )
    found = {kind: state_of(configuration, kind) for kind in ("ship", "backups")}
    local = found["ship"].get("local", {}).get("seconds", 0) or found["ship"].get("ok_at", 0)
    # What keeps the log from the target alone is told by the line offsite.
    log = {"ok_at": local}
    if not configuration.target:
        log |= {name: found["ship"][name] for name in ("problem", "killed") if name in found["ship"]}
    grades = {"ship": grade(context, "ship", log), "backups": grade(context, "backups", found["backups"])}
    text = f"restorable to {ago(local)}" if local else "nothing can be restored yet"
    try:
        bases = [base for base in Repository(configuration).backups() if not base.failed]
    except ReleaseError as error:
        return Finding(BAD, str(error), f"{context.program} backup list; df -h {configuration.repository}")
    values = {}
    if bases:
        values["backup_age"] = round(context.now - bases[-1].stopped, 1)
        newest = {base.kind: base.stopped for base in bases}
        text += "".join(f", {kind} {ago(newest[kind])}" for kind in ("full", "diff", "incr") if kind in newest)
    remedy = f"journalctl -u {configuration.name}-backup-* -n 30; {context.program} backup"
    return told(grades, found, text, remedy, values)


def offsite(context: Context) -> Finding | None:
    """Return how old the copies at the target are."""
    configuration = configuration_of(context)
    if configuration is None:
        return None
    if not configuration.target:
        if not configuration.version:
            return None
        return Finding(WARN, notes.no_target(configuration).partition(": ")[0], of_target())
    kinds = ["ship"] if configuration.version else []
    kinds += ["files"] if configuration.folders else []
    if not kinds:
        return None
    found = {kind: state_of(configuration, kind) for kind in kinds}
    if "ship" in found:
        found["ship"] = found["ship"] | {"ok_at": found["ship"].get("shipped", {}).get("seconds", 0)}
    grades = {kind: grade(context, kind, state) for kind, state in found.items()}
    # The write-ahead log tells how much would be lost; without a database, the uploads.
    last = found[kinds[0]].get("ok_at", 0)
    values = {"offsite_age": round(context.now - last, 1)} if last else {}
    text = ", ".join(f"{NAMES[kind]} {ago(state.get('ok_at', 0))}" for kind, state in found.items())
    remedy = f"journalctl -u {configuration.name}-backup-* -n 30; {context.program} backup"
    if found.get("ship", {}).get("foreign"):
        problem, *steps = found["ship"]["problem"].splitlines()
        found["ship"] |= {"problem": problem}
        remedy = "\n".join(f"# {step}" for step in steps)
    one = told(grades, found, f"{text}, at {configuration.target}", remedy, values)
    if one.state == OK and (kit := notes.missing_kit(configuration)):
        sentence, _, fix = kit.partition(". ")
        return Finding(WARN, f"{one.text}. {sentence}", f"# {fix}", values)
    return one


def drill(context: Context) -> Finding | None:
    """Return when a restore was last rehearsed, and how that went."""
    configuration = configuration_of(context)
    if configuration is None or not (configuration.version or configuration.target):
        return None
    state = state_of(configuration, "drill")
    found = {"drill": state}
    values = {"drill_age": round(context.now - state["ok_at"], 1)} if state.get("ok_at") else {}
    remedy = f"{context.program} backup drill; journalctl -u {configuration.name}-backup-drill -n 50"
    if state.get("problem"):
        return Finding(BAD, f"failed {ago(state.get('failed_at', 0))}: {state['problem']}", remedy, values)
    text = f"restored {ago(state.get('ok_at', 0))}"
    if len(state) == 1:
        text = "not rehearsed yet: the first one is due within a week"
    elif state.get("source"):
        text += f" from {state['source']}, in {duration(state.get('seconds', 0))}"
    one = told({"drill": grade(context, "drill", state)}, found, text, remedy, values)
    if one.state == OK and configuration.target and (slow := too_slow(configuration, state)):
        return Finding(WARN, f"{one.text}. {slow}", f"{context.program} backup drill --offsite", values)
    return one


def too_slow(configuration: Configuration, state: dict[str, Any]) -> str:
    """Return why drills read the copies at the target in more than the three weeks of a full backup, or ""."""
    number, parts = state.get("part", 0) + 1, state.get("parts", PARTS)
    if state.get("unread"):
        why = f"not all of part {number} of {parts} of the copies at {configuration.target} was read in time"
    elif parts > PARTS:
        why = f"one of {parts} parts of the copies at {configuration.target} is read each week"
    else:
        return ""
    return f"Damage in an older one may be found after more than {PARTS} weeks: {why}, and each drill reads one more"


def grade(context: Context, kind: str, state: dict[str, Any]) -> str:
    """Return ok, warn or bad for a copy, by its age.

    A server that was just set up needs none yet. One that was off for long has an old one: a warning, until there was
    time for a new one.
    """
    last, (late, broken), time_for = state.get("ok_at", 0), BOUNDS[kind], notes.seconds_for(context.settings)
    age = context.now - last if last else time_for
    if age >= broken and time_for >= notes.TIME_NEEDED[kind]:
        return BAD
    return WARN if age >= late or state.get("problem") or state.get("killed") else OK


def told(
    grades: dict[str, str], states: dict[str, dict[str, Any]], text: str, remedy: str, values: dict[str, float]
) -> Finding:
    """Return the finding of several copies, with what has failed."""
    late = [
        f"{NAMES[kind]} {'run was killed' if states[kind].get('killed') else problem_of(kind, state)}"
        for kind, state in grades.items() if state != OK
    ]  # fmt: skip
    if not late:
        return Finding(OK, text, values=values)
    problems = dict.fromkeys(
        state["problem"].rstrip(".") for kind, state in states.items() if grades[kind] != OK and state.get("problem")
    )
    reason = "; ".join(problems)
    return Finding(
        worst(list(grades.values())),
        f"{' and '.join(late)}: {text}{f'. {reason}' if reason else ''}",
        remedy,
        values,
    )


def problem_of(kind: str, state: str) -> str:
    return f"late (limit {duration(BOUNDS[kind][state == BAD])})"


def of_target(what: str = "set app_backup_target") -> str:
    return f"# {what} in group_vars/ENV/app.yml, then:\nansible-playbook -i INVENTORY site.yml"
