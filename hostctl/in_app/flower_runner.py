"""Run Flower as `celery flower` does, with its options, but without Celery's command line, which costs megabytes."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    # Python puts this folder first, where module names such as `worker` would hide installed ones.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
    from celery import Celery
    from flower import command
    from flower.app import Flower

    command.apply_env_options()
    command.apply_options(sys.argv[0], sys.argv[1:])
    command.extract_settings()
    command.setup_logging()
    # Celery takes the broker from the environment variable CELERY_BROKER_URL.
    flower = Flower(capp=Celery(), options=command.options, **command.settings)
    port = flower.start_http_server()
    print(f"Flower listens on {command.options.address}:{port}.", flush=True)
    flower.start()


if __name__ == "__main__":
    main()
