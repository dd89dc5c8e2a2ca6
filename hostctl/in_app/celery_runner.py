"""Run a Celery worker or beat of a release, with the release's own interpreter; see worker.py and beat.py.

worker --app CELERY --release ID --name NAME --run FOLDER --queues A,B --pool POOL --concurrency N
beat   --app CELERY --release ID --schedule FILE [--scheduler CLASS]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first, where names such as `worker` would hide the application's modules. As with `celery`
    # and manage.py the project's folder is first instead; the package hostctl is found last.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(Path.cwd()), *(path for path in sys.path if path != str(here)), str(here.parents[1])]

from hostctl.in_app.beat import run_beat
from hostctl.in_app.worker import run_worker


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a Celery worker or beat of a release.")
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--app", required=True, help="the Celery application, as for `celery --app`")
    common.add_argument("--release", required=True, help="the release's ID")

    worker = commands.add_parser("worker", parents=[common])
    worker.set_defaults(run_service=run_worker)
    worker.add_argument("--name", required=True)
    worker.add_argument("--run", required=True, type=Path, help="RELEASES/ID/run, for the lock file and the summary")
    worker.add_argument("--queues", required=True, help="separated by commas")
    worker.add_argument("--pool", default="prefork")
    worker.add_argument("--concurrency", type=int, default=2)

    beat = commands.add_parser("beat", parents=[common])
    beat.set_defaults(run_service=run_beat)
    beat.add_argument("--schedule", required=True, type=Path, help="beat's schedule file; the lock file is beside it")
    beat.add_argument("--scheduler", default="", help="its class; default: the one that the project means")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    sys.exit(arguments.run_service(arguments))


if __name__ == "__main__":
    main()
