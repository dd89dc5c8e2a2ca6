"""Page views, counted in the cache's Redis and flushed to the database.

Views of a page are one HINCRBY. A flush first renames the hash to a batch of its own, so that later views start a new
one, then adds the batch and its id to the database in one transaction, then deletes it. Wherever that stops, the next
flush finds the batch in the set of batches and can tell by the id whether it was added: no view is lost, none counts
twice.
The cache keeps nothing on disk, so a restart of it loses the views since the last flush.
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
    """The name of a batch's hash in Redis."""
    return f"{CURRENT}:{batch}"


def bump(page: str) -> None:
    """Count one view of the page. A page is not worth an error, so without Redis the view goes uncounted."""
    try:
        client(settings.CACHE_URL).hincrby(CURRENT, page, 1)
    except RedisError as error:
        logger.warning("View of %s not counted: %s", page, error)


def flush() -> int:
    """Add all counted views to the database and return how many there were.

    Raises redis.RedisError and django.db.Error; nothing is lost then, and the next flush goes on.
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
        # Another flush was quicker: the batch stays empty and is dropped with the others.
        logger.info("Nothing left for batch %s", batch)


def flush_batch(redis: Redis, batch: str) -> int:
    """Add one batch, unless that has been done, and return the number of views added."""
    views = {page: int(count) for page, count in redis.hgetall(batch_key(batch)).items()}
    added = add_views(UUID(batch), views)
    redis.delete(batch_key(batch))
    redis.srem(BATCHES, batch)
    return added


@transaction.atomic
def add_views(batch: UUID, views: dict[str, int]) -> int:
    """Add the views to the database's, once for this batch's id, and return how many were added."""
    _, is_new = FlushedBatch.objects.get_or_create(id=batch)
    if not is_new:
        return 0
    # Sorted, so that two flushes lock rows in the same order.
    for page, count in sorted(views.items()):
        PageView.objects.get_or_create(page=page)
        PageView.objects.filter(page=page).update(count=F("count") + count)
    return sum(views.values())
