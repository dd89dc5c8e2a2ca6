"""The questions of a deployment, each a function: its arguments and its result are JSON.

check WSGI CELERY BEAT            import what the processes will import, run Django's checks, collect static files
migrations                        compare the release's migrations with the database
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
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from . import compat, parking, requeue, returns, smoke_test
from .broker import open_channel
from .migrations import migrations

# Seconds without an answer from a queue, after which its workers are asked what they run.
BUSY_CHECK_SECONDS = 5
# Seconds within which a worker that has ended is running again.
START_SECONDS = 20


# --- The code of the release ---------------------------------------------------------------------------------------


def check(wsgi: str, celery: str, beat: bool = False) -> dict[str, Any]:
    """Import the WSGI callable, the Celery application and beat's scheduler, run Django's checks, collect static files.

    Returns the `versions` of the main packages, `warnings` to print, and the `login_pages`. Raises ImportError when
    `beat` is to run and the release lacks its scheduler.
    """
    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    call_command("check", "--deploy", "--fail-level", "ERROR")
    module, _, name = wsgi.partition(":")
    getattr(importlib.import_module(module), name or "application")
    application = find_celery(celery)
    if beat:
        import_scheduler(application.conf.beat_scheduler)
    if settings.STATIC_ROOT:
        call_command("collectstatic", "--noinput", verbosity=0)
    packages = [name for name in ("django", "celery", "gunicorn") if installed(name)]
    versions = {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}
    warnings = compat.problems() if installed("celery") else []
    prefix = application.conf.broker_transport_options.get("global_keyprefix", "")
    return {"versions": versions, "warnings": warnings, "login_pages": login_pages(), "key_prefix": prefix}


def login_pages() -> list[str]:
    """Return the paths of the project's login pages: those of its admin sites, and LOGIN_URL."""
    from django.apps import apps
    from django.conf import settings
    from django.shortcuts import resolve_url
    from django.urls import resolve, reverse

    def find(page: Callable[[], str]) -> Iterator[str]:
        # A page that the project does not have, or a project without URLs. Django's own checks report errors in them.
        with contextlib.suppress(Exception):
            resolve(path := page())
            yield path

    pages = set(find(lambda: resolve_url(settings.LOGIN_URL)))
    if apps.is_installed("django.contrib.admin"):
        from django.contrib.admin.sites import all_sites

        # By now the URLs are imported, and with them the admin sites.
        for site in all_sites:
            pages |= set(find(lambda name=site.name: reverse("admin:login", current_app=name)))
    return sorted(pages)


def import_scheduler(scheduler: Any) -> None:
    """Import beat's scheduler, found the way beat finds it."""
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    try:
        symbol_by_name(scheduler, aliases=dict(load_extension_class_names("celery.beat_schedulers")))
    except Exception as error:
        # Django raises RuntimeError for a package that is installed but not in INSTALLED_APPS.
        raise ImportError(
            f"Beat's scheduler {scheduler} (the Celery setting beat_scheduler) cannot be imported ({error}). "
            "Its package must be in the requirements and, where it has models, in INSTALLED_APPS."
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
        for node, queues in (inspect.active_queues() or {}).items():
            answers[node] = [queue["name"] for queue in queues]
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
    "check": check,
    "migrations": migrations,
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
}
