"""The questions of a deployment, each a function: its arguments and its result are JSON.

static_files                      where the project collects its static files
collect_static                    collect them
media_files                       the path of MEDIA_URL, and the folder of uploads
check WSGI CELERY BEAT SCHEDULER [DATABASE, ...]
                                  import what the processes will import, run Django's checks
pages_below PATH...               those of these paths at which, or below which, the project has pages
queues CELERY SCHEDULER BEAT FOLDER
                                  the queues that the application publishes to
settings_overlay MODE MODULE WSGI CELERY [DOMAIN, ...] FOLDER [VARIABLE, ...]
                                  generate a settings module for what the project hard-codes
administrator [VARIABLE, ...]     the command that creates the first administrator
migrations [DATABASE, ...]        compare the release's migrations with `default` and with these
exception PATH DOMAIN             the traceback of a page that answers 500
periodic CELERY                   enabled periodic tasks without code
ping CELERY SECONDS WORKER...     workers that do not answer
consumed CELERY SECONDS {WORKER: [QUEUE, ...]}
                                  queues that workers should consume and do not
running CELERY SECONDS WORKER...  tasks that workers run, and since when
consumers CELERY cancel|add QUEUE,... WORKER...
                                  have workers stop consuming queues, or consume them again
smoke_test CELERY SECONDS RELEASE {WORKER: [QUEUE, ...]} QUEUE...
                                  send a task through every queue
depths CELERY QUEUE...            number of waiting tasks
unconsumed CELERY QUEUE...        number of waiting tasks of every other queue that has some
requeue_unacknowledged CELERY     requeue what dead workers held, and parked messages whose task is known now
ended_by_messages CELERY SINCE WORKER...
                                  workers that have ended, with messages that may be the reason
parked CELERY                     number of parked messages
list_parked CELERY                parked messages
show_parked CELERY ID             parked messages with an ID, with their content
take_parked CELERY requeue|drop ID
                                  requeue or delete parked messages; all of them without an ID
known_migrations                  the release's migrations, without asking a database
park_waiting CELERY REASON        park every waiting message
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from . import compat, parking, queues, requeue, returns, schedule, smoke_test
from .administrator import administrator
from .broker import OPTIONS, open_channel
from .exceptions import exception
from .migrations import databases
from .overlay import settings_overlay
from .static_files import collect_static, media_files, static_files

# Seconds without an answer from a queue, after which its workers are asked what they run.
BUSY_CHECK_SECONDS = 5
# Seconds within which a worker that has ended is running again.
START_SECONDS = 20


# --- The code of the release ---------------------------------------------------------------------------------------


def check(
    wsgi: str, celery: str, beat: bool = False, scheduler: str = "", required: Iterable[str] = ()
) -> dict[str, Any]:
    """Import what gunicorn, Celery and beat will run, run Django's checks, and connect to broker and databases.

    `required` are the databases beside `default` without which the release must not go live. Returns the `versions` of
    the main packages, `warnings` and those of `beat` and of `databases` to print, the `login_pages`, the `admin_page`,
    and whether the project `has_pages` at all.
    Raises ImportError when `beat` is to run and the release lacks its scheduler.
    """
    import django
    from django.core.management import call_command

    django.setup()
    call_command("check", "--deploy", "--fail-level", "ERROR")
    module, _, name = wsgi.partition(":")
    getattr(importlib.import_module(module), name or "application")
    application = find_celery(celery)
    reach_broker(application)
    unreachable = reach_databases({"default", *required})
    beat_problems = []
    if beat:
        scheduler = schedule.choose(application, scheduler)
        import_scheduler(scheduler)
        schedule.reach_redbeat(application, scheduler)
        beat_problems = schedule.problems(application, scheduler)
    packages = [name for name in ("django", "celery", "gunicorn") if installed(name)]
    versions = {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}
    warnings = compat.problems() if installed("celery") else []
    prefix = application.conf.broker_transport_options.get("global_keyprefix", "")
    return {
        "versions": versions, "warnings": warnings, "beat": beat_problems, "databases": unreachable,
        "login_pages": login_pages(), "has_pages": has_pages(), "admin_page": admin_page(),
        "key_prefix": prefix,
    }  # fmt: skip


def reach_broker(application: Any) -> None:
    """Connect to the broker, as a worker does. kombu checks the version of redis-py only when it connects."""
    options = OPTIONS | application.conf.broker_transport_options
    with application.connection_for_read(transport_options=options) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0.5).channel().close()


def reach_databases(required: Collection[str] = ("default",)) -> list[str]:
    """Connect to each PostgreSQL database of the settings with the login that the processes use.

    Returns warnings of databases without a connection, with the alias, the login and the server. Raises
    OperationalError, which says the same, for one that is required.
    """
    from django.db import DatabaseError, OperationalError, connections

    warnings = []
    for connection in connections.all():
        if connection.vendor != "postgresql":
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseError as error:
            settings = connection.settings_dict
            reason = " ".join(str(error).split())
            text = (
                f"no connection to the database of DATABASES[{connection.alias!r}], {settings['NAME']} as "
                f"{settings['USER'] or 'the user of the process'} on {settings['HOST'] or 'the local socket'}: {reason}"
            )
            if connection.alias in required:
                raise OperationalError(text) from error
            warnings.append(f"There is {text}")
        finally:
            connection.close()
    return warnings


def has_pages() -> bool:
    """Return whether the project has any URL; one that only runs tasks may have none."""
    from django.conf import settings
    from django.urls import get_resolver

    return bool(getattr(settings, "ROOT_URLCONF", "") and get_resolver().url_patterns)


def login_pages() -> list[str]:
    """Return the paths of the project's login pages: those of its admin sites, and LOGIN_URL."""
    from django.conf import settings
    from django.shortcuts import resolve_url

    return sorted({*existing(lambda: resolve_url(settings.LOGIN_URL)), *admin_logins()})


