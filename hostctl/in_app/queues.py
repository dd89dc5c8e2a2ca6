"""Which queues the application publishes to, as far as its settings, tasks, schedule and code say.

What a call computes, such as apply_async(queue=f"{region}"), only the broker knows: see questions.unconsumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import queue_calls, schedule, smoke_test

# Options of a task, a route or an entry of the schedule that decide where a message goes.
ROUTING = ("queue", "exchange", "routing_key")
CLEANUP = "celery.backend_cleanup"


EAGER = (
    "CELERY_TASK_ALWAYS_EAGER is True: every task runs inside of the request that sends it, and no worker gets any. "
    "Write into the settings of production: CELERY_TASK_ALWAYS_EAGER = False."
)


def published(celery: str, scheduler: str, runs_beat: bool, folder: str) -> dict[str, Any]:
    """Return the `queues` that the application publishes to, each with who does so.

    `scheduler` is the setting app_beat_scheduler; `runs_beat` says whether beat runs in the installation; `folder` is
    the release's. `default` is the queue of messages without a route; `without_option` are those that `celery worker`
    consumes without -Q. `broadcast` are queues whose messages every consumer gets: they need none. `in_code` are
    further queues that only calls name, each with FILE:LINE: whether such a call runs is unknown. `warnings` say what
    could not be asked.
    """
    from celery.app.utils import find_app

    application = find_app(celery)
    application.loader.import_default_modules()
    application.finalize()
    found = Destinations(application)
    found.add_declared()
    found.add_tasks()
    found.add_routes()
    found.add_schedule(schedule.choose(application, scheduler), runs_beat=runs_beat)
    calls = Destinations(application)
    declared = [queue.alias or queue.name for queue in found.declared]
    if application.conf.task_always_eager:
        found.warnings.append(EAGER)
    calls.add_calls(Path(folder))
    return {
        "queues": found.queues,
        "default": application.conf.task_default_queue,
        "without_option": declared or [application.conf.task_default_queue],
        "broadcast": sorted(found.broadcast | calls.broadcast),
        "in_code": {queue: places for queue, places in calls.queues.items() if queue not in found.queues},
        "warnings": found.warnings,
    }


class Destinations:
    """The queues that messages go to, by name, each with the names of what sends them."""

    def __init__(self, application: Any) -> None:
        self.app = application
        self.queues: dict[str, list[str]] = {}
        self.broadcast: set[str] = set()
        self.warnings: list[str] = []
        # The router adds the queues that it meets.
        self.declared = list(application.amqp.queues.values()) if application.conf.task_queues else []

    # -- what sends

    def add_declared(self) -> None:
        for queue in self.declared:
            self.add([queue], "task_queues")

    def add_tasks(self) -> None:
        for name in sorted(self.app.tasks):
            if not name.startswith("celery.") and name != smoke_test.TASK:
                self.add_task(name, f"the task {name}")

    def add_routes(self) -> None:
        """Add the queues that task_routes names, also for tasks that this application only sends."""
        for route in literal_routes(self.app.conf.task_routes):
            queue = route.get("queue") if isinstance(route, Mapping) else route
            if queue:
                self.add([queue], "task_routes")

    def add_schedule(self, scheduler: str, *, runs_beat: bool) -> None:
        """Add where the entries of beat's schedule go: those of the settings, and those of the scheduler's store."""
        for name, entry in self.app.conf.beat_schedule.items():
            fields = entry if isinstance(entry, Mapping) else vars(entry)
            self.add_task(fields["task"], f"the periodic task {name}", fields.get("options"))
        try:
            for name, task, options in schedule.stored_entries(self.app, scheduler):
                self.add_task(task, f"the periodic task {name}", options)
            if runs_beat and schedule.adds_cleanup(self.app, scheduler):
                self.add_task(CLEANUP, f"the periodic task {CLEANUP}")
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            self.warnings.append(f"The periodic tasks of {scheduler} cannot be read, nor their queues: {problem}")

    def add_calls(self, folder: Path) -> None:
        """Add the queues that calls in the code name."""
        for place, queue in queue_calls.queues_in_code(folder):
            self.add([queue], place)

    # -- where it goes

    def add_task(self, name: str, sender: str, options: Mapping[str, Any] | None = None) -> None:
        task = self.app.tasks.get(name)
        wanted = {key: value for key in ROUTING if (value := getattr(task, key, None))}
        wanted |= {key: value for key in ROUTING if (value := (options or {}).get(key))}
        try:
            routed = self.app.amqp.router.route(wanted, name, (), {}, task)
        except Exception as error:
            # A router that needs the arguments of the call; or a queue that task_queues lacks.
            self.warnings.append(f"Where {sender} goes is not known: {type(error).__name__}: {error}")
            return
        self.add(self.queues_of(routed), sender)

    def queues_of(self, routed: Mapping[str, Any]) -> list[Any]:
        """Return the queues that a message with these options is delivered to, as Celery and kombu find them."""
        queue, exchange, key = (routed.get(name) for name in ROUTING)
        if exchange and key:
            return self.bound(getattr(exchange, "name", exchange), key)
        if queue and key and queue.exchange and queue.exchange.type == "topic":
            return self.bound(queue.exchange.name, key)
        return [queue or self.app.conf.task_default_queue]

    def bound(self, exchange: str, key: str) -> list[Any]:
        return [queue for queue in self.declared if any(matches(*one, exchange, key) for one in bindings(queue))]

    def add(self, queues: Iterable[Any], sender: str) -> None:
        for queue in queues:
            known = self.app.amqp.queues
            declared = known.aliases.get(queue) or known.get(queue, queue) if isinstance(queue, str) else queue
            name = declared if isinstance(declared, str) else declared.alias or declared.name
            if getattr(getattr(declared, "exchange", None), "type", "") == "fanout":
                self.broadcast.add(name)
            elif sender not in self.queues.setdefault(name, []):
                self.queues[name].append(sender)


def literal_routes(routes: Any) -> Iterator[Any]:
    """Yield the routes that are written out in task_routes: mappings, or names of queues. Others are called."""
    if isinstance(routes, Mapping):
        yield from (route for route in routes.values() if isinstance(route, str | Mapping))
    elif isinstance(routes, list | tuple):
        for one in routes:
            # In a list, pairs of a pattern and a route may take the place of a mapping.
            yield from literal_routes(dict(one) if isinstance(one, list | tuple) else one)


def bindings(queue: Any) -> list[tuple[Any, str]]:
    """Return the exchanges and routing keys that a queue is bound with."""
    return [(queue.exchange, queue.routing_key), *((one.exchange, one.routing_key) for one in queue.bindings or ())]


def matches(own: Any, binding_key: str, exchange: str, key: str) -> bool:
    """Return whether a binding delivers messages to an exchange with a routing key."""
    if not own or own.name != exchange:
        return False
    if own.type != "topic":
        return own.type == "fanout" or binding_key == key
    pattern = re.escape(binding_key).replace(r"\*", r"[^.]+").replace(r"\#", ".*").replace("#", ".*")
    return bool(re.fullmatch(pattern, key))
