"""queues.py: where messages go, as Celery's own router says."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import PROJECT, Broker, Site
from test_beat import DATABASE_SCHEDULER, MIGRATE

ROUTED = {"DJANGO_SETTINGS_MODULE": "sample.settings"}


def published(site: Site, application: str, scheduler: str = "", beat: bool = True, **variables: str) -> dict[str, Any]:
    return site.ask(["queues", application, scheduler, beat, str(PROJECT)], **ROUTED | variables)


@pytest.mark.core
@pytest.mark.unsupported
def test_every_way_to_route_a_task_is_found(site: Site, broker: Broker) -> None:
    found = published(site, "routed", "celery.beat:Scheduler")
    assert found["queues"] == {
        "main": ["task_queues", "the task routed.plain"],
        "video": ["task_queues", "the task routed.media"],
        "image": ["task_queues"],
        "bound": ["task_queues", "the periodic task unknown task"],
        "named": ["the task routed.named", "task_routes"],
        "globbed": ["the task routed.glob_one", "task_routes"],
        "regex": ["the task routed.regex", "task_routes"],
        "paired": ["the task routed.paired", "task_routes"],
        "callable": ["the task routed.called"],
        "attribute": ["the task routed.attribute"],
        "elsewhere": ["task_routes"],
        "periodic": ["the periodic task own queue"],
    }
    assert found["in_code"] == {
        "literal": ["routed/calls.py:11"],
        "constant": ["routed/calls.py:12"],
        "exports": ["routed/calls.py:13"],
    }
    assert (found["default"], found["broadcast"]) == ("main", ["reload"])
    assert found["without_option"] == ["main", "video", "image", "bound", "reload"], "as `celery worker` without -Q"
    assert found["warnings"] == ["Where the task routed.regional goes is not known: KeyError: 'region'"]


@pytest.mark.core
def test_tasks_that_never_reach_a_worker_are_named(site: Site, broker: Broker) -> None:
    warnings = published(site, "routed", "celery.beat:Scheduler", EAGER="1")["warnings"]
    assert [text for text in warnings if text.startswith("CELERY_TASK_ALWAYS_EAGER is True")]


@pytest.mark.core
def test_results_that_expire_need_a_worker_for_the_cleanup(site: Site, broker: Broker) -> None:
    # Redis deletes them itself; files have to be deleted.
    files = {"BACKEND": f"file://{site.results}", "DEFAULT_QUEUE": "cleanup"}
    queues = published(site, "routed", "celery.beat:Scheduler", DEFAULT_QUEUE="cleanup")["queues"]
    assert queues["cleanup"] == ["the task routed.plain"]
    queues = published(site, "routed", "celery.beat:Scheduler", **files)["queues"]
    assert queues["cleanup"] == ["the task routed.plain", "the periodic task celery.backend_cleanup"]
    queues = published(site, "routed", "celery.beat:Scheduler", beat=False, **files)["queues"]
    assert queues["cleanup"] == ["the task routed.plain"]


@pytest.mark.core
def test_periodic_tasks_in_the_database_are_found(site: Site, broker: Broker) -> None:
    """Before the tables exist there are none. Disabled ones send nothing."""
    database = {"SCHEDULER": DATABASE_SCHEDULER}
    found = published(site, "sample", **database)
    assert "billing" not in found["queues"]
    assert found["without_option"] == [found["default"]]
    site.django(*MIGRATE)
    rows = """
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
often = IntervalSchedule.objects.create(every=10, period="minutes")
PeriodicTask.objects.create(name="invoices", task="billing.send", interval=often, queue="billing")
PeriodicTask.objects.create(name="unrouted", task="billing.send", interval=often)
PeriodicTask.objects.create(name="off", task="billing.send", interval=often, queue="off", enabled=False)
"""
    site.django("-c", rows)
    found = published(site, "sample", **database)["queues"]
    assert found["billing"] == ["the periodic task invoices"]
    assert "the periodic task unrouted" in found["default"]
    assert "the periodic task celery.backend_cleanup" in found["default"]
    assert found["ticks"] == ["the periodic task tick"]
    assert "off" not in found