def admin_page() -> str:
    """Return the path of the project's admin site; "" without one."""
    from django.urls import reverse

    return next(existing(lambda: reverse("admin:index")), "")


def admin_logins() -> set[str]:
    """Return the path of each admin site's login page."""
    from django.apps import apps
    from django.urls import reverse

    if not apps.is_installed("django.contrib.admin"):
        return set()
    from django.contrib.admin.sites import all_sites

    # By now the URLs are imported, and with them the admin sites.
    sites = [site.name for site in all_sites]
    return {path for site in sites for path in existing(lambda site=site: reverse("admin:login", current_app=site))}


def existing(page: Callable[[], str]) -> Iterator[str]:
    """Yield the path of a page, if the project has it. Django's own checks report errors in the URLs."""
    from django.urls import resolve

    with contextlib.suppress(Exception):
        resolve(path := page())
        yield path


def pages_below(*paths: str) -> dict[str, list[str]]:
    """Return those of the paths (/status/) at which the project has a page, or below which it has some.

    A pattern that also matches any other name, such as <slug:page>/, is no page of that path.
    """
    from django.urls import get_resolver

    if not has_pages():
        return {"paths": []}
    patterns = get_resolver().url_patterns
    return {"paths": [path for path in paths if has_page(path) or has_pattern(patterns, path.removeprefix("/"))]}


def has_page(path: str) -> bool:
    """Return whether a view of the project is meant for this path, with or without the slash at the end."""
    other = f"{path.rstrip('/')}-{uuid.uuid4().hex}"
    return any(route_of(path.rstrip("/") + end) not in ("", route_of(other + end)) for end in ("/", ""))


def route_of(path: str) -> str:
    """Return the pattern of the view that answers a path, and "" without one."""
    from django.urls import resolve

    with contextlib.suppress(Exception):
        return resolve(path).route
    return ""


def has_pattern(patterns: Iterable[Any], wanted: str, prefix: str = "") -> bool:
    """Return whether a pattern of the URLs begins with `wanted`, such as status/."""
    for one in patterns:
        route = prefix + str(one.pattern).removeprefix("^")
        if route.startswith(wanted):
            return True
        if wanted.startswith(route) and has_pattern(getattr(one, "url_patterns", ()), wanted, route):
            return True
    return False


