"""Ask an application what only its own interpreter knows; APPctl runs this with the release's Python.

    check WSGI CELERY BEAT         import what the services will, run Django's checks, collect static files
    migrations                     what the release's migrations would do to the database
    ping CELERY SECONDS WORKER...  which of the workers do not answer
    consumers CELERY cancel|add QUEUE,... WORKER...
                                   have workers give up queues or take them again; which do not answer
    probe CELERY SECONDS RELEASE {WORKER: [QUEUE, ...]} QUEUE...
                                   send a task round every queue; from which none came back, or from another release,
                                   and where the workers are at work on others
    rescue CELERY                  put back what dead workers held, and what was set aside and is known now
    set_aside CELERY               tasks that no worker knew
    periodic CELERY                periodic tasks whose code is not there
    depths CELERY QUEUE...         how many tasks wait

One process answers all the questions of a rollout, so that the application is loaded once: a question a line on stdin,
an answer a line on stdout, as JSON; see serve().
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

# Seconds without an answer from a queue after which its workers are asked what they do.
LOOK_AFTER = 5

# Django's own manage.py does the same: the project's folder is where its modules are.
sys.path[0] = str(Path.cwd())


def check(wsgi: str, celery: str, beat: bool = False) -> dict[str, Any]:
    """Import the WSGI callable, the Celery application and beat's scheduler, run the checks, put static files in place.

    Raises ImportError when `beat` is to run and the release lacks its scheduler.
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
    return {"versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}}


def import_scheduler(scheduler: Any) -> None:
    """Import what beat takes its schedule from, found the way beat finds it."""
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    try:
        symbol_by_name(scheduler, aliases=dict(load_extension_class_names("celery.beat_schedulers")))
    except Exception as error:
        # Django raises RuntimeError for a package that is installed but not in INSTALLED_APPS.
        raise ImportError(
            f"Beat's scheduler {scheduler} (the Celery setting beat_scheduler) cannot be imported ({error}). "
            "Its package must be in the requirements and, where it has models, in INSTALLED_APPS."
        ) from None


def migrations() -> dict[str, Any]:
    """What the release's migrations would do to the database; see migrations.py."""
    return sibling("migrations").migrations()


def ping(celery: str, seconds: str, *workers: str) -> dict[str, Any]:
    """Ping workers until all have answered or the time is over; name the silent ones."""
    application = find_celery(celery)
    deadline = time.monotonic() + float(seconds)
    silent = set(workers)
    while silent and time.monotonic() < deadline:
        answers = application.control.ping(destination=sorted(silent), timeout=0.5, limit=len(silent))
        silent -= {name for answer in answers for name in answer}
    return {"silent": sorted(silent)}


def consumers(celery: str, action: str, queues: str, *workers: str) -> dict[str, Any]:
    """Have workers give up queues ("cancel") or take them again ("add"); name those that do not say they did."""
    control = find_celery(celery).control
    tell = {"cancel": control.cancel_consumer, "add": control.add_consumer}[action]
    silent = set()
    for queue in queues.split(","):
        left = set(workers)
        for _ in range(5):
            if left:
                answers = tell(queue, destination=sorted(left), reply=True, timeout=1, limit=len(left))
                left -= {name for answer in answers for name, said in answer.items() if "ok" in said}
        silent |= left
    return {"silent": sorted(silent)}


def probe(celery: str, seconds: float, release: str, workers: dict[str, list[str]], *queues: str) -> dict[str, Any]:
    """Send the task `seedbed.probe` to every queue; name the queues without an answer, or with another release's.

    Behind long tasks, or many, it waits for longer than `seconds`. A queue one of whose workers runs other tasks counts
    as `busy`, not as `silent`: that it takes tasks is seen from these.
    """
    application = find_celery(celery)
    name = sibling("celery_runner").PROBE
    nonces = {queue: uuid.uuid4().hex for queue in queues}
    for queue, nonce in nonces.items():
        application.send_task(name, args=[nonce], queue=queue, ignore_result=True, expires=float(seconds) + 60)
    deadline = time.monotonic() + float(seconds)
    look = time.monotonic() + min(LOOK_AFTER, float(seconds))
    answers: dict[str, str] = {}
    busy: set[str] = set()
    with broker(application) as (channel, client):
        while nonces.keys() - answers.keys() - busy and time.monotonic() < deadline:
            for queue in nonces.keys() - answers.keys():
                if answer := client.get(f"{channel.global_keyprefix}celery-probe-{nonces[queue]}"):
                    answers[queue] = answer.decode()
            if nonces.keys() - answers.keys() and time.monotonic() > look:
                busy = busy_queues(application, name, workers)
                look = time.monotonic() + LOOK_AFTER
            time.sleep(0.05)
    other = {queue: answer for queue, answer in sorted(answers.items()) if answer != release}
    left = nonces.keys() - answers.keys()
    return {"silent": sorted(left - busy), "other": other, "busy": sorted(left & busy)}


def busy_queues(application: Any, probe: str, workers: dict[str, list[str]]) -> set[str]:
    """The queues of those workers that run a task other than the probe."""
    active = application.control.inspect(destination=sorted(workers), timeout=1).active() if workers else None
    at_work = [node for node, tasks in (active or {}).items() if any(task["name"] != probe for task in tasks)]
    return {queue for node in at_work for queue in workers.get(node, [])}


def rescue(celery: str) -> dict[str, Any]:
    """Put back what dead workers held, and what was set aside and is known now; count both."""
    application = find_celery(celery)
    application.loader.import_default_modules()
    service = sibling("celery_runner")
    with broker(application) as (channel, _):
        # The interpreter is that of /srv/APP/releases/ID/.venv.
        restored = service.rescue(channel, Path(sys.prefix).parents[1])
        return {"restored": restored, "put_back": service.put_back_known(channel, application.tasks)}


def set_aside(celery: str) -> dict[str, Any]:
    """Count the tasks that no worker knew, by name."""
    with broker(find_celery(celery)) as (channel, client):
        found = sibling("celery_runner").list_set_aside(channel, client)
        # By the tags that kombu gives: one may be read twice.
        names = {message[0]["properties"]["delivery_tag"]: name for _, message, name in found}
    return {"tasks": Counter(sorted(names.values()))}


def depths(celery: str, *queues: str) -> dict[str, int]:
    """Count the tasks that wait in each queue, whatever their priority."""
    with broker(find_celery(celery)) as (channel, _):
        return {queue: channel._size(queue) for queue in queues}


def periodic(celery: str) -> dict[str, Any]:
    """Name the enabled periodic tasks in the database, and their tasks, that this release has no code for."""
    application = find_celery(celery)
    application.loader.import_default_modules()
    from django.apps import apps

    if not apps.is_installed("django_celery_beat"):
        return {"unknown": []}
    from django_celery_beat.models import PeriodicTask

    rows = PeriodicTask.objects.filter(enabled=True).order_by("name").values_list("name", "task")
    return {"unknown": [[name, task] for name, task in rows if task not in application.tasks]}


@contextmanager
def broker(application: Any) -> Iterator[tuple[Any, Any]]:
    """A channel of kombu's to the broker, and its Redis client."""
    with application.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
        yield connection.default_channel, client


def find_celery(name: str) -> Any:
    """The Celery application, found the way `celery -A` finds it."""
    from celery.app.utils import find_app

    return find_app(name)


def sibling(name: str) -> ModuleType:
    """A module that lies beside this one; by its path, since the project may have one of the same name."""
    spec = importlib.util.spec_from_file_location(f"seedbed_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def serve() -> None:
    """Answer questions, a line of JSON each ([question, argument, ...]), until the end of the input.

    What the application prints goes to stderr, so that it cannot be taken for an answer.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        question, *arguments = json.loads(line)
        try:
            if "DJANGO_SETTINGS_MODULE" in os.environ:
                # Nothing happens from the second time on.
                importlib.import_module("django").setup()
            answer = {"answer": QUESTIONS[question](*arguments)}
        except (Exception, SystemExit):  # Whatever the application does, the one who asks gets to know it.
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


QUESTIONS = {
    question.__name__: question
    for question in (check, migrations, ping, consumers, probe, rescue, set_aside, depths, periodic)
}

if __name__ == "__main__":
    serve()
