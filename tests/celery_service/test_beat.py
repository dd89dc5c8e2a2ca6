"""celery_service.py's beat, and what a rollout asks about periodic tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT, Broker, Site, wait_until


def test_beat_runs_once(site: Site, broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: site.depth("ticks") >= 1)
    second = site.beat()
    assert second.wait(60) == 1
    assert f"Beat runs already: another process has locked {site.folder}/lock." in site.output(second)
    assert site.stop(beat) == 0
    assert list(site.folder.glob("schedule*"))
    third = site.beat()
    number = site.depth("ticks")
    wait_until(lambda: site.depth("ticks") > number)
    os.kill(third.pid, signal.SIGKILL)
    third.wait()
    number = site.depth("ticks")
    site.beat()
    wait_until(lambda: site.depth("ticks") > number)


def test_periodic_tasks_without_code_are_named(site: Site, broker: Broker) -> None:
    rows = """
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every = IntervalSchedule.objects.create(every=1, period="days")
for name, task, enabled in [("a", "sample.tick", 1), ("b", "sample.gone", 1), ("c", "sample.gone", 0)]:
    PeriodicTask.objects.create(name=name, task=task, enabled=enabled, interval=every)
"""
    environment = site.environment({"DJANGO_SETTINGS_MODULE": "sample.settings"})
    for command in (["-m", "django", "migrate", "--verbosity", "0"], ["-c", rows]):
        subprocess.run([sys.executable, *command], cwd=PROJECT, env=environment, check=True)
    assert site.ask(["periodic", "sample"]) == {"unknown": [["b", "sample.gone"]]}


def test_a_release_without_beats_scheduler_fails_its_check(site: Site, broker: Broker) -> None:
    question = ["check", "sample.celery:app", "sample"]
    variables = {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    for scheduler in ("celery.beat:PersistentScheduler", "django_celery_beat.schedulers:DatabaseScheduler", "django"):
        assert "versions" in site.ask([*question, True], **variables, SCHEDULER=scheduler)
    gone = variables | {"SCHEDULER": "gone.schedulers:Database"}
    assert "versions" in site.ask([*question, False], **gone)
    with pytest.raises(AssertionError, match="Its package must be in the requirements"):
        site.ask([*question, True], **gone)
