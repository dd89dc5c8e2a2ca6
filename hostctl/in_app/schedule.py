"""Beat's schedule: which scheduler the project means, and what it stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


def choose(application: Any, wanted: str = "") -> str:
    """Return beat's scheduler: `wanted`, else the project's (beat_scheduler), else that of an app that it installs.

    django_celery_beat's is often given on the command line only, `--scheduler django`: without it, the periodic tasks
    in the database would never run.
    """
    if wanted or is_set(application, "beat_scheduler") or not has_database_schedule():
        return wanted or application.conf.beat_scheduler
    return DATABASE_SCHEDULER


def is_set(application: Any, setting: str) -> bool:
    """Return whether the project sets a setting of Celery; the last mapping of its configuration is the defaults."""
    # Celery loads its configuration when a setting is first read.
    getattr(application.conf, setting)
    names = {setting, setting.upper(), f"{application.namespace or ''}_{setting}".upper(), f"CELERY{setting}".upper()}
    return any(name in mapping for mapping in application.conf.maps[:-1] for name in names)


def has_database_schedule() -> bool:
    """Return whether django_celery_beat is in INSTALLED_APPS."""
    import os

    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return False
    from django.conf import settings

    return any(name.split(".")[0] == "django_celery_beat" for name in settings.INSTALLED_APPS)


def scheduler_class(scheduler: Any) -> Any:
    """Import a scheduler, found the way beat finds it."""
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    return symbol_by_name(scheduler, aliases=dict(load_extension_class_names("celery.beat_schedulers")))


def without_lock(cls: type) -> type:
    """Return RedBeat's scheduler without its lock in Redis, and any other one as it is.

    After `kill -9` the lock would keep beat from starting for up to 25 minutes. The lock file of beat.py ends with its
    process, and only one host of an installation runs beat.
    """
    if not is_redbeat(cls):
        return cls
    no_key = property(lambda self: None, lambda self, key: None)
    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "lock_key": no_key})


def is_redbeat(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == "redbeat" for base in cls.__mro__)


def reach_redbeat(application: Any, scheduler: str) -> None:
    """Connect to the Redis of RedBeat, if that is the scheduler; raise ConnectionError, with the line to write."""
    if not is_redbeat(scheduler_class(scheduler)):
        return
    from kombu.utils.url import maybe_sanitize_url
    from redbeat.schedulers import ensure_conf, get_redis
    from redis import RedisError

    try:
        get_redis(application).ping()
    except RedisError as error:
        url = maybe_sanitize_url(ensure_conf(application).redis_url)
        raise ConnectionError(
            f"RedBeat cannot use its Redis, {url} ({error}). Write beside the Celery application: "
            'app.conf.redbeat_redis_url = os.environ["CELERY_BROKER_URL"]'
        ) from None


def keeps_entries_in_database(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == "django_celery_beat" for base in cls.__mro__)


def stored_entries(application: Any, scheduler: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, task and options of the enabled entries in the scheduler's store; none before its tables exist."""
    cls = scheduler_class(scheduler)
    if keeps_entries_in_database(cls):
        yield from database_entries(cls.Model)
    elif is_redbeat(cls):
        yield from redbeat_entries(application, cls)


def database_entries(model: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    from django.db import DatabaseError

    options = ("queue", "exchange", "routing_key")
    try:
        rows = list(model.objects.filter(enabled=True).order_by("name").values_list("name", "task", *options))
    except DatabaseError:
        return  # Its migrations are pending.
    for name, task, *values in rows:
        yield name, task, dict(zip(options, values, strict=True))


def redbeat_entries(application: Any, cls: type) -> Iterator[tuple[str, str, dict[str, Any]]]:
    from redbeat.schedulers import ensure_conf, get_redis

    keys = get_redis(application).zrange(ensure_conf(application).schedule_key, 0, -1)
    for key in keys:
        try:
            entry = cls.Entry.from_key(key, app=application)
        except KeyError:
            continue  # Deleted; beat forgets its key.
        if entry.enabled:
            yield entry.name, entry.task, entry.options


def problems(application: Any, scheduler: str) -> list[str]:
    """Say what keeps the database scheduler from sending in time, and what its start changes in the database."""
    from django.conf import settings

    cls = scheduler_class(scheduler)
    if not keeps_entries_in_database(cls):
        return []
    found = []
    if not settings.USE_TZ and settings.TIME_ZONE != "UTC":
        found.append(
            f'USE_TZ = False beside TIME_ZONE = "{settings.TIME_ZONE}": django_celery_beat reads the times of last '
            "runs as UTC, so after a start of beat tasks may be sent hours late or early. Set USE_TZ = True."
        )
    if changed := ", ".join(changed_by_start(application, cls.Model)):
        found.append(
            "The start of beat changes periodic tasks in the database to what the settings say (beat_schedule); what "
            f"was edited there is lost: {changed}. To keep it, remove the entry from beat_schedule."
        )
    return found


def changed_by_start(application: Any, model: Any) -> Iterator[str]:
    """Yield the entries whose schedule in the database is not that of the settings."""
    from celery.schedules import maybe_schedule
    from django.db import DatabaseError

    own = application.conf.beat_schedule
    try:
        rows = {row.name: row.schedule for row in model.objects.filter(name__in=list(own))}
    except DatabaseError:
        return  # Its migrations are pending.
    for name, before in sorted(rows.items()):
        after = maybe_schedule(own[name]["schedule"], app=application)
        if before != after:
            # django_celery_beat's text has line breaks.
            yield " ".join(f"{name} from {before} to {after}".split())


def adds_cleanup(application: Any, scheduler: str) -> bool:
    """Return whether beat adds celery.backend_cleanup to the schedule, which deletes expired results."""
    if not application.conf.result_expires:
        return False
    return keeps_entries_in_database(scheduler_class(scheduler)) or not application.backend.supports_autoexpire