def import_scheduler(scheduler: Any) -> None:
    """Import beat's scheduler, found the way beat finds it."""
    try:
        schedule.scheduler_class(scheduler)
    except Exception as error:
        # Django raises RuntimeError for a package that is installed but not in INSTALLED_APPS.
        raise ImportError(
            f"Beat's scheduler {scheduler} (app_beat_scheduler, or Celery's beat_scheduler) cannot be imported "
            f"({error}). Its package must be in the requirements and, where it has models, in INSTALLED_APPS."
        ) from None


def periodic(celery: str) -> dict[str, Any]:
    """Name the enabled periodic tasks in the database, and their tasks, for which this release has no code."""
    application = find_celery(celery)
    application.loader.import_default_modules()
    from django.apps import apps

    if not apps.is_installed("django_celery_beat"):
        return {"unknown": []}
    from django_celery_beat.models import PeriodicTask

    rows = PeriodicTask.objects.filter(enabled=True).order_by("name").values_list("name", "task")
    return {"unknown": [[name, task] for name, task in rows if task not in application.tasks]}


# --- Workers -------------------------------------------------------------------------------------------------------


def ping(celery: str, seconds: str, *workers: str) -> dict[str, Any]:
    """Ping workers until all have answered or the time is over; name those without an answer."""
    application = find_celery(celery)
    deadline = time.monotonic() + float(seconds)
    silent = set(workers)
    while silent and time.monotonic() < deadline:
        answers = application.control.ping(destination=sorted(silent), timeout=0.5, limit=len(silent))
        silent -= {name for answer in answers for name in answer}
    return {"silent": sorted(silent)}


def consumed(celery: str, seconds: float, workers: dict[str, list[str]]) -> dict[str, Any]:
    """Ask workers which queues they consume; name those without an answer, and the queues that are missing."""
    application = find_celery(celery)
    deadline = time.monotonic() + float(seconds)
    answers: dict[str, list[str]] = {}
    while (silent := workers.keys() - answers.keys()) and time.monotonic() < deadline:
        inspect = application.control.inspect(destination=sorted(silent), timeout=1, limit=len(silent))
        for node, found in (inspect.active_queues() or {}).items():
            # The name of a broadcast queue is another one in every worker.
            answers[node] = [name for queue in found for name in (queue["name"], queue.get("alias"))]
    missing = {node: sorted(set(workers[node]) - set(queues)) for node, queues in answers.items()}
    return {"silent": sorted(silent), "missing": {node: queues for node, queues in missing.items() if queues}}


def running(celery: str, seconds: float, *workers: str) -> dict[str, list[dict[str, Any]]]:
    """Return the tasks that workers run, each with its name, ID and start (seconds since the epoch)."""
    inspect = find_celery(celery).control.inspect(
        destination=sorted(workers), timeout=float(seconds), limit=len(workers)
    )
    return {
        node: [
            {"name": task["name"], "id": task["id"], "since": task["time_start"]}
            for task in tasks
            if task.get("time_start") and task["name"] != smoke_test.TASK
        ]
        for node, tasks in (inspect.active() or {}).items()
    }


def consumers(celery: str, action: str, queues: str, *workers: str) -> dict[str, Any]:
    """Have workers stop consuming queues ("cancel") or consume them again ("add"); name those without confirmation."""
    control = find_celery(celery).control
    send = {"cancel": control.cancel_consumer, "add": control.add_consumer}[action]
    silent = set()
    for queue in queues.split(","):
        left = set(workers)
        for _ in range(5):
            if left:
                answers = send(queue, destination=sorted(left), reply=True, timeout=1, limit=len(left))
                left -= {name for answer in answers for name, reply in answer.items() if "ok" in reply}
        silent |= left
    return {"silent": sorted(silent)}


