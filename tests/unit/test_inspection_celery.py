"""Queues without a worker, and beat's scheduler, are found before a deployment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from inspected import CELERY, MANAGE, PLAIN, inspect, texts, values, with_settings

BEAT = 'INSTALLED_APPS += ["django_celery_beat"]\n'


def queues(folder: Path, files: dict[str, str]) -> list[str]:
    """Return the queues that are found; the worker that is written consumes all of them."""
    report = inspect(folder, files)
    assert "queues" not in values(report)["app_workers"][0]
    return re.findall(r"[:,] (\S+) \(", texts(report, "decided", "queues"))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("", ["celery"]),
        ('CELERY_TASK_DEFAULT_QUEUE = "main"', ["main"]),
        ('CELERY_TASK_DEFAULT_QUEUE = os.environ.get("QUEUE", "main")', ["main"]),
        ('CELERY_TASK_ROUTES = {"a.*": {"queue": "mail"}}', ["celery", "mail"]),
        ('CELERY_TASK_ROUTES = ([("a.*", {"queue": "mail"}), ("b.*", {"queue": "io"})],)', ["celery", "io", "mail"]),
        ('from kombu import Queue\nCELERY_TASK_QUEUES = (Queue("a"), Queue(name="b"))', ["a", "b", "celery"]),
        ('CELERY_TASK_QUEUES = {"a": {"exchange": "a"}}', ["a", "celery"]),
        ('CELERY_TASK_ROUTES = {"a.*": "mail", "b.c": {"queue": "io", "priority": 3}}', ["celery", "io", "mail"]),
        ('CELERY_TASK_ROUTES = [{"a.*": "mail"}, ("b.*", {"routing_key": "x"})]', ["celery", "mail"]),
        (
            'CELERY_BEAT_SCHEDULE = {"x": {"task": "t", "schedule": 5, "options": {"queue": "timed"}}}',
            ["celery", "timed"],
        ),
        # Without the namespace these are not Celery's.
        ('TASK_DEFAULT_QUEUE = "main"', ["celery"]),
    ],
)
def test_queues_of_settings(tmp_path: Path, settings: str, found: list[str]) -> None:
    assert queues(tmp_path, with_settings(settings + "\n")) == found


@pytest.mark.parametrize(
    "code",
    [
        '@shared_task(queue="mail")\ndef send(): pass\n',
        '@app.task(bind=True, queue="mail")\ndef send(self): pass\n',
        'send.apply_async(queue="mail")\n',
        'send.s(1).set(queue="mail")\n',
        'QUEUE = "mail"\nsend.apply_async(queue=QUEUE)\n',
        'app.send_task("x", queue=settings.MAIL_QUEUE)\n',
        'class Send(Task):\n    queue = "mail"\n',
    ],
)
def test_queues_of_code(tmp_path: Path, code: str) -> None:
    files = with_settings('MAIL_QUEUE = "mail"\n') | {"notes/tasks.py": code, "notes/tests/test_x.py": "f(queue='no')"}
    assert queues(tmp_path, files) == ["celery", "mail"]


def test_worker_without_queues_consumes_those_of_the_code(tmp_path: Path) -> None:
    """As the host does: tests/hostctl/test_queues.py."""
    files = PLAIN | {"notes/views.py": 'send.apply_async(queue="mail")\n'}
    report = inspect(tmp_path, files, app_workers=[{"name": "main"}])
    assert texts(report, "fine", "queues") == "Every queue has a worker: celery, mail."


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('app.conf.task_default_queue = "main"\n', ["main"]),
        ('app.conf.update(task_routes={"a.*": {"queue": "mail"}})\n', ["celery", "mail"]),
    ],
)
def test_configuration_in_the_module_of_the_application(tmp_path: Path, code: str, found: list[str]) -> None:
    assert queues(tmp_path, PLAIN | {"config/celery.py": CELERY + code}) == found


@pytest.mark.parametrize(
    "read",
    [
        'app.config_from_object("config.celeryconfig")',
        "from config import celeryconfig\napp.config_from_object(celeryconfig)",
        'class Config:\n    task_default_queue = "jobs"\n\napp.config_from_object(Config)',
        'app.conf.update({"task_default_queue": "jobs"})',
        "from django.conf import settings\napp.conf.update(settings.CELERY)",
        "from django.conf import settings\napp.config_from_object(settings.CELERY)",
    ],
)
def test_configuration_in_another_object(tmp_path: Path, read: str) -> None:
    module = CELERY.replace('app.config_from_object("django.conf:settings", namespace="CELERY")', read)
    files = with_settings('CELERY = {"task_default_queue": "jobs"}\n')
    files |= {"config/celery.py": module, "config/celeryconfig.py": 'CELERY_DEFAULT_QUEUE = "jobs"\n'}
    assert read in files["config/celery.py"]
    assert queues(tmp_path, files) == ["jobs"]


def test_tasks_that_run_inside_of_requests(tmp_path: Path) -> None:
    eager = "CELERY_TASK_ALWAYS_EAGER = "
    words = "Warning: CELERY_TASK_ALWAYS_EAGER is True (config/settings.py:16)"
    assert words in texts(inspect(tmp_path, with_settings(f"{eager}True\n")), "decided", "celery")
    assert "EAGER" not in texts(inspect(tmp_path, with_settings(f"{eager}DEBUG\n")), "decided")
    report = inspect(tmp_path, with_settings(f"{eager}os.environ.get('EAGER', '1') == '1'\n"))
    assert values(report)["app_environment"] == {"EAGER": "false"}


def test_old_names_without_namespace(tmp_path: Path) -> None:
    files = with_settings('CELERY_DEFAULT_QUEUE = "old"\nCELERY_ROUTES = {"a": {"queue": "mail"}}\n')
    files["config/celery.py"] = CELERY.replace(', namespace="CELERY"', "")
    assert queues(tmp_path, files) == ["mail", "old"]


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"app_workers": [{"name": "a", "queues": ["default", "heavy"]}]}, ["celery", "mail"]),
        ({"app_workers": [{"name": "a", "queues": ["celery"]}]}, ["mail"]),
        ({"app_workers": [{"name": "a", "queues": ["celery"]}], "app_external_queues": ["mail"]}, []),
        ({"app_workers": [{"name": "a", "queues": ["celery"]}, {"name": "b"}]}, []),
        (
            {
                "app_workers": [{"name": "a", "queues": ["celery"]}],
                "app_processes": [{"name": "b", "command": "celery -A config worker --queues=x,mail -c 1"}],
            },
            [],
        ),
        (
            {
                "app_workers": [{"name": "a", "queues": ["mail"]}],
                "app_processes": [{"name": "b", "command": "celery -A config worker -c 1"}],
            },
            [],
        ),
        (
            {
                "app_workers": [{"name": "a", "queues": ["mail"]}],
                "app_processes": [{"name": "b", "command": "celery -A worker flower"}],
            },
            ["celery"],
        ),
        ({"app_workers": [{"name": "a", "queues": ["celery", "mail"]}]}, []),
    ],
)
def test_queue_without_a_worker(tmp_path: Path, settings: dict[str, Any], missing: list[str]) -> None:
    files = with_settings('CELERY_TASK_ROUTES = {"a.*": {"queue": "mail"}}\n')
    needs = texts(inspect(tmp_path, files, **settings), "needs", "queues")
    assert [name for name in ("celery", "mail") if f"the queue {name} (" in needs] == missing


def test_scheduler_of_the_settings(tmp_path: Path) -> None:
    files = with_settings(BEAT + 'CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"\n')
    assert "DatabaseScheduler" in texts(inspect(tmp_path, files), "fine", "beat")


def test_database_scheduler_that_is_installed_and_unused(tmp_path: Path) -> None:
    assert "DatabaseScheduler" in texts(inspect(tmp_path, with_settings(BEAT)), "decided", "beat")


@pytest.mark.parametrize(
    ("command", "scheduler"),
    [
        ("celery -A config beat -S django", "django_celery_beat.schedulers:DatabaseScheduler"),
        ("celery -A config beat -l INFO --scheduler=redbeat.RedBeatScheduler", "redbeat.RedBeatScheduler"),
    ],
)
def test_scheduler_of_a_command(tmp_path: Path, command: str, scheduler: str) -> None:
    files = with_settings(BEAT) | {"Procfile": f"web: gunicorn x\nbeat: {command}\n"}
    assert values(inspect(tmp_path, files))["app_beat_scheduler"] == scheduler


def test_no_schedule_needs_no_beat(tmp_path: Path) -> None:
    assert values(inspect(tmp_path, PLAIN))["app_beat"] is False
    files = with_settings('CELERY_BEAT_SCHEDULE = {"x": {"task": "t", "schedule": 5}}\n')
    assert "app_beat" not in values(inspect(tmp_path, files))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"config/settings.py": 'from split_settings.tools import include\ninclude("components/*.py")\n'},
            "the settings cannot be read here",
        ),
        ({"manage.py": MANAGE.replace("config.settings", "config.missing")}, "the settings cannot be read here"),
        ({"requirements.txt": PLAIN["requirements.txt"] + "django_celery_beat\n"}, "have django-celery-beat"),
        ({"requirements.txt": PLAIN["requirements.txt"] + "celery-redbeat\n"}, "have celery-redbeat"),
    ],
)
def test_beat_runs_where_a_schedule_may_exist(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    if "manage.py" in files:
        files |= {"config/settings.py": "", "config/wsgi.py": ""}
    report = inspect(tmp_path, PLAIN | files)
    assert reason in texts(report, "fine", "beat")
    assert "app_beat" not in values(report)


@pytest.mark.parametrize(("zone", "warned"), [("Europe/Berlin", True), ("UTC", False)])
def test_times_without_a_zone(tmp_path: Path, zone: str, warned: bool) -> None:
    report = inspect(tmp_path, with_settings(BEAT + f'USE_TZ = False\nTIME_ZONE = "{zone}"\n'))
    assert ("Warning: USE_TZ" in texts(report, "decided", "beat")) is warned


def test_arguments_of_delay_are_the_tasks_own(tmp_path: Path) -> None:
    files = PLAIN | {"notes/jobs.py": 'def start(task):\n    task.delay(queue="front desk")\n'}
    workers = [{"name": "main", "queues": ["celery"]}]
    assert texts(inspect(tmp_path, files, app_workers=workers), "needs") == ""
