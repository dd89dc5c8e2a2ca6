"""Tell a person once when something breaks and once when it is over; and the line `alerts` of the doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backup.notes import seconds_up
from ..doctor.finding import BAD, OK, STATES, WARN, Context, Finding, duration
from ..settings import utc
from . import heartbeat, pause, send

# Runs in a row until a finding is told, and until it counts as over.
RUNS = 2
# Seconds after which a finding that stays is told again.
REMINDER = 24 * 3600
# Seconds after which a finding that has become milder is told when it is worse again.
MILDER = 3600
# Seconds without a run after which the watch counts as broken.
LATE = 300
UNITS = Path("/etc/systemd/system")
SETTINGS = "app_alert_emails, app_alert_webhook or app_alert_ntfy"


@dataclass(frozen=True)
class Change:
    """What a message says of one check. `state` is that of its finding, or ok when it is over."""

    name: str
    state: str
    text: str
    remedy: str
    since: float
    # It was told before, and nothing has changed.
    reminds: bool = False
    # How long it lasted, in seconds.
    lasted: float = 0


def process(context: Context, found: dict[str, Finding]) -> None:
    """Send what has changed since the last run. Called each minute, with what all checks found."""
    active = send.channels(context)
    told = bool(active) or bool(context.configuration.secrets()["HEARTBEAT_URL"])
    changes = follow_all(context, found, told=told)
    send.deliver(context, active, compose(context, changes) if changes and active else None)


# --- What has changed


def follow_all(context: Context, found: dict[str, Finding], *, told: bool) -> list[Change]:
    """Bring memory["alerts"] up to date, and return what to tell.

    `told`: there is a channel or a heartbeat, so that a person is told.
    """
    entries = context.memory.setdefault("alerts", {})
    quiet = pause.quiet_checks(context)
    changes = []
    for name in [*found, *(name for name in entries if name not in found)]:
        finding = found.get(name)
        # What was told is open until all is well: a milder finding is not its end.
        is_open = name in entries and bool(entries[name]["told"])
        if finding and (finding.alerts or (is_open and finding.state != OK)):
            entry = entries.setdefault(name, {"bad_since": context.now, "minutes": 0, "told": "", "told_at": 0})
            entry |= {"state": finding.state, "text": finding.text, "remedy": finding.remedy, "good_minutes": 0}
            is_new = told and follow_bad(entry, context.now, quiet=name in quiet)
            changes += [change_of(name, entry, reminds=is_new == "reminder")] if is_new else []
        elif name in entries and (over := follow_good(entries, name, finding, context.now)):
            changes.append(over)
    return changes


def follow_bad(entry: dict[str, Any], now: float, *, quiet: bool) -> str:
    """Count a run with a finding. Return whether to tell it: "news", "reminder" or ""."""
    lower_told(entry, now)
    is_worse = not entry["told"] or STATES.index(entry["state"]) > STATES.index(entry["told"])
    # What a deployment causes ends with it: the runs are counted from then on.
    entry["minutes"] = entry["minutes"] + 1 if is_worse and not quiet else 0
    is_news = entry["minutes"] >= RUNS
    is_due = not is_worse and not quiet and now - entry["told_at"] >= REMINDER
    if is_news or is_due:
        entry |= {"told": entry["state"] if is_news else entry["told"], "told_at": now, "minutes": 0}
    return "news" if is_news else "reminder" if is_due else ""


def lower_told(entry: dict[str, Any], now: float) -> None:
    """Lower the state that was told once the finding has been milder for a while, so that a worse one is news again."""
    if not entry["told"] or STATES.index(entry["state"]) >= STATES.index(entry["told"]):
        entry.pop("milder_since", None)
    elif now - entry.setdefault("milder_since", now) >= MILDER:
        entry["told"] = entry["state"]


def follow_good(entries: dict[str, Any], name: str, finding: Finding | None, now: float) -> Change | None:
    """Count a run without the finding; return that it is over, if it was told and has been for some runs."""
    entry = entries[name]
    entry["minutes"] = 0
    entry["good_minutes"] += 1
    if entry["good_minutes"] == 1:
        entry["good_since"] = now
    if entry["told"] and entry["good_minutes"] < RUNS:
        return None
    del entries[name]
    if not entry["told"]:
        return None
    text = finding.text if finding else "is no longer checked"
    lasted = max(0.0, entry["good_since"] - entry["bad_since"])
    return Change(name, OK, text, "", entry["bad_since"], lasted=lasted)


def change_of(name: str, entry: dict[str, Any], *, reminds: bool) -> Change:
    return Change(name, entry["state"], entry["text"], entry["remedy"], entry["bad_since"], reminds)


# --- The message


def compose(context: Context, changes: list[Change]) -> send.Message:
    """Return one message for all that has changed."""
    configuration = context.configuration
    worst = max((change.state for change in changes), key=STATES.index)
    groups: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: (-STATES.index(change.state), change.reminds)):
        groups.setdefault(label(change), []).append(change)
    parts = [f"{word}: {', '.join(change.name for change in group)}" for word, group in groups.items()]
    blocks = [block(change, context.now) for group in groups.values() for change in group]
    return send.Message(
        title=f"[{configuration.name} on {configuration.host}] {'; '.join(parts)}",
        text="\n\n".join([*blocks, footer(context)]) + "\n",
        event=send.OVER if worst == OK else worst,
        name=configuration.name,
        host=configuration.host,
        checks=[as_json(change) for group in groups.values() for change in group],
    )


def label(change: Change) -> str:
    """Return the word of a change in the title."""
    if change.state == OK:
        return send.OVER
    return f"still {change.state}" if change.reminds else change.state


def block(change: Change, now: float) -> str:
    """Return what a message says of one check."""
    lines = [f"{label(change).upper()}: {change.name}", *change.text.splitlines()]
    if change.state == OK:
        lines.append(f"It lasted {duration(change.lasted)}, from {utc(change.since)}.")
    else:
        lines.append(f"Since {utc(change.since)} ({duration(now - change.since)}).")
        # The further lines of a remedy are below its first.
        lines += f"To do: {change.remedy}".replace("\n", "\n       ").splitlines() if change.remedy else []
    return "\n  ".join(lines)


def footer(context: Context) -> str:
    configuration = context.configuration
    address, path = configuration.url.rstrip("/"), context.settings.status_path
    page = [f"To see it:  {address}{path}"] if address and path else []
    look = f"To look:    ssh {configuration.host}, then sudo {context.program} doctor"
    return "\n".join([look, *page, f"Written:    {utc(context.now)}"])


def as_json(change: Change) -> dict[str, Any]:
    names = ("name", "state", "text", "remedy", "since")
    return {name: getattr(change, name) for name in names} | ({"lasted": change.lasted} if change.state == OK else {})


# --- The line of the doctor


def look(context: Context) -> Finding | None:
    """Return how alerts reach a person, what failed, and whether the watch runs at all."""
    if problem := problem_of_timer(context):
        return Finding(BAD, problem, f"systemctl status {context.configuration.name}-watch.timer")
    if not (UNITS / f"{context.configuration.name}-watch.timer").exists():
        text = "the watch is off, so no alert is sent: set app_monitoring: true"
        return Finding(WARN, text, provision("Edit group_vars/ENV/app.yml"), alert=False)
    active = send.channels(context)
    names = [channel.name for channel in active]
    beats = bool(context.configuration.secrets()["HEARTBEAT_URL"])
    if not active and not beats:
        text = f"no one is told when something breaks: set {SETTINGS}"
        return Finding(WARN, text, provision("Edit group_vars/ENV/app.yml"), alert=False)
    results = read_results(context)
    used = {name: results.get(name, {}) for name in [*names, *([heartbeat.NAME] if beats else [])]}
    failed = {name: one for name, one in used.items() if one.get("problem")}
    if failed:
        text = "; ".join(
            f"{name} failed {ago(context, one['failed_at'])}: {one['problem']}" for name, one in failed.items()
        )
        # The only channel cannot tell that it fails.
        others = set(names) - set(failed)
        return Finding(BAD, text, remedy_of(context, failed), alert=bool(others))
    text = describe(context, [channel.title for channel in active], results, beats=beats)
    return Finding(OK, "; ".join([text, *paused(context)]))


def paused(context: Context) -> list[str]:
    """Return what pauses alerts, about which checks, and until when."""
    return [
        f"paused until {utc(cause.until)} at most ({cause.text}): {', '.join(sorted(cause.checks))}"
        for cause in pause.pauses(context)
    ]


def remedy_of(context: Context, failed: dict[str, Any]) -> str:
    lines = [provision("Correct it in group_vars/ENV/app.yml or vault.yml")]
    if set(failed) != {heartbeat.NAME}:
        lines.append(f"{context.program} alert test")
    return "\n".join(lines)


def provision(edit: str) -> str:
    """Return the lines of a remedy that is an edit of the inventory and site.yml."""
    return f"# {edit}, then run:\nansible-playbook -i INVENTORY site.yml"


def describe(context: Context, titles: list[str], results: dict[str, Any], *, beats: bool) -> str:
    """Return which channels there are, and when they last took something."""
    sent = [one for name, one in results.items() if name != heartbeat.NAME and one.get("ok_at")]
    last = max(sent, key=lambda one: one["ok_at"], default=None)
    parts = [", ".join(titles)] if titles else ["no channel but the heartbeat"]
    if titles and last:
        parts[0] += f", last sent {utc(last['ok_at'])} ({last['event']})"
    elif titles:
        parts[0] += ", nothing sent yet"
    if beats:
        last_beat = results.get(heartbeat.NAME, {}).get("ok_at")
        parts.append(f"heartbeat {ago(context, last_beat)}" if last_beat else "no heartbeat yet")
    return "; ".join(parts)


def ago(context: Context, at: float) -> str:
    return f"{duration(max(0.0, context.now - at))} ago"


def problem_of_timer(context: Context) -> str:
    """Return since when the watch has not run, or ""; "" also in the watch itself and soon after a boot."""
    timer = UNITS / f"{context.configuration.name}-watch.timer"
    if context.watches or seconds_up() < LATE or not timer.exists():
        return ""
    # The timer's file is new when monitoring was just switched on.
    files = [timer, *context.configuration.memory_files]
    age = context.now - max(path.stat().st_mtime for path in files if path.exists())
    if age < LATE:
        return ""
    return f"the watch has not run for {duration(age)}, so no alert is sent"


def read_results(context: Context) -> dict[str, Any]:
    """Return what each channel did last, in the watch or in a test."""
    results = dict(context.memory.get("alerts_sent", {}))
    for name, tested in read_tests(context).items():
        if attempted(tested) > attempted(results.get(name, {})):
            results[name] = tested
    return results


def attempted(one: dict[str, Any]) -> float:
    """Return when something was last sent, or tried, in seconds since 1970."""
    return max(one.get("ok_at", 0), one.get("failed_at", 0))


def read_tests(context: Context) -> dict[str, Any]:
    """Return what the last test of each channel was like; see trial.py."""
    try:
        return json.loads(test_file(context).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def test_file(context: Context) -> Path:
    return context.configuration.state_folder / "alert-test.json"