def smoke_test_queues(
    celery: str, seconds: float, release: str, workers: dict[str, list[str]], *queues: str
) -> dict[str, Any]:
    """Send the smoke test to every queue; name the queues without an answer, and those that another release answers.

    Behind long tasks it waits for longer than `seconds`. A queue one of whose workers runs other tasks is `busy`, not
    `silent`: those tasks show that it is consumed.
    """
    application = find_celery(celery)
    nonces = {queue: uuid.uuid4().hex for queue in queues}
    for queue, nonce in nonces.items():
        options = {"queue": queue, "ignore_result": True, "expires": float(seconds) + 60}
        application.send_task(smoke_test.TASK, args=[nonce], **options)
    deadline = time.monotonic() + float(seconds)
    next_check = time.monotonic() + min(BUSY_CHECK_SECONDS, float(seconds))
    answers: dict[str, str] = {}
    busy: set[str] = set()
    with open_channel(application) as (channel, client):
        while (left := nonces.keys() - answers.keys()) - busy and time.monotonic() < deadline:
            for queue in left:
                if answer := client.get(parking.full_name(channel, smoke_test.answer_key(nonces[queue]))):
                    answers[queue] = answer.decode()
            if nonces.keys() - answers.keys() and time.monotonic() > next_check:
                busy = busy_queues(application, workers)
                next_check = time.monotonic() + BUSY_CHECK_SECONDS
            time.sleep(0.05)
    other = {queue: answer for queue, answer in sorted(answers.items()) if answer != release}
    left = nonces.keys() - answers.keys()
    return {"silent": sorted(left - busy), "other": other, "busy": sorted(left & busy)}


def busy_queues(application: Any, workers: dict[str, list[str]]) -> set[str]:
    """Return the queues of the workers that run a task other than the smoke test."""
    active = application.control.inspect(destination=sorted(workers), timeout=1).active() if workers else None
    busy = [node for node, tasks in (active or {}).items() if any(task["name"] != smoke_test.TASK for task in tasks)]
    return {queue for node in busy for queue in workers.get(node, [])}


# --- Messages ------------------------------------------------------------------------------------------------------


def depths(celery: str, *queues: str) -> dict[str, int]:
    """Count the waiting tasks of each queue, of every priority."""
    with open_channel(find_celery(celery)) as (channel, _):
        return {queue: depth(channel, queue) for queue in queues}


def unconsumed(celery: str, *consumed: str) -> dict[str, int]:
    """Count the waiting tasks of every queue of the broker that is not in `consumed`, where there are any."""
    with open_channel(find_celery(celery)) as (channel, client):
        names = bound_queues(channel, client) - set(consumed)
        found = {queue: depth(channel, queue) for queue in sorted(names)}
    return {queue: number for queue, number in found.items() if number}


def bound_queues(channel: Any, client: Any) -> set[str]:
    """Return every queue that kombu has recorded as bound to an exchange, without those of Celery's own messages."""
    prefix = parking.full_name(channel, channel.keyprefix_queue % "")
    keys = client.scan_iter(match=f"{prefix}*", count=1000)
    exchanges = {key.decode().removeprefix(prefix) for key in keys}
    names = {binding[-1] for exchange in exchanges for binding in channel.get_table(exchange)}
    return {name for name in names if not name.endswith(".pidbox") and not name.startswith("celeryev")}


def depth(channel: Any, queue: str) -> int:
    from kombu.exceptions import ChannelError

    try:
        return channel.queue_declare(queue, passive=True).message_count
    except ChannelError:
        return 0  # "No such queue": Redis has no empty lists.


def requeue_unacknowledged(celery: str) -> dict[str, Any]:
    """Requeue what dead workers held, and parked messages whose task is known now; count both."""
    if compat.problems():
        return {"requeued": 0, "known": {}}
    application = find_celery(celery)
    application.loader.import_default_modules()
    with open_channel(application) as (channel, _):
        # What workers of an earlier version have parked since those of this release started.
        parking.adopt_former_list(channel)
        # The interpreter is /srv/APP/releases/ID/.venv/bin/python.
        requeued = requeue.requeue_dead_workers(channel, Path(sys.prefix).parents[1])
        return {"requeued": requeued, "known": parking.requeue_known(channel, application.tasks)}


