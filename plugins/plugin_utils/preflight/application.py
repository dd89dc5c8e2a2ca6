"""The application: its name, source, modules, environment and mail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .commands import RELOAD, RELOAD_REFUSED
from .problems import Installation, Problem, quoted

# Users of Debian, PostgreSQL and Redis: the application has a user of its name in each of them.
RESERVED = {
    *("root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "backup", "list"),
    *("irc", "sshd", "messagebus", "polkitd", "postgres", "template0", "template1", "redis", "nginx"),
    "nobody",  # language-lint: allow nobody
    *("ssh", "cron", "dbus", "flower", "operator", "default"),
}

NAME = "[a-z][a-z0-9_]{0,23}"
PATH = r"[\w./-]*"
VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
# Lock files of other tools, and the command that writes a requirements file from each.
# (hostctl/deploy/environment.py has the same; a test compares them.)
EXPORTS = {
    "poetry.lock": "poetry self add poetry-plugin-export && poetry export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements --hash > requirements.txt",
    "pdm.lock": "pdm export --prod --output requirements.txt",
}
DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
SPECIFIER = r"(==|[<>!~]=|[<>])\d+(\.\d+)*(\.\*)?"
PYTHON = rf"python3|\d+\.\d+(\.\d+)?|{SPECIFIER}(, ?{SPECIFIER})*"


def matches(name: str, pattern: str, wanted: str) -> Callable[[Installation], Iterator[Problem]]:
    """Return a check that the whole of a text matches a pattern."""

    def check(here: Installation) -> Iterator[Problem]:
        value = here.values[name]
        if not re.fullmatch(pattern, value):
            yield Problem(name, f"must be {wanted}; it is {quoted(value)}.")

    return check


def check_name(here: Installation) -> Iterator[Problem]:
    name = here.values["app_name"]
    if not re.fullmatch(NAME, name):
        yield Problem("app_name", f"must match ^{NAME}$; it is {quoted(name)}.")
    elif name in RESERVED or name.startswith("pg_"):
        yield Problem("app_name", f"must not be {quoted(name)}: the system or a service has a user of that name.")


def is_git_url(source: str) -> bool:
    """Return whether a source is a git URL, as the action release_archive decides it."""
    return "://" in source or (":" in source and "@" in source.partition(":")[0]) or source.endswith(".git")


def is_inside(path: str) -> bool:
    """Return whether a path stays inside the folder it starts from, and may be used in a unit file."""
    return re.fullmatch(PATH, path, re.ASCII) is not None and not path.startswith("/") and ".." not in path.split("/")


def check_source(here: Installation) -> Iterator[Problem]:
    source, git_ref, directory, requirements = (
        here.values[name] for name in ("app_source", "app_git_ref", "app_project_dir", "app_requirements")
    )
    for name, path in {"app_project_dir": directory, "app_requirements": requirements}.items():
        if not is_inside(path):
            yield Problem(name, f"must be a relative path inside the project, matching ^{PATH}$; it is {quoted(path)}.")
    if not requirements:
        yield Problem("app_requirements", "must name the project's requirements file or its uv.lock; it is empty.")
    if is_git_url(source):
        return
    folder = here.project / source
    if git_ref:
        yield Problem(
            "app_git_ref",
            f"is {quoted(git_ref)}, but app_source is a folder, which has no branches or tags. Set app_git_ref to "
            '"", or app_source to a git URL.',
        )
    if not source:
        yield Problem("app_source", "must be the project's folder or git URL; it is empty.")
    elif not folder.is_dir():
        yield Problem("app_source", f"names the folder {folder}, which does not exist.")
    elif not (folder / directory).is_dir():
        yield Problem("app_project_dir", f"must be a folder of the project; there is no {folder / directory}.")
    elif not (folder / directory / "manage.py").is_file():
        # A project without any has its settings module checked by the inspection.
        places = [folder / "manage.py", *folder.glob("*/manage.py")]
        found = sorted(str(path.parent.relative_to(folder)) for path in places if path.is_file())
        if found:
            where = " and ".join(found).replace(".", "the top folder", 1 if found[0] == "." else 0)
            yield Problem(
                "app_project_dir", f"must be the folder of manage.py; {folder / directory} has none. {where} has one."
            )
    if folder.is_dir() and requirements:
        yield from requirements_problems(folder / requirements, requirements)


def requirements_problems(file: Path, name: str) -> Iterator[Problem]:
    """Yield what is wrong with the requirements file, with the command that makes one from a lock file."""
    lock = file.name if file.name in EXPORTS else next((name for name in EXPORTS if file.with_name(name).is_file()), "")
    if lock and (lock == file.name or not file.is_file()):
        yield Problem(
            "app_requirements",
            f"names {name}; Seedbed installs from a requirements file or uv.lock, and {file.parent} has {lock}. Type "
            f"there: {EXPORTS[lock]}; commit the file, and set app_requirements to it.",
        )
    elif not file.is_file():
        yield Problem("app_requirements", f"names {name}, which does not exist in {file.parent}.")


def check_time_zone(here: Installation) -> Iterator[Problem]:
    zone = here.values["app_time_zone"]
    # Where this machine has no tz database, the host decides.
    if not time_zone_exists(zone) and time_zone_exists("UTC"):
        yield Problem("app_time_zone", f"must be a time zone such as Europe/Berlin or UTC; there is no {quoted(zone)}.")


def time_zone_exists(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def check_environment(name: str) -> Callable[[Installation], Iterator[Problem]]:
    def check(here: Installation) -> Iterator[Problem]:
        for key, value in here.values[name].items():
            if not re.fullmatch(VARIABLE, str(key)):
                yield Problem(
                    name, f"is not a valid name: environment variables must match ^{VARIABLE}$.", part=f".{key}"
                )
            elif isinstance(value, bool):
                yield Problem(name, f'must be in quotes: without them it becomes "{value}".', part=f".{key}")
            elif not isinstance(value, str | int | float):
                yield Problem(name, 'must be text or a number. (Empty text is "".)', part=f".{key}")
            elif character := unwritable_character(str(value)):
                yield Problem(name, f"contains {character}, which an environment cannot have.", part=f".{key}")

    return check


def check_gunicorn(here: Installation) -> Iterator[Problem]:
    """gunicorn reads this variable: what contradicts a release that never changes."""
    if RELOAD.search(str(here.values["app_environment"].get("GUNICORN_CMD_ARGS", ""))):
        yield Problem("app_environment", RELOAD_REFUSED, part=".GUNICORN_CMD_ARGS")


def one_line(text: str) -> bool:
    return not re.search(r"[\n\r\0]", text)


def unwritable_character(text: str) -> str:
    """Return a control character that systemd rejects in a variable, as Python writes it; "" if there is none."""
    found = re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    return ascii(found[0]) + (" (a file with line ends of Windows)" if found[0] == "\r" else "") if found else ""


def check_mail(here: Installation) -> Iterator[Problem]:
    if here.values["app_email_url"] and not re.match(r"[a-z+]+:", here.values["app_email_url"]):
        yield Problem("app_email_url", "must be empty or a URL such as smtp://user:password@host:587/?tls=true.")
    addresses = ["app_email_from"] + (["app_admin_email"] if here.values["app_admin_user"] else [])
    for name in addresses:
        if not re.fullmatch(r"[^\n\r]*[^\s@]+@[^\s@]+", here.values[name]):
            yield Problem(name, f"must be an email address; it is {quoted(here.values[name])}.")


def check_health_names_release(here: Installation) -> Iterator[Problem]:
    value = here.values["app_health_names_release"]
    if value not in (True, False, "auto") or isinstance(value, int) != isinstance(value, bool):
        yield Problem("app_health_names_release", f"must be true, false or auto; it is {quoted(value)}.")


def check_numbers(here: Installation) -> Iterator[Problem]:
    if not 1 <= int(here.values["app_https_port"]) <= 65535:
        yield Problem("app_https_port", f"must be a port, from 1 to 65535; it is {here.values['app_https_port']}.")
    least = {
        "app_hsts_seconds": (0, "seconds"),
        "app_health_check_timeout": (1, "seconds"),
        "app_bake_seconds": (0, "seconds"),
        "app_migration_block_seconds": (0, "seconds"),
        "app_keep_releases": (1, "the current release"),
    }
    for name, (minimum, unit) in least.items():
        if int(here.values[name]) < minimum:
            yield Problem(name, f"must be at least {minimum} ({unit}); it is {here.values[name]}.")
