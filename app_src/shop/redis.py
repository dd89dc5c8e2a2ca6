"""Connections to Redis outside of Celery and Django's cache."""

from functools import cache

from redis import ConnectionError, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


@cache
def client(url: str) -> Redis:
    """Return this process's client for `url`, with a timeout of one second, since a request waits for it.

    Commands raise redis.RedisError.
    """
    # One immediate retry, for a pooled connection that Redis has closed. A timeout is not retried.
    retry = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))
    return Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=retry, decode_responses=True)