def ended_by_messages(celery: str, since: float, *workers: str) -> dict[str, Any]:
    """Name those of the workers that ended after a time and held messages, which may have ended them.

    Their messages are requeued first. A worker that is about to start requeues them itself: it is waited for.
    """
    if compat.problems():
        return {"workers": []}
    deadline = time.monotonic() + START_SECONDS
    with open_channel(find_celery(celery)) as (channel, client):
        requeue.requeue_dead_workers(channel, Path(sys.prefix).parents[1])
        while True:
            times = {worker: client.get(parking.full_name(channel, returns.crash_key(worker))) for worker in workers}
            found = [worker for worker, last in times.items() if last and float(last) >= since]
            running = {node.decode() for node in client.smembers(requeue.SLOTS)} & set(workers)
            if not running - set(found) or time.monotonic() > deadline:
                return {"workers": found}
            time.sleep(0.2)


def parked(celery: str) -> dict[str, Any]:
    """Count the parked messages: those of unknown tasks by the name of their task, and the others."""
    with open_channel(find_celery(celery)) as (channel, client):
        tasks = parking.parked_tasks(channel, client)
        return {"tasks": tasks, "others": client.llen(parking.PARKED) - sum(tasks.values())}


def list_parked(celery: str) -> dict[str, Any]:
    """Return what a list of the parked messages says about each, oldest first."""
    with open_channel(find_celery(celery)) as (channel, client):
        found = {}
        for line, entry in parking.parked_entries(channel, client):
            found.setdefault(line, parking.summary(channel, entry))
        return {"messages": list(reversed(found.values()))}


def show_parked(celery: str, message_id: str) -> dict[str, Any]:
    """Return everything about the parked messages with an ID."""
    with open_channel(find_celery(celery)) as (channel, client):
        found = dict(parking.parked_entries(channel, client))
        wanted = [entry for entry in found.values() if parking.summary(channel, entry)["id"] == message_id]
        return {"messages": [parking.content(channel, entry) for entry in reversed(wanted)]}


def take_parked(celery: str, action: str, message_id: str) -> dict[str, Any]:
    """Requeue ("requeue") or delete ("drop") the parked messages with an ID, or all of them ("").

    Returns the summaries of those that are gone, and of those that stay: no queue is bound to their exchange.
    """
    application = find_celery(celery)
    with open_channel(application) as (channel, _):

        def is_wanted(entry: list[Any]) -> bool:
            return not message_id or parking.summary(channel, entry)["id"] == message_id

        taken, stuck = parking.take(channel, is_wanted, requeue=action == "requeue")
        return {"taken": taken, "stuck": stuck}


def known_migrations() -> dict[str, Any]:
    """Return the migrations of the code, without asking a database."""
    from django.db.migrations.loader import MigrationLoader

    return {"migrations": sorted(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)}


def park_waiting(celery: str, reason: str) -> dict[str, int]:
    """Park every message that waits in a queue or that a dead worker held; count them by their task."""
    with open_channel(find_celery(celery)) as (channel, client):
        requeue.requeue_dead_workers(channel, Path(sys.prefix).parents[1])
        names = Counter()
        for queue in sorted(bound_queues(channel, client)):
            names.update(parking.park_queue(channel, queue, reason))
    return dict(names.most_common())


# --- Helpers -------------------------------------------------------------------------------------------------------


def find_celery(name: str) -> Any:
    """Return the Celery application, found the way `celery -A` finds it."""
    from celery.app.utils import find_app

    return find_app(name)


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


QUESTIONS = {
    "settings_overlay": settings_overlay,
    "static_files": static_files,
    "collect_static": collect_static,
    "media_files": media_files,
    "check": check,
    "pages_below": pages_below,
    "queues": queues.published,
    "administrator": administrator,
    "migrations": databases,
    "exception": exception,
    "periodic": periodic,
    "ping": ping,
    "consumed": consumed,
    "running": running,
    "consumers": consumers,
    "smoke_test": smoke_test_queues,
    "depths": depths,
    "unconsumed": unconsumed,
    "requeue_unacknowledged": requeue_unacknowledged,
    "ended_by_messages": ended_by_messages,
    "parked": parked,
    "list_parked": list_parked,
    "show_parked": show_parked,
    "take_parked": take_parked,
    "known_migrations": known_migrations,
    "park_waiting": park_waiting,
}
