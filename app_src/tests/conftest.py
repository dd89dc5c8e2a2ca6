"""Fixtures of all tests."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email import message_from_bytes
from email.message import Message
from email.policy import default as default_policy
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from kombu import Connection, pools
from redis import Redis

from core.celery import app
from shop.models import Order, OrderStep, Product
from shop.redis import client as redis_client
from tests.processes import celery, wait_until

# No server listens on this port.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="session", autouse=True)
def test_folder() -> Iterator[Path]:
    """The folder for files of the tests, removed at the end."""
    yield settings.TEST_FOLDER
    shutil.rmtree(settings.TEST_FOLDER)


@pytest.fixture(scope="session")
def broker() -> Redis:
    """The tests' database of the broker's Redis, empty at the start."""
    redis = redis_client(settings.CELERY_BROKER_URL)
    redis.flushdb()
    return redis


@pytest.fixture
def cache_redis() -> Redis:
    """The tests' database of the cache's Redis, empty."""
    redis = redis_client(settings.CACHE_URL)
    redis.flushdb()
    return redis


@pytest.fixture(scope="session")
def worker(broker: Redis, django_db_setup: None) -> Iterator[None]:
    """A real worker for all queues. Tests that use it must commit: `django_db(transaction=True)`."""
    with celery("worker", "--queues", "default,heavy,io", "--concurrency", "2", "--hostname", "test@localhost"):
        wait_until(lambda: app.control.ping(timeout=0.5))
        yield


@pytest.fixture
def no_broker() -> Callable[[], AbstractContextManager]:
    """A context in which this process publishes to a Redis that does not exist."""

    @contextmanager
    def broker_away() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app.amqp, "_producer_pool", pools.producers[Connection(NOWHERE)])
            yield

    return broker_away


@pytest.fixture
def client() -> Client:
    """A browser behind nginx, which terminates TLS."""
    return Client(headers={"X-Forwarded-Proto": "https"})


@pytest.fixture
def product(db: None) -> Product:
    """A product to order, created if a test that commits has emptied the tables."""
    return Product.objects.get_or_create(
        slug="tomato",
        defaults={"name": "Tomato", "variety": "Marmande", "price": "2.90", "picture": "shop/products/tomato.svg"},
    )[0]


@pytest.fixture
def customer() -> dict[str, object]:
    """The order form of a customer."""
    return {"quantity": 3, "name": "Ada <Green> & Sons", "email": "ada@example.org", "address": "1 Garden Lane\nKew"}


@pytest.fixture
def order(product: Product, customer: dict[str, object]) -> Order:
    """A saved order with its steps, whose tasks were not sent."""
    order = Order.objects.create(product=product, unit_price=product.price, **customer)
    OrderStep.objects.bulk_create(OrderStep(order=order, kind=kind) for kind in OrderStep.Kind)
    order.refresh_from_db()
    return order


@pytest.fixture
def sent_mail(test_folder: Path) -> Callable[[str], list[Message]]:
    """The emails that the worker has sent, by subject."""
    shutil.rmtree(settings.EMAIL_FILE_PATH, ignore_errors=True)

    def by_subject(subject: str) -> list[Message]:
        files = Path(settings.EMAIL_FILE_PATH).glob("*.log")
        # Two processes that send in the same second may write to one file; a line separates their messages.
        parts = [part for file in files for part in file.read_bytes().split(b"\n" + b"-" * 79 + b"\n") if part.strip()]
        mails = [message_from_bytes(part, policy=default_policy) for part in parts]
        return [mail for mail in mails if mail["Subject"] == subject]

    return by_subject
