"""The shop's pages and JSON endpoints."""

import json
from typing import Any
from uuid import UUID

from celery import states
from celery.result import AsyncResult
from django.contrib import messages
from django.contrib.auth import login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from kombu.exceptions import OperationalError as BrokerError

from shop import counters, services, tasks
from shop.forms import OrderForm, RegistrationForm
from shop.models import Order, OrderStep, PageView, Product

MAX_NUMBERS = 1000


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number of limited size, so that requests cannot exhaust memory."""
    return type(value) in (int, float) and abs(value) <= 10**12


def are_two_numbers(args: Any) -> bool:
    """Return whether `args` are valid for `add` and `multiply_two_numbers`."""
    return isinstance(args, list) and len(args) == 2 and all(map(is_number, args))


def are_a_list(args: Any) -> bool:
    """Return whether `args` are valid for `sum_list_numbers`."""
    return len(args) == 1 and isinstance(args[0], list) and len(args[0]) <= MAX_NUMBERS and all(map(is_number, args[0]))


# The tasks that every visitor may start over HTTP, and the validation of their arguments.
DEMO_TASKS = {
    "add": (tasks.add, are_two_numbers),
    "multiply_two_numbers": (tasks.mul, are_two_numbers),
    "sum_list_numbers": (tasks.xsum, are_a_list),
}

# --- Shop ------------------------------------------------------------------------------------------------------------


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """All products."""
    counters.bump("home")
    return render(request, "shop/home.html", {"products": Product.objects.all()})


@require_http_methods(["GET", "HEAD", "POST"])
def product(request: HttpRequest, slug: str) -> HttpResponse:
    """One product, and its order form."""
    item = get_object_or_404(Product, slug=slug)
    form = OrderForm(request.POST or None, initial=known_about(request))
    if request.method == "POST" and form.is_valid():
        new_order = form.save(commit=False)
        new_order.product = item
        new_order.customer = request.user if request.user.is_authenticated else None
        return redirect(services.place_order(new_order, tasks.publish_steps))
    counters.bump(item.slug)
    views = PageView.objects.filter(page=item.slug).first()
    return render(request, "shop/product.html", {"product": item, "form": form, "views": views})


def known_about(request: HttpRequest) -> dict[str, str]:
    """Return the initial values of the order form for a signed-in customer."""
    if not request.user.is_authenticated:
        return {}
    return {"name": request.user.get_full_name(), "email": request.user.email}


@never_cache
@require_safe
def order(request: HttpRequest, public_id: UUID) -> HttpResponse:
    """An order and its steps; static/shop/live.js updates them."""
    found = get_object_or_404(Order.objects.select_related("product"), public_id=public_id)
    return render(request, "shop/order.html", {"order": found, "steps": found.steps.all()})


@never_cache
@require_safe
def order_status(request: HttpRequest, public_id: UUID) -> JsonResponse:
    """An order's steps as JSON."""
    steps = list(get_object_or_404(Order, public_id=public_id).steps.all())
    return JsonResponse(
        {
            "finished": all(step.state == OrderStep.State.DONE for step in steps),
            "steps": [
                {
                    "kind": step.kind,
                    "state": step.state,
                    "label": step.get_state_display(),
                    "detail": step.detail,
                    "url": step.url,
                    "task": step.task_id and reverse("task", args=[step.task_id]),
                }
                for step in steps
            ],
        }
    )


@require_http_methods(["GET", "HEAD", "POST"])
def register(request: HttpRequest) -> HttpResponse:
    """Create an account, sign in, and send a welcome email by a task."""
    form = RegistrationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        user = form.save()
        tasks.send_welcome_email.delay_on_commit(user.pk)
        login(request, user)
        messages.success(request, f"Welcome, {user.username}. An email is on its way to {user.email}.")
        return redirect("home")
    return render(request, "registration/register.html", {"form": form})


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """The icon that browsers request for pages without one, such as the admin's."""
    return redirect(static("shop/icon.svg"))


# --- Report ----------------------------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
def report_start(request: HttpRequest) -> HttpResponse:
    """The description of the report, and the button that starts it."""
    if request.method != "POST":
        return render(request, "shop/report_start.html")
    try:
        return redirect("report", task_id=tasks.build_report.delay().id)
    except BrokerError:
        messages.error(request, "The report cannot be started just now. Please try again in a minute.")
        return render(request, "shop/report_start.html", status=503)


@never_cache
@require_safe
def report(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """The progress of a report; static/shop/live.js updates it."""
    return render(request, "shop/report.html", {"task_id": task_id})


# --- Tasks as JSON ---------------------------------------------------------------------------------------------------


@never_cache
@require_safe
def task(request: HttpRequest, task_id: UUID) -> JsonResponse:
    """A task's state, progress, result or error, and the worker and release that ran it.

    An unknown task is PENDING, since the first result is written when a worker starts the task.
    """
    # One read: AsyncResult's properties read once each, and might be inconsistent.
    meta = AsyncResult(str(task_id)).backend.get_task_meta(str(task_id))
    state, value = meta["status"], meta["result"]
    return JsonResponse(
        {
            "id": str(task_id),
            "name": meta.get("task_name"),
            "state": state,
            "progress": value if state == "PROGRESS" else None,
            "result": value if state == states.SUCCESS else None,
            "error": str(value) if state in states.EXCEPTION_STATES else None,
            "worker": meta.get("worker"),
            "release": meta.get("release"),
        }
    )


@csrf_exempt  # It uses no session.
@require_POST
def task_start(request: HttpRequest) -> HttpResponse:
    """Start a demo task: `{"task": "add", "args": [2, 3]}` returns 202 with the task's ID and URL."""
    try:
        body = json.loads(request.body)
        demo, accepts = DEMO_TASKS[body["task"]]
        if not accepts(body["args"]):
            raise ValueError(body["args"])
    except (ValueError, KeyError, TypeError):
        wanted = f"one of {', '.join(DEMO_TASKS)}, with two numbers, or a list of up to {MAX_NUMBERS} to sum, as args"
        return JsonResponse({"error": f"Wanted: task, {wanted}."}, status=400)
    try:
        started = demo.delay(*body["args"])
    except BrokerError:
        return JsonResponse({"error": "The broker is away; try again."}, status=503)
    return JsonResponse({"id": started.id, "url": reverse("task", args=[started.id])}, status=202)
