"""The shop's tasks: each calls one service, and defines only how it is sent, retried and shown."""

import logging
from smtplib import SMTPException

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from django.contrib.auth.models import User
from kombu.exceptions import OperationalError as BrokerError

from core.celery import Task
from shop import counters, reports, services
from shop.models import OrderStep

logger: logging.Logger = get_task_logger(__name__)

# --- Arithmetic, for demonstration -----------------------------------------------------------------------------------


@shared_task
def add(x: float, y: float) -> float:
    """Return the sum of two numbers."""
    return x + y


@shared_task(name="multiply_two_numbers")
def mul(x: float, y: float) -> float:
    """Return the product of two numbers."""
    return x * y


@shared_task(name="sum_list_numbers")
def xsum(numbers: list[float]) -> float:
    """Return the sum of a list of numbers."""
    return sum(numbers)


# --- The steps of an order -------------------------------------------------------------------------------------------


class StepTask(Task):
    """A task that performs one kind of step, and records its retries and failures in the step's row."""

    autoretry_for = (*Task.autoretry_for, OSError)
    kind: OrderStep.Kind

    def on_retry(self, exc: Exception, task_id: str, args: tuple, kwargs: dict, einfo: object) -> None:
        services.set_back_step(args[0], self.kind, OrderStep.State.PENDING)

    def on_failure(self, exc: Exception, task_id: str, args: tuple, kwargs: dict, einfo: object) -> None:
        services.set_back_step(args[0], self.kind, OrderStep.State.FAILED)


@shared_task(bind=True, base=StepTask, kind=OrderStep.Kind.CHARGE)
def charge(self: StepTask, order_id: int) -> str:
    """Charge the customer of an order, once."""
    return services.perform_step(order_id, self.kind, self.request.id, services.charge)


@shared_task(bind=True, base=StepTask, kind=OrderStep.Kind.INVOICE)
def send_invoice(self: StepTask, order_id: int) -> str:
    """Email an order's invoice, once."""
    return services.perform_step(order_id, self.kind, self.request.id, services.send_invoice)


@shared_task(bind=True, base=StepTask, kind=OrderStep.Kind.WAREHOUSE)
def notify_warehouse(self: StepTask, order_id: int) -> str:
    """Send an order to the warehouse, once."""
    return services.perform_step(order_id, self.kind, self.request.id, services.notify_warehouse)


@shared_task(bind=True, base=StepTask, kind=OrderStep.Kind.LABEL)
def make_label(self: StepTask, order_id: int) -> str:
    """Write an order's shipping label."""
    return services.perform_step(order_id, self.kind, self.request.id, services.make_label)


STEP_TASKS: dict[str, StepTask] = {task.kind: task for task in (charge, send_invoice, notify_warehouse, make_label)}
# The customer waits, and the reconcile task sends what failed: two quick retries are enough.
STEP_RETRY_POLICY = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2}


def publish_steps(steps: list[OrderStep]) -> None:
    """Send the steps' tasks. Without a broker, stop at the first one: `reconcile_orders` sends them later."""
    for step in steps:
        try:
            STEP_TASKS[step.kind].apply_async((step.order_id,), retry_policy=STEP_RETRY_POLICY)
        except BrokerError as error:
            logger.warning("Not sent, and due again at %s: %s: %s", step.due_at, step, error)
            return


@shared_task(ignore_result=True)
def reconcile_orders() -> int:
    """Send the tasks of overdue steps again: never published, lost, or failed."""
    steps = services.take_due_steps()
    publish_steps(steps)
    return len(steps)


# --- Customers and reports -------------------------------------------------------------------------------------------


@shared_task(bind=True, max_retries=3)
def send_welcome_email(self: Task, user_id: int) -> str | None:
    """Send the welcome email; if the mail server fails, retry after 60, 120 and 240 seconds."""
    try:
        return services.send_welcome_email(user_id)
    except User.DoesNotExist:
        # A retry would not help.
        logger.info("User %s is gone: no welcome email", user_id)
        return None
    except (OSError, SMTPException) as error:
        raise self.retry(exc=error, countdown=60 * 2**self.request.retries) from error


@shared_task(bind=True)
def build_report(self: Task, pause: float = 0.2) -> str:
    """Build the sales report and return its URL; until then the state is PROGRESS with `current` and `total`."""

    def show(current: int, total: int) -> None:
        self.update_state(state="PROGRESS", meta={"current": current, "total": total})

    try:
        return reports.build_report(self.request.id, pause, show)
    except SoftTimeLimitExceeded:
        logger.warning("Report %s took too long; its partial file is removed", self.request.id)
        raise


# --- Periodic --------------------------------------------------------------------------------------------------------


@shared_task(ignore_result=True)
def flush_page_views() -> int:
    """Move the page views counted in Redis to the database."""
    return counters.flush()


@shared_task(ignore_result=True)
def heartbeat(name: str = "default") -> None:
    """Prove that beat, the broker, a worker of the queue `name` and the database work together."""
    services.record_heartbeat(name)


@shared_task
def clean_up() -> int:
    """Delete old rows, nightly."""
    return services.delete_old_batches()
