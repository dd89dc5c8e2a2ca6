"""Tasks, sent by the site and run by a real worker."""

import csv
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from email.message import Message
from pathlib import Path
from uuid import uuid4

import pytest
from celery import states
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.result import AsyncResult
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from django_celery_results.models import TaskResult
from pytest_django import Settings

from core.celery import app
from shop import services, tasks
from shop.models import FlushedBatch, Order
from tests.processes import wait_until

committing = pytest.mark.django_db(transaction=True)


def start(client: Client, **body: object) -> tuple[int, dict]:
    """POST to /tasks/; return the status and the answer."""
    response = client.post("/tasks/", body, content_type="application/json")
    return response.status_code, response.json()


@committing
@pytest.mark.parametrize(
    ("name", "args", "result"),
    [("add", [2, 3.5], 5.5), ("multiply_two_numbers", [6, 7], 42), ("sum_list_numbers", [[1, 2, 3]], 6)],
)
def test_arithmetic(client: Client, worker: None, name: str, args: list, result: float) -> None:
    status, answer = start(client, task=name, args=args)
    assert status == 202
    task = wait_until(lambda: (now := client.get(answer["url"]).json())["state"] == "SUCCESS" and now)
    assert task == {
        "id": answer["id"],
        "name": name if name != "add" else "shop.tasks.add",
        "state": "SUCCESS",
        "progress": None,
        "result": result,
        "error": None,
        "worker": "test@localhost",
        "release": "release-under-test",
    }
    assert TaskResult.objects.get(task_id=answer["id"]).status == states.SUCCESS


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"task": "add"},
        {"task": "add", "args": 5},
        {"task": "add", "args": [1]},
        {"task": "add", "args": [1, "2"]},
        {"task": "add", "args": [1, True]},
        {"task": "multiply_two_numbers", "args": [[1] * 5, 10**12]},
        {"task": "multiply_two_numbers", "args": [1, 10**13]},
        {"task": "sum_list_numbers", "args": [1, 2]},
        {"task": "sum_list_numbers", "args": [[1] * 1001]},
        {"task": "shop.tasks.build_report", "args": [1, 2]},
    ],
    ids=str,
)
def test_only_harmless_tasks_are_started_for_strangers(client: Client, body: dict) -> None:
    status, answer = start(client, **body)
    assert status == 400
    assert "sum_list_numbers" in answer["error"]


def test_a_task_without_a_broker_is_refused_as_unavailable(
    client: Client, no_broker: Callable[[], AbstractContextManager]
) -> None:
    with no_broker():
        status, _ = start(client, task="add", args=[1, 2])
    assert status == 503


def test_an_unknown_task_is_pending(db: None, client: Client) -> None:
    task = client.get(f"/tasks/{uuid4()}/").json()
    assert (task["state"], task["result"], task["release"]) == ("PENDING", None, None)


@committing
def test_a_failed_task_shows_its_error(client: Client, worker: None) -> None:
    result = tasks.make_label.delay(12345678)
    wait_until(lambda: result.state == states.FAILURE)
    task = client.get(f"/tasks/{result.id}/").json()
    assert (task["state"], task["result"]) == ("FAILURE", None)
    assert "does not exist" in task["error"]


def test_each_kind_of_work_has_its_queue() -> None:
    def queue(task: object) -> str:
        return app.amqp.router.route({}, task.name)["queue"].name

    assert {queue(task) for task in (tasks.send_invoice, tasks.notify_warehouse, tasks.send_welcome_email)} == {"io"}
    assert queue(tasks.build_report) == "heavy"
    assert {queue(task) for task in (tasks.add, tasks.charge, tasks.make_label, tasks.heartbeat)} == {"default"}


# --- Welcome email ---------------------------------------------------------------------------------------------------


@committing
def test_a_new_customer_is_welcomed(client: Client, worker: None, sent_mail: Callable[[str], list[Message]]) -> None:
    form = {"username": "ada", "email": "ada@example.org", "password1": "tall-beans-7", "password2": "tall-beans-7"}
    client.post("/register/", form)
    [welcome] = wait_until(lambda: sent_mail("Welcome to the shop"))
    assert welcome["To"] == "ada@example.org"


def welcome(user_id: int, retries: int) -> str | None:
    """Run the welcome task in this process, as a worker does after that number of retries."""
    task = tasks.send_welcome_email
    task.push_request(id=str(uuid4()), args=[user_id], kwargs={}, retries=retries, called_directly=False)
    try:
        return task.run(user_id)
    finally:
        task.pop_request()


def test_a_welcome_email_is_tried_again_after_60_120_and_240_seconds(
    db: None, broker: object, settings: Settings
) -> None:
    user = User.objects.create_user("ada", "ada@example.org")
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    for retries, seconds in enumerate((60, 120, 240)):
        with pytest.raises(Retry) as retry:
            welcome(user.pk, retries)
        assert retry.value.when == seconds
    with pytest.raises(ConnectionRefusedError):
        welcome(user.pk, 3)


def test_a_user_who_is_gone_is_not_welcomed_later(db: None) -> None:
    assert welcome(12345678, 0) is None


# --- Report ----------------------------------------------------------------------------------------------------------


def report_files() -> set[str]:
    """Return the file names in the folder of reports."""
    return {file.name for file in (Path(django_settings.MEDIA_ROOT) / "reports").glob("*")}


@committing
def test_a_report_shows_its_progress_and_can_be_downloaded(client: Client, worker: None, order: Order) -> None:
    page = client.post("/report/")["Location"]
    report_id = page.rstrip("/").rpartition("/")[2]
    assert f'data-url="/tasks/{report_id}/"' in client.get(page).content.decode()

    task = wait_until(lambda: (now := client.get(f"/tasks/{report_id}/").json())["state"] == "PROGRESS" and now)
    assert task["progress"]["total"] == 30
    assert f"{report_id}.csv" not in report_files()

    wait_until(lambda: client.get(f"/tasks/{report_id}/").json()["result"] == f"/media/reports/{report_id}.csv")
    report = (Path(django_settings.MEDIA_ROOT) / f"reports/{report_id}.csv").read_text()
    rows = list(csv.reader(report.splitlines()))
    assert len(rows) == 31
    assert rows[-1] == [str(timezone.localdate()), "1", "3", "8.70"]


@committing
def test_a_report_that_takes_too_long_leaves_nothing_behind(worker: None) -> None:
    before = report_files()
    result = tasks.build_report.apply_async(kwargs={"pause": 1}, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=60, interval=0.05)
    assert report_files() == before


@committing
def test_a_task_whose_process_is_killed_runs_again(worker: None) -> None:
    result: AsyncResult = tasks.build_report.delay(pause=0.15)

    def process() -> int | None:
        answers = app.control.inspect(timeout=2, destination=["test@localhost"]).active() or {}
        running = answers.get("test@localhost", [])
        return next((task["worker_pid"] for task in running if task["id"] == result.id), None)

    os.kill(wait_until(process), signal.SIGKILL)
    assert result.get(timeout=60, interval=0.05) == f"/media/reports/{result.id}.csv"
    assert f"{result.id}.csv" in report_files()


def test_old_batches_are_deleted(db: None) -> None:
    old, new = FlushedBatch.objects.create(id=uuid4()), FlushedBatch.objects.create(id=uuid4())
    FlushedBatch.objects.filter(pk=old.pk).update(flushed_at=timezone.now() - timedelta(days=8))
    assert services.delete_old_batches() == 1
    assert FlushedBatch.objects.get() == new
