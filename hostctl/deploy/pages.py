"""The pages of a new release on its own socket: its health page, detected where none is set, and the warm-up pages."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import causes
from ..settings import ReleaseError, Settings, say
from . import health

if TYPE_CHECKING:
    from .deployment import Deployment

# An answer that may change later: none yet, or one that says "later".
NOT_YET = re.compile(r"no answer|(.*: )?status (429|502|503|504) ")
# The same wrong answer so many times in a row, over so many seconds, does not change any more.
STEADY_TIMES, STEADY_SECONDS = 3, 3
# Seconds between two requests: until the process answers, from the first to the second; afterwards.
FIRST_PAUSE, LONGEST_PAUSE, ANSWERED_PAUSE = 0.05, 0.25, 1
# Seconds between two looks for processes that were killed for memory.
MEMORY_PAUSE = 2
NAMED = "app_health_path in group_vars/ENV/app.yml"
# What to do about each wrong answer but the status 500, whose exception is shown.
REMEDIES = (
    ("does not name", f"If it need not: app_health_names_release: false, or another page as {NAMED}."),
    ("SECURE_PROXY_SSL_HEADER", 'Set SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https").'),
    ("ALLOWED_HOSTS", 'Read it from the environment: ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",").'),
    ("status 5", ""),
    ("no answer", ""),
    ("", f"Name a page that answers 200 without a login: {NAMED}."),
)


# --- The health page


def check_pages(deployment: Deployment) -> None:
    """Wait until the release's health page answers 200; find that page first where none is set.

    Raises ReleaseError when a process ends, when the page keeps giving the same wrong answer, or after
    app_health_check_timeout.
    """
    settings = deployment.settings
    if not settings.web:
        return
    units = deployment.host.web_units(deployment.release)
    deadline = time.monotonic() + settings.health_check_timeout
    waited = Waited()
    while problem := look(deployment):
        waited.add(problem)
        if waited.is_steady or time.monotonic() > deadline or deployment.manager.failed(units):
            raise page_failure(deployment, units, problem)
        if waited.memory_is_due() and deployment.memory_cause(units):
            raise page_failure(deployment, units, problem)
        time.sleep(waited.pause)
    keep_what_was_found(deployment, settings)
    settings = deployment.settings
    say(f"Health check passed: {settings.health_path} answered {settings.health_status} on the release's own socket.")


def expect_name(deployment: Deployment) -> None:
    """With `auto`, require the name of the release where the same page of the live one has that of its own."""
    settings, live = deployment.settings, deployment.live
    if settings.health_names_release != "auto" or not live or live == deployment.release:
        return
    before = settings.of(live)
    if before.health_names_release is True and settings.health_path == before.health_path:
        deployment.use(replace(settings, health_names_release=True))


class Waited:
    """What a health check has seen so far."""

    def __init__(self) -> None:
        self.problem = ""
        self.times = 0
        self.since = self.looked = time.monotonic()
        self.pause = FIRST_PAUSE

    def add(self, problem: str) -> None:
        self.times = self.times + 1 if problem == self.problem else 1
        if problem != self.problem:
            self.problem, self.since = problem, time.monotonic()
        starts = problem.startswith("no answer")
        self.pause = min(self.pause * 1.2, LONGEST_PAUSE) if starts else ANSWERED_PAUSE

    @property
    def is_steady(self) -> bool:
        """Does the same wrong answer come back for so long that it will not change?"""
        if NOT_YET.match(self.problem):
            return False
        return self.times >= STEADY_TIMES and time.monotonic() - self.since >= STEADY_SECONDS

    def memory_is_due(self) -> bool:
        if time.monotonic() - self.looked < MEMORY_PAUSE:
            return False
        self.looked = time.monotonic()
        return True


def look(deployment: Deployment) -> str:
    """Return what is wrong with the release's health page, or ""; the page that was found is the deployment's."""
    if not deployment.settings.health_path:
        socket = deployment.host.socket(deployment.release)
        page, problem = health.detect(deployment.settings, socket, deployment.login_pages)
        if not page:
            return problem
        deployment.use(replace(deployment.settings, health_path=page))
        say(f"Health page found: {page} (set app_health_path for another one).")
    expect_name(deployment)
    return health_problem(deployment)


def health_problem(deployment: Deployment) -> str:
    """Return what is wrong with the release's health page, or ""."""
    return health.problem(deployment.settings, deployment.host.socket(deployment.release), deployment.release)


def keep_what_was_found(deployment: Deployment, before: Settings) -> None:
    """Record the page, and whether it names the release, with the release: also for the time after a rollback."""
    settings, release = deployment.settings, deployment.release
    if settings.health_names_release == "auto":
        answer = health.get(settings, deployment.host.socket(release), settings.health_path, timeout=5)
        settings = replace(settings, health_names_release=release in answer.body)
    if settings != before:
        deployment.use(settings)
        settings.record(release)


def page_failure(deployment: Deployment, units: list[str], problem: str) -> ReleaseError:
    """Return the error for a health page, with its cause and the setting that names the page."""
    set_path = deployment.settings.health_path
    error = deployment.failure(units, f"health check{f' {set_path}' if set_path else ''}: {problem}.")
    page = set_path or problem.partition(": ")[0]
    if error.cause:
        return error
    if remedy := next(remedy for words, remedy in REMEDIES if words in problem):
        error.cause = remedy
    elif "status 5" in problem:
        error.cause = f"{exception_of(deployment, page, error.output)} The health check is {NAMED}."
    return error


def exception_of(deployment: Deployment, page: str, log: str) -> str:
    """Return the exception behind a status of 500: from the log, or from a request in the application's interpreter.

    By default Django logs none. Returns a sentence in any case.
    """
    folder = str(deployment.host.path(deployment.release))
    if found := causes.find(log, folder):
        return str(found)
    try:
        answer = deployment.application.ask("exception", page, deployment.settings.domain, seconds=20)
    except ReleaseError as error:
        return f"{page} could not be requested again: {error}."
    found = causes.find(answer.get("traceback", ""), folder)
    return str(found) if found else f"No exception was raised: {page} itself answers so."


# --- The warm-up pages


def warm_up_pages(deployment: Deployment) -> None:
    """Request the warm-up pages, so that every process loads what its first visitor would wait for.

    Raises ReleaseError when one steadily answers 500 or more, unless it does so in the live release, too.
    """
    settings, live = deployment.settings, deployment.live
    socket = deployment.host.socket(deployment.release)
    seen = health.warm_up(settings, socket, settings.warmup_paths)
    for page, statuses in seen.items():
        if not any(statuses):
            deployment.warn(f"The page {page} (app_warmup_paths) does not answer within {health.WARMUP_SECONDS} s.")
        if not health.is_broken(statuses) or deployment.is_current:
            continue
        before = health.get(settings.of(live), deployment.host.socket(live), page, timeout=5).status if live else 0
        text = f"the page {page} (app_warmup_paths) answers {statuses[-1]}"
        if before >= 500:
            deployment.warn(f"{text}, as it does in the live release.")
        elif deployment.request.force:
            deployment.warn(f"{text}. Continuing because of release_force.")
        else:
            reason = f"{text}, and {before} in the live release." if before else f"{text}."
            error = deployment.failure(deployment.host.web_units(deployment.release), reason)
            error.cause = error.cause or exception_of(deployment, page, error.output)
            raise error
