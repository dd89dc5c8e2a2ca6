"""Run Flower as `celery flower` does, with its options, but without Celery's command line, which costs megabytes."""

from __future__ import annotations

import sys

from celery import Celery
from flower import command
from flower.app import Flower


def main() -> None:
    command.apply_env_options()
    command.apply_options(sys.argv[0], sys.argv[1:])
    command.extract_settings()
    command.setup_logging()
    # Celery takes its broker from the environment, CELERY_BROKER_URL.
    flower = Flower(capp=Celery(), options=command.options, **command.settings)
    port = flower.start_http_server()
    print(f"Flower listens on {command.options.address}:{port}.", flush=True)
    flower.start()


if __name__ == "__main__":
    main()
