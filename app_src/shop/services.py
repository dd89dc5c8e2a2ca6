"""The business logic. Views and tasks are thin and call these functions."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import F
from django.template.loader import render_to_string
from django.utils import timezone

from shop.models import FlushedBatch, Heartbeat, Order, OrderStep, Payment

logger = logging.getLogger(__name__)

KEEP_BATCHES = timedelta(days=7)
# Steps per run of the reconcile task, so that the backlog of a long outage is processed in batches.
RESEND_AT_ONCE = 500


class Outcome(NamedTuple):
    """The result of a step, for the customer: a sentence, and a URL."""

    detail: str
    url: str = ""


# --- Orders ----------------------------------------------------------------------------------------------------------


def place_order(order: Order, publish: Callable[[list[OrderStep]], None]) -> Order:
    """Save the order with its steps and, after the commit, have `publish` send their tasks.

    The order is valid even if publishing fails: see `take_due_steps`.
    """
    with transaction.atomic():
        order.unit_price = order.product.price
        order.save()
        steps = OrderStep.objects.bulk_create(OrderStep(order=order, kind=kind) for kind in OrderStep.Kind)
        transaction.on_commit(lambda: publish(steps), robust=True)
    return order


def take_due_steps() -> list[OrderStep]:
    """Return the overdue steps, whose task is to be sent again, and postpone them.

    They are postponed so that the next run does not send them too. Steps that a worker is performing are locked, and
    skipped. Sending a task too often does no harm: see `perform_step`.
    """
    now = timezone.now()
    with transaction.atomic():
        steps = list(
            OrderStep.objects.select_for_update(skip_locked=True)
            .exclude(state=OrderStep.State.DONE)
            .filter(due_at__lte=now)
            .order_by("due_at")[:RESEND_AT_ONCE]
        )
        later = now + timedelta(seconds=settings.ORDER_RESEND_AFTER)
        OrderStep.objects.filter(pk__in=[step.pk for step in steps]).update(due_at=later)
    return steps


def perform_step(order_id: int, kind: str, task_id: str, effect: Callable[[Order], Outcome]) -> str:
    """Apply `effect` to the order once, however often and by however many workers this is called.

    The step's row is locked during the effect and marked as done in the same transaction. Only a crash between the
    effect and the commit repeats the effect; each effect is idempotent in its own way. Returns the step's detail;
    raises OrderStep.DoesNotExist, and the errors of the effect.
    """
    open_step = OrderStep.objects.filter(order_id=order_id, kind=kind).exclude(state=OrderStep.State.DONE)
    # Committed at once, so that the order's page shows it.
    open_step.update(
        state=OrderStep.State.RUNNING, task_id=task_id, attempts=F("attempts") + 1, updated_at=timezone.now()
    )
    with transaction.atomic():
        step = OrderStep.objects.select_for_update().get(order_id=order_id, kind=kind)
        if step.state != OrderStep.State.DONE:
            step.detail, step.url = effect(step.order)
            step.state = OrderStep.State.DONE
            step.save()
    return step.detail


def set_back_step(order_id: int, kind: str, state: OrderStep.State) -> None:
    """Show that the step's task waits for its next attempt (PENDING) or has failed (FAILED)."""
    OrderStep.objects.filter(order_id=order_id, kind=kind).exclude(state=OrderStep.State.DONE).update(
        state=state, updated_at=timezone.now()
    )


# --- The effects of an order -----------------------------------------------------------------------------------------


def charge(order: Order) -> Outcome:
    """Charge the customer. The provider stores one payment per idempotency key, so a repeated request charges nothing.

    The provider is a table here; a real one reads the key from a header (Stripe: Idempotency-Key).
    """
    payment, _ = Payment.objects.get_or_create(
        idempotency_key=f"order-{order.public_id}", defaults={"order": order, "amount": order.total}
    )
    return Outcome(f"€{payment.amount} received")


def send_invoice(order: Order) -> Outcome:
    """Email the invoice to the customer."""
    send_order_email(order, "invoice", f"Your invoice, order {order.number}", order.email)
    return Outcome(f"Sent to {order.email}")


def notify_warehouse(order: Order) -> Outcome:
    """Email the packing list to the warehouse."""
    send_order_email(order, "warehouse", f"To pack: order {order.number}", settings.WAREHOUSE_EMAIL)
    return Outcome("Told what to pack")


def send_order_email(order: Order, template: str, subject: str, recipient: str) -> None:
    """Send the email `shop/email/TEMPLATE.txt` about an order. Raises OSError (which SMTPException is)."""
    EmailMessage(
        subject=subject,
        body=render_to_string(f"shop/email/{template}.txt", {"order": order}),
        to=[recipient],
        # If a crash has it sent twice, mail programs recognize the duplicate.
        headers={"Message-ID": f"<{template}.{order.public_id}@shop>"},
    ).send()


def make_label(order: Order) -> Outcome:
    """Write the shipping label to a file, the same one each time."""
    svg = render_to_string("shop/label.svg", {"order": order, "lines": order.address.splitlines()[:5]})
    name = default_storage.save(f"labels/{order.public_id}.svg", ContentFile(svg.encode()))
    return Outcome("Ready to print", default_storage.url(name))


# --- Customers -------------------------------------------------------------------------------------------------------


def send_welcome_email(user_id: int) -> str:
    """Welcome a new customer and return the address. Raises User.DoesNotExist, OSError."""
    user = User.objects.get(pk=user_id)
    EmailMessage(
        subject="Welcome to the shop", body=render_to_string("shop/email/welcome.txt", {"user": user}), to=[user.email]
    ).send()
    return user.email


# --- Housekeeping ----------------------------------------------------------------------------------------------------


def record_heartbeat(name: str) -> None:
    """Record that a worker of the queue `name` has run a task, and of which release."""
    Heartbeat.objects.update_or_create(name=name, defaults={"at": timezone.now(), "release": settings.RELEASE_ID})


def delete_old_batches() -> int:
    """Delete flushed batches that are too old to be repeated, and return how many there were."""
    deleted, _ = FlushedBatch.objects.filter(flushed_at__lt=timezone.now() - KEEP_BATCHES).delete()
    return deleted
