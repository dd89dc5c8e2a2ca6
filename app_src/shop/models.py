"""The shop's models."""

import uuid
from datetime import datetime, timedelta
from decimal import Decimal

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.urls import reverse
from django.utils import timezone


class Product(models.Model):
    """A packet of seeds."""

    name = models.CharField(max_length=100)
    slug = models.SlugField(unique=True)
    variety = models.CharField(max_length=100)
    description = models.TextField()
    sowing = models.CharField(max_length=100, help_text="When to sow, as one says it: March to May")
    price = models.DecimalField(max_digits=7, decimal_places=2)
    picture = models.CharField(max_length=100, help_text="A static file, such as shop/products/tomato.svg")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name} ‘{self.variety}’"

    def get_absolute_url(self) -> str:
        return reverse("product", args=[self.slug])


class Order(models.Model):
    """One customer's order of one product; its URL has the `public_id`, so that orders cannot be enumerated."""

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    customer = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    name = models.CharField("your name", max_length=100)
    email = models.EmailField("email address")
    address = models.TextField("delivery address", max_length=500)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveSmallIntegerField(
        "packets", default=1, validators=[MinValueValidator(1), MaxValueValidator(100)]
    )
    unit_price = models.DecimalField(max_digits=7, decimal_places=2)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Order {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("order", args=[self.public_id])

    @property
    def number(self) -> str:
        """The number for people: on the invoice, the label and the telephone."""
        return f"{self.pk:05d}"

    @property
    def total(self) -> Decimal:
        """The price of the whole order."""
        return self.unit_price * self.quantity


def first_resend() -> datetime:
    """Return when the reconcile task may send a new step's task again."""
    return timezone.now() + timedelta(seconds=settings.ORDER_RESEND_AFTER)


class OrderStep(models.Model):
    """One effect that an order must have exactly once: an outbox row, also shown on the order's page.

    The row is saved with the order, so that a task that was never published or was lost is known: the reconcile task
    sends it again from `due_at` on.
    """

    class Kind(models.TextChoices):
        CHARGE = "charge", "Payment"
        INVOICE = "invoice", "Invoice by email"
        WAREHOUSE = "warehouse", "Warehouse"
        LABEL = "label", "Shipping label"

    class State(models.TextChoices):
        PENDING = "pending", "Waiting"
        RUNNING = "running", "In progress"
        DONE = "done", "Done"
        FAILED = "failed", "Will be tried again"

    order = models.ForeignKey(Order, related_name="steps", on_delete=models.CASCADE)
    kind = models.CharField(max_length=20, choices=Kind)
    state = models.CharField(max_length=20, choices=State, default=State.PENDING)
    detail = models.CharField(max_length=200, blank=True, help_text="What came of it, for the customer")
    url = models.CharField(max_length=200, blank=True, help_text="Where the result can be seen")
    task_id = models.UUIDField(null=True, blank=True, help_text="The task that last took the step")
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(default=first_resend, help_text="Sent again from then on, unless done")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["order", "kind"], name="one_step_of_a_kind_per_order")]
        indexes = [
            # The reconcile task reads open steps only, of which there are few.
            models.Index(fields=["due_at"], condition=~models.Q(state="done"), name="open_steps_by_due_at"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of order {self.order_id:05d}: {self.get_state_display()}"


class Payment(models.Model):
    """A payment, as a provider stores it: one row per idempotency key, however often it is requested."""

    order = models.ForeignKey(Order, on_delete=models.PROTECT)
    idempotency_key = models.CharField(max_length=100, unique=True)
    amount = models.DecimalField(max_digits=9, decimal_places=2)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.amount} for order {self.order_id:05d}"


class PageView(models.Model):
    """Number of views of a page, up to the last flush of the counters."""

    page = models.CharField(max_length=200, unique=True)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["-count"]

    def __str__(self) -> str:
        return f"{self.page}: {self.count}"


class FlushedBatch(models.Model):
    """A batch of page views that was added; its key keeps it from being added twice."""

    id = models.UUIDField(primary_key=True)
    flushed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return str(self.pk)


class Heartbeat(models.Model):
    """When a worker of a queue last ran a task sent by beat, and of which release."""

    name = models.CharField(max_length=100, unique=True, help_text="The queue")
    at = models.DateTimeField()
    release = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.name}: {self.at:%Y-%m-%d %H:%M:%S} by {self.release}"
