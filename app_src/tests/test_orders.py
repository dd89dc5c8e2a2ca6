"""Orders: saved first, then each effect once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from email.message import Message
from pathlib import Path

import pytest
from celery import group
from django.conf import settings as django_settings
from django.core import mail
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from shop import services, tasks
from shop.models import Order, OrderStep, Payment, Product
from tests.processes import wait_until

State = OrderStep.State


def status(client: Client, order: Order) -> dict:
    """Return the status that the order's page requests."""
    return client.get(f"{order.get_absolute_url()}status/").json()


@pytest.mark.django_db(transaction=True)
def test_placing_an_order_has_all_its_effects(
    client: Client,
    worker: None,
    product: Product,
    customer: dict[str, object],
    sent_mail: Callable[[str], list[Message]],
) -> None:
    response = client.post(product.get_absolute_url(), customer)
    order = Order.objects.get()
    assert response["Location"] == order.get_absolute_url()

    steps = wait_until(lambda: (answer := status(client, order))["finished"] and answer["steps"])
    assert {step["kind"]: step["label"] for step in steps} == dict.fromkeys(OrderStep.Kind, "Done")

    [invoice] = sent_mail(f"Your invoice, order {order.number}")
    assert invoice["To"] == "ada@example.org"
    assert "Ada <Green> & Sons" in invoice.get_content()
    assert "€8.70" in invoice.get_content()
    assert len(sent_mail(f"To pack: order {order.number}")) == 1
    assert Payment.objects.get(order=order).amount == order.total
    [label] = [step for step in steps if step["kind"] == "label"]
    file = Path(django_settings.MEDIA_ROOT) / f"labels/{order.public_id}.svg"
    assert label["url"] == f"/media/labels/{file.name}"
    assert "Ada &lt;Green&gt; &amp; Sons" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644

    task = wait_until(lambda: (answer := client.get(label["task"]).json())["state"] == "SUCCESS" and answer)
    assert (task["name"], task["worker"]) == ("shop.tasks.make_label", "test@localhost")
    assert task["release"] == "release-under-test"


@pytest.mark.django_db(transaction=True)
def test_an_invoice_goes_out_once_however_often_its_task_runs(
    worker: None, order: Order, sent_mail: Callable[[str], list[Message]]
) -> None:
    results = group(tasks.send_invoice.s(order.pk) for _ in range(6))().get(timeout=60, interval=0.05)
    assert results == ["Sent to ada@example.org"] * 6
    assert len(sent_mail(f"Your invoice, order {order.number}")) == 1


def test_charging_again_charges_nothing_more(order: Order) -> None:
    # As after a crash between the payment and the commit of the step: the provider has the key already.
    assert services.charge(order) == services.charge(order)
    assert Payment.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_without_a_broker_the_order_stands_and_is_worked_off_later(
    client: Client,
    worker: None,
    product: Product,
    customer: dict[str, object],
    sent_mail: Callable[[str], list[Message]],
    no_broker: Callable[[], AbstractContextManager],
) -> None:
    with no_broker():
        response = client.post(product.get_absolute_url(), customer)
    order = Order.objects.get()
    assert response["Location"] == order.get_absolute_url()
    assert {step["label"] for step in status(client, order)["steps"]} == {"Waiting"}

    order.steps.update(due_at=timezone.now())
    tasks.reconcile_orders.delay()
    wait_until(lambda: status(client, order)["finished"])
    assert len(sent_mail(f"Your invoice, order {order.number}")) == 1


def test_a_failing_mail_server_leaves_the_step_to_be_tried_again(order: Order, settings: Settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    tasks.send_invoice.apply((order.pk,))
    step = order.steps.get(kind=OrderStep.Kind.INVOICE)
    assert (step.state, step.get_state_display()) == (State.FAILED, "Will be tried again")
    assert step.attempts == tasks.send_invoice.max_retries + 1
    order.steps.update(due_at=timezone.now())
    assert step in services.take_due_steps()


def test_a_done_step_is_not_performed_or_shown_otherwise(order: Order) -> None:
    tasks.send_invoice.apply((order.pk,))
    services.set_back_step(order.pk, OrderStep.Kind.INVOICE, State.FAILED)
    tasks.send_invoice.apply((order.pk,))
    assert len(mail.outbox) == 1
    step = order.steps.get(kind=OrderStep.Kind.INVOICE)
    assert (step.state, step.attempts) == (State.DONE, 1)


def test_steps_are_due_when_they_are_late_and_not_done(order: Order) -> None:
    assert services.take_due_steps() == []
    order.steps.update(due_at=timezone.now())
    order.steps.filter(kind=OrderStep.Kind.LABEL).update(state=State.DONE)
    assert {step.kind for step in services.take_due_steps()} == {"charge", "invoice", "warehouse"}
    assert services.take_due_steps() == []
