"""Start processes, and wait for conditions."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from decouple import config
from django.conf import settings
from django.db import connection

PROJECT = Path(__file__).resolve().parent.parent
Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], seconds: float = 60) -> Result:
    """Return the condition's first true value; raises AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"Not within {seconds} s: {condition}, last {value!r}"
        time.sleep(0.05)
    return value


@contextmanager
def celery(*arguments: str) -> Iterator[subprocess.Popen]:
    """`celery --app core ARGUMENTS` on the tests' database and Redis; its log is shown when the test fails."""
    database = urlsplit(config("DATABASE_URL"))._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": database,
        "TEST_FOLDER": str(settings.TEST_FOLDER),
    }
    command = [sys.executable, "-m", "celery", "--app", "core", *arguments, "--loglevel", "INFO"]
    log = Path(settings.TEST_FOLDER) / f"{arguments[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=20)
            print(log.read_text())
