"""Page views: none lost, none counted twice, even if a flush is interrupted."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from pytest_django import Settings
from redis import Redis

from shop import counters
from shop.models import PageView, Product
from tests.conftest import NOWHERE


def counted() -> dict[str, int]:
    """Return the views in the database."""
    return dict(PageView.objects.values_list("page", "count"))


def test_views_of_pages_are_counted_with_the_next_flush(client: Client, product: Product, cache_redis: Redis) -> None:
    for path in ("/", "/", product.get_absolute_url()):
        client.get(path)
    assert counted() == {}
    assert (counters.flush(), counters.flush()) == (3, 0)
    assert counted() == {"home": 2, "tomato": 1}
    assert cache_redis.keys() == []
    assert "1 time<" in client.get(product.get_absolute_url()).content.decode()


def test_a_flush_that_failed_before_its_commit_is_repeated(db: None, cache_redis: Redis) -> None:
    counters.bump("home")
    counters.start_batch(cache_redis)
    counters.bump("home")
    assert counters.flush() == 2
    assert counted() == {"home": 2}


def test_a_flush_that_failed_after_its_commit_is_not_repeated(db: None, cache_redis: Redis) -> None:
    counters.bump("home")
    counters.start_batch(cache_redis)
    [batch] = cache_redis.smembers(counters.BATCHES)
    counters.add_views(UUID(batch), {"home": 1})
    assert counters.flush() == 0
    assert counted() == {"home": 1}
    assert cache_redis.keys() == []


@pytest.mark.django_db(transaction=True)
def test_views_during_flushes_by_several_workers_are_counted_once(cache_redis: Redis) -> None:
    def bump(page: str) -> None:
        for _ in range(300):
            counters.bump(page)

    def flush() -> None:
        for _ in range(10):
            counters.flush()
        connection.close()

    with ThreadPoolExecutor() as threads:
        jobs = [threads.submit(bump, page) for page in ("one", "two", "one")]
        jobs += [threads.submit(flush) for _ in range(3)]
        for job in jobs:
            job.result()
    counters.flush()
    assert counted() == {"one": 600, "two": 300}


def test_pages_work_without_the_cache(db: None, client: Client, settings: Settings) -> None:
    settings.CACHE_URL = NOWHERE
    assert client.get("/").status_code == 200
