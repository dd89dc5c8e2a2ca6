"""The dead man's switch: a URL that is requested after each run of the watch, so that silence is what alarms."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from ..doctor.finding import BAD, Context
from . import send

NAME = "heartbeat"
# Seconds for which a message may wait for a channel.
PATIENCE = 90


def beat(context: Context) -> None:
    """Request the URL, with /fail while something is broken. What goes wrong is remembered, never raised."""
    url = context.configuration.secrets()["HEARTBEAT_URL"]
    if not url:
        context.memory.get("alerts_sent", {}).pop(NAME, None)
        return
    attempt = send.Attempt(problem=f"no answer in {send.ANSWER_SECONDS} s")

    def work() -> None:
        try:
            send.request(failing(url) if is_broken(context) else url, context.settings.proxy_environment)
            attempt.problem = ""
        except send.SendError as error:
            attempt.problem = str(error)
        # Whatever it is: the watch continues.
        except Exception as error:
            attempt.problem = type(error).__name__

    send.run_together([work], send.ANSWER_SECONDS)
    problem = attempt.problem
    send.note(context.memory, NAME, context.now, problem, "" if problem else "heartbeat")


def is_broken(context: Context) -> bool:
    """Return whether a person was told that something is broken, or no channel takes a message.

    So a deployment, and what lasts for a minute only, is no failure here either. The line `alerts` does not count: it
    is bad when this URL does not answer, which then would answer to a failure first.
    """
    told = any(name != "alerts" and one["told"] == BAD for name, one in context.memory.get("alerts", {}).items())
    waiting = context.memory.get("alerts_waiting", [])
    return told or any(not one.get("taken") and context.now - one["time"] > PATIENCE for one in waiting)


def failing(url: str) -> str:
    """Return the URL with /fail at the end of its path."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/fail"))
