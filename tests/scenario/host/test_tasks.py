"""Tasks that the site sends: orders, reports and plain tasks, to their end and into the database."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

import pytest
from installation import Installation, query
from probes import Answer, Visitor, wait_for
from testinfra.host import Host

# Less than the 120 s after which the application would send an order's tasks again.
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def report(app: Installation) -> str:
    """A report takes some seconds, while the other tests run."""
    return Visitor(app.url, app.certificate).report()


@pytest.mark.parametrize(
    ("task", "arguments", "result"),
    [("add", [2, 3], 5), ("multiply_two_numbers", [6, 7], 42), ("sum_list_numbers", [[1, 2, 3.5]], 6.5)],
)
def test_task_sent_through_the_site_runs(
    host: Host, app: Installation, visitor: Visitor, release: str, task: str, arguments: list, result: float
) -> None:
    accepted = visitor.post_json("/tasks/", {"task": task, "args": arguments})
    assert accepted.status == 202
    done = visitor.finished_task(accepted.json["url"], SECONDS)
    assert (done["result"], done["release"]) == (result, release)
    assert done["worker"] == f"{app.queues['default']}.{release}@{app.hostname}"
    stored = f"SELECT status, result FROM django_celery_results_taskresult WHERE task_id = '{accepted.json['id']}'"
    assert query(host, app, stored) == f"SUCCESS|{result}"


@pytest.mark.parametrize("body", [{"task": "add"}, {"task": "shutdown", "args": []}, {"task": "add", "args": ["a", 1]}])
def test_unknown_task_is_refused(visitor: Visitor, body: dict) -> None:
    assert visitor.post_json("/tasks/", body).status == 400


def test_order_has_all_its_effects(host: Host, app: Installation, visitor: Visitor, release: str) -> None:
    customer = f"{uuid.uuid4().hex}@example.org"
    path = visitor.order("basil", quantity=3, email=customer)
    steps = {step["kind"]: step for step in visitor.finished_order(path, SECONDS)["steps"]}
    assert set(steps) == {"charge", "invoice", "warehouse", "label"}

    queues = {"charge": "default", "invoice": "io", "warehouse": "io", "label": "default"}
    for kind, step in steps.items():
        task = visitor.finished_task(step["task"], SECONDS)
        assert task["worker"] == f"{app.queues[queues[kind]]}.{release}@{app.hostname}"
        assert task["release"] == release

    assert "<svg" in media(visitor, steps["label"]["url"]).body
    paid = f"SELECT count(*), sum(amount) FROM shop_payment WHERE idempotency_key = 'order-{order_id(path)}'"
    assert query(host, app, paid) == "1|7.20"
    # One file each, even if a task ran twice.
    mail = f"grep -lr -F '{order_id(path)}@shop' /srv/{app.name}/shared/mail"
    assert len(host.check_output(mail).splitlines()) == 2
    assert host.check_output(f"grep -r -h '^To: {customer}' /srv/{app.name}/shared/mail") == f"To: {customer}"


def order_id(path: str) -> str:
    return path.strip("/").rpartition("/")[2]


def media(visitor: Visitor, url: str) -> Answer:
    """Return a file that a task made, as nginx serves it."""
    answer = visitor.get(urlsplit(url).path)
    assert answer.status == 200
    return answer


def test_new_customer_gets_a_welcome_email(host: Host, app: Installation, visitor: Visitor) -> None:
    user = f"u{uuid.uuid4().hex[:12]}"
    secret = uuid.uuid4().hex
    fields = {"username": user, "email": f"{user}@example.org", "password1": secret, "password2": secret}
    answer = visitor.post("/register/", fields)
    assert f"Welcome, {user}" in answer.body
    mail = f"grep -lr '^To: {user}@example.org' /srv/{app.name}/shared/mail"
    wait_for(lambda: host.run(mail).succeeded, SECONDS, f"a welcome email to {user}")
    assert query(host, app, f"SELECT is_staff, is_superuser FROM auth_user WHERE username = '{user}'") == "f|f"


def test_report_runs_on_its_own_queue(app: Installation, visitor: Visitor, release: str, report: str) -> None:
    done = visitor.finished_task(report, SECONDS)
    assert done["worker"] == f"{app.queues['heavy']}.{release}@{app.hostname}"
    table = media(visitor, done["result"]).body.splitlines()
    assert table[0] == "day,orders,packets,sales"
    assert len(table) == 1 + 30
