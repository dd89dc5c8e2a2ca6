"""A consumer whose tasks end while it notices that the connection is lost."""

import os
import time
from pathlib import Path

from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        Path(os.environ["TASK_GATE"]).touch()
        deadline = time.monotonic() + 30
        while state.reserved_requests and time.monotonic() < deadline:
            time.sleep(0.01)
