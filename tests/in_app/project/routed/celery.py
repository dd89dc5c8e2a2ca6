"""A Celery application that sends tasks in every way that its settings can say."""

import os
import re
from typing import Any

from celery import Celery
from celery.schedules import crontab
from kombu import Exchange, Queue
from kombu.common import Broadcast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample.settings")
MEDIA = Exchange("media", type="topic")


def by_name(name: str, args: Any, kwargs: Any, options: Any, **more: Any) -> Any:
    return {"queue": "callable"} if name == "routed.called" else None


def by_arguments(name: str, args: Any, kwargs: Any, options: Any, **more: Any) -> Any:
    return {"queue": kwargs["region"]} if name == "routed.regional" else None


def nothing() -> None:
    pass


app = Celery("routed", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ.get("BACKEND", "redis://"))
app.conf.task_queues = [
    Queue("main"),
    Queue("video", exchange=MEDIA, routing_key="media.video.#"),
    Queue("image", exchange=MEDIA, routing_key="media.image.*"),
    Queue("bound", exchange=Exchange("direct"), routing_key="key"),
    Broadcast("reload"),
]
app.conf.task_always_eager = "EAGER" in os.environ
app.conf.task_default_queue = os.environ.get("DEFAULT_QUEUE", "main")
app.conf.task_routes = [
    {
        "routed.named": "named",
        "routed.glob_*": {"queue": "globbed"},
        re.compile("routed[.]re.*gex"): {"queue": "regex"},
        "elsewhere.*": {"queue": "elsewhere"},
        "routed.media": {"exchange": "media", "routing_key": "media.video.h264"},
        "routed.broadcast": {"queue": "reload"},
    },
    [("routed.paired", {"queue": "paired"})],
    by_name,
    "routed.celery.by_arguments",
]
app.conf.beat_schedule = {
    "own queue": {"task": "routed.plain", "schedule": 60.0, "options": {"queue": "periodic"}},
    "unknown task": {
        "task": "other.task",
        "schedule": crontab(),
        "options": {"exchange": "direct", "routing_key": "key"},
    },
}
for name in ("named", "glob_one", "regex", "media", "broadcast", "paired", "called", "regional", "plain"):
    app.task(name=f"routed.{name}")(nothing)
app.task(name="routed.attribute", queue="attribute")(nothing)
