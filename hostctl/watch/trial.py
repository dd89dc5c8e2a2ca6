"""`APPctl alert test`: a message by every channel, so that a person knows that alerts arrive."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..doctor.finding import Context
from ..settings import say
from . import alerts, send
from .files import replace_json

NO_CHANNEL = f"No channel is set: set {alerts.SETTINGS} in group_vars/ENV/app.yml, then run site.yml."


def run(context: Context, *, only_changed: bool, json_output: bool) -> int:
    """Send the test message and say what each channel did; return the exit status, 1 when one has failed.

    With `only_changed`, only by channels that have not taken a test with their present settings.
    """
    active, tests = send.channels(context), alerts.read_tests(context)
    digests = {channel.name: hashlib.sha256(channel.key.encode()).hexdigest() for channel in active}
    due = [
        channel
        for channel in active
        if not only_changed or not passed(tests.get(channel.name, {}), digests[channel.name])
    ]
    message = compose(context)
    waiting = [{"message": vars(message), "channels": [channel.name for channel in due]}]
    problems = {}
    for channel, attempt in zip(due, send.attempt_all(due, waiting), strict=True):
        problems[channel.name] = attempt.problem
        event = send.TEST if attempt.taken else ""
        entry = send.result(tests.get(channel.name, {}), context.now, attempt.problem, event)
        tests[channel.name] = entry | {"digest": digests[channel.name]}
    if due:
        # The watch's own memory is written by the watch alone.
        replace_json(alerts.test_file(context), {name: tests[name] for name in digests})
    lines = {channel.name: line_of(channel, problems[channel.name]) for channel in due}
    failed = [name for name, problem in problems.items() if problem]
    warning = warning_of(context, failed, [name for name in digests if name not in failed])
    if json_output:
        found = {"changed": bool(lines), "lines": list(lines.values()), "failed": [lines[name] for name in failed]}
        say(json.dumps(found | {"warning": warning}))
    else:
        say("\n".join(lines.values()) if active or only_changed else NO_CHANNEL)
    return 1 if any(problems.values()) or (not active and not only_changed) else 0


def passed(test: dict[str, Any], digest: str) -> bool:
    return test.get("digest") == digest and not test.get("problem")


def line_of(channel: send.Channel, problem: str) -> str:
    """Return what a channel did; most problems begin with its address."""
    if problem.startswith(f"{channel.address}:"):
        return f"{channel.name} to {problem}"
    return f"{channel.title}: {problem or 'sent'}"


def warning_of(context: Context, failed: list[str], working: list[str]) -> str:
    """Return by which channels alerts do not arrive, and by which they do; "" if none has failed."""
    if not failed:
        return ""
    host = context.configuration.host
    if not working:
        return f"no alert of {host} arrives: {' and '.join(failed)} failed."
    return f"alerts of {host} do not arrive by {' and '.join(failed)}; they do by {' and '.join(working)}."


def compose(context: Context) -> send.Message:
    name, host = context.configuration.name, context.configuration.host
    text = (
        f"This is a test: alerts of {name} on {host} arrive here.\n\n"
        "You get one message when something breaks, and one when it is over. Nothing is to do now.\n"
    )
    return send.Message(f"[{name} on {host}] test: alerts arrive", text, send.TEST, name, host)
