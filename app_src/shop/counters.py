"""Page views, counted in the cache's Redis and flushed to the database.

A view is one HINCRBY. A flush first renames the hash to a batch, so that later views start a new hash, then adds the
batch and its ID to the database in one transaction, then deletes the batch. If a flush is interrupted, the next one
finds the batch in the set of batches, and the ID tells whether it was added: no view is lost, none is counted twice.
The cache stores nothing on disk, so its restart loses the views since the last flush.
"""

import logging
from uuid import UUID, uuid4

from django.conf import settings
from django.db import transaction
from django.db.models import F
from redis import Redis, RedisError, ResponseError

from shop.models import FlushedBatch, PageView
from shop.redis import client

logger = logging.getLogger(__name__)

CURRENT = "shop:page-views"
BATCHES = "shop:page-views:batches"


def batch_key(batch: str) -> str:
    """Return the Redis key of a batch."""
    return f"{CURRENT}:{batch}"


def bump(page: str) -> None:
    """Count one view of the page. Without Redis the view is not counted, and the page is shown all the same."""
    try:
        client(settings.CACHE_URL).hincrby(CURRENT, page, 1)
    except RedisError as error:
        logger.warning("View of %s not counted: %s", page, error)


def flush() -> int:
    """Add all counted views to the database and return how many there were.

    Raises redis.RedisError and django.db.Error; nothing is lost then, and the next flush continues.
    """
    redis = client(settings.CACHE_URL)
    start_batch(redis)
    return sum(flush_batch(redis, batch) for batch in redis.smembers(BATCHES))


def start_batch(redis: Redis) -> None:
    """Make a batch of the views counted so far, unless there are none."""
    if not redis.exists(CURRENT):
        return
    batch = str(uuid4())
    try:
        with redis.pipeline(transaction=True) as pipe:
            pipe.sadd(BATCHES, batch).renamenx(CURRENT, batch_key(batch)).execute()
    except ResponseError:
        # Another flush was faster: this batch is empty, and is deleted like the others.
        logger.info("Nothing left for batch %s", batch)


def flush_batch(redis: Redis, batch: str) -> int:
    """Add one batch, unless it was added before, and return the number of views added."""
    views = {page: int(count) for page, count in redis.hgetall(batch_key(batch)).items()}
    added = add_views(UUID(batch), views)
    redis.delete(batch_key(batch))
    redis.srem(BATCHES, batch)
    return added


@transaction.atomic
def add_views(batch: UUID, views: dict[str, int]) -> int:
    """Add the views to the database, once per batch ID, and return how many were added."""
    _, is_new = FlushedBatch.objects.get_or_create(id=batch)
    if not is_new:
        return 0
    # Sorted, so that two flushes lock rows in the same order.
    for page, count in sorted(views.items()):
        PageView.objects.get_or_create(page=page)
        PageView.objects.filter(page=page).update(count=F("count") + count)
    return sum(views.values())
