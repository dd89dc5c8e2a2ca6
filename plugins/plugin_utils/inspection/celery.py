"""Celery: broker, queues, and beat's scheduler."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from hostctl.in_app.queue_calls import queue_arguments

from .evaluate import Evaluator
from .expressions import Class, Scope
from .known import Environment
from .layout import find_module
from .project import Project
from .report import FILE
from .tree import Tree
from .values import UNKNOWN, Call, Either, FromEnvironment, plain, possibilities, truth, walk

# Celery's names of settings before version 4, without a namespace.
OLD = {
    "task_default_queue": "CELERY_DEFAULT_QUEUE",
    "task_routes": "CELERY_ROUTES",
    "task_queues": "CELERY_QUEUES",
    "beat_schedule": "CELERYBEAT_SCHEDULE",
    "beat_scheduler": "CELERYBEAT_SCHEDULER",
    "broker_url": "BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "timezone": "CELERY_TIMEZONE",
    "broker_transport_options": "BROKER_TRANSPORT_OPTIONS",
    "task_always_eager": "CELERY_ALWAYS_EAGER",
    "redbeat_redis_url": "REDBEAT_REDIS_URL",
}
NEW = {old: new for new, old in OLD.items()}
# As the default of app_workers (group_vars/all/defaults.yml).
WORKER = {"name": "main", "pool": "prefork", "concurrency": 2, "stop_timeout": 360}
DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Packages with schedulers that keep their entries elsewhere.
SCHEDULERS = ("django-celery-beat", "celery-redbeat")
# What a route may have instead of a queue.
OPTIONS = {"exchange", "exchange_type", "routing_key", "priority", "delivery_mode", "expires", "serializer"}
# Places of queues, as findings name them.
DEFAULT_QUEUE, TASK_QUEUES = "the default queue", "task_queues"
# Commands of processes, in files of other tools.
COMMANDS = ("Procfile", "docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml", "supervisord.conf")
# As app_process_queues and app_process_without_queues in group_vars/all/wiring.yml.
WORKER_COMMAND = re.compile(r"\bcelery\b.*\bworker\b")
QUEUES_OPTION = re.compile(r"(?:^|\s)(?:-Q|--queues)[\s=]*[\"']?([\w.:/+,-]+)")
PLAIN_WORKER = re.compile(r"\bcelery\b.*(?<!\s-A)(?<!\s--app)\sworker(?![^\s\"';&|])")
CHOICE_OF_QUEUES = re.compile(r"(?:^|\s)(?:-Q|--queues|-X|--exclude-queues)")
BEAT_COMMAND = re.compile(r"celery[^\n]*\bbeat\b[^\n]*?(?:-S|--scheduler)[\s=,\"']+([\w.:]+)")


class Configuration:
    """Celery's configuration, from Django's settings, a module of its own, and the module of the application."""

    def __init__(self, project: Project) -> None:
        self.project = project
        # Modules of the code import the whole project: only what they import directly is followed.
        environment = Environment(project.variables)
        self.shallow = Evaluator(project.tree, project.layout.importable, environment, deepest=1)
        self.scope = self.shallow.module(project.layout.celery_file) if project.layout.celery_file else None
        text = project.tree.read(project.layout.celery_file)
        match = re.search(r"namespace\s*=\s*[\"'](\w+)[\"']", text)
        self.namespace = match[1] if match else ""
        self.uses_django = bool(re.search(r"config_from_object\(\s*(?:[\"']django\.conf:settings|settings\b)", text))
        self.code = self._code(project.tree)

    def _code(self, tree: Tree) -> dict[str, Any]:
        """Return what the module of the application sets: app.conf.update(...), app.conf.NAME, Celery(broker=...)."""
        found: dict[str, Any] = {}
        if self.scope is None:
            return found
        parsed = tree.parse(self.project.layout.celery_file)
        for node in ast.walk(parsed) if parsed else ():
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name.endswith((".conf.update", ".config_from_object")) and node.args:
                    found |= self._object(node.args[0])
                if name.endswith(".conf.update"):
                    found |= {
                        word.arg: self.shallow.value(word.value, self.scope) for word in node.keywords if word.arg
                    }
                elif name.rpartition(".")[2] == "Celery":
                    words = {"broker": "broker_url", "backend": "result_backend"}
                    found |= {
                        words[word.arg]: self.shallow.value(word.value, self.scope)
                        for word in node.keywords
                        if word.arg in words
                    }
        for name, value in self.scope.names.items():
            match = re.fullmatch(r"\w+\.conf\.(\w+)", name)
            if match:
                found[match[1]] = value
        return found

    def _object(self, node: ast.expr) -> dict[str, Any]:
        """Return what app.config_from_object(...) or app.conf.update(...) reads: a module, class, mapping, setting."""
        assert self.scope is not None
        if ast.unparse(node) in ("settings", "'django.conf:settings'"):
            return {}
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings"):
            value = plain(self.project.settings.get(node.attr))
        else:
            value = plain(self.shallow.value(node, self.scope))
        if isinstance(value, str):
            layout = self.project.layout
            file = find_module(self.project.tree.files, layout.importable, value)
            value = self.shallow.module(file) if file else {}
        names = value.names if isinstance(value, Scope) else value.members() if isinstance(value, Class) else value
        return {NEW.get(name, name): one for name, one in names.items()} if isinstance(names, dict) else {}

    def setting(self, name: str) -> str:
        """Return the name in Django's settings that sets something of Celery; "" for none."""
        names = [f"{self.namespace}_{name.upper()}"] if self.namespace else [OLD.get(name, name.upper()), name]
        found = [name for name in names if name in self.project.settings]
        return found[0] if found and self.uses_django else ""

    def get(self, name: str) -> Any:
        if name in self.code:
            return self.code[name]
        setting = self.setting(name)
        return self.project.settings.get(setting) if setting else None


def report_celery(project: Project) -> None:
    """Add findings about queues and the scheduler."""
    if not project.layout.celery_file:
        return
    configuration = Configuration(project)
    report_eager(project, configuration)
    report_queues(project, configuration)
    report_scheduler(project, configuration)


def report_eager(project: Project, configuration: Configuration) -> None:
    """Report tasks that would run inside of requests, as in tests."""
    setting = configuration.setting("task_always_eager") or "task_always_eager"
    if truth(configuration.get("task_always_eager")) is not True:
        return
    for variable in sorted(project.settings.variables(setting)):
        for word in ("false", "False", "0", ""):
            if truth(project.evaluate(**{variable: word}).get(setting)) is False:
                text = f"{setting} is True unless {variable} says otherwise: it is set to {word!r}."
                project.add_variable("celery", variable, word, text, word)
                return
    project.report.decided(
        "celery",
        f"Warning: {setting} is True ({project.settings.where(setting)}): every task runs inside of the request that "
        f"sends it, and no worker gets any. Write into the settings of production: {setting} = False.",
    )


# --- Queues --------------------------------------------------------------------------------------------------------


def report_queues(project: Project, configuration: Configuration) -> None:
    """Compare the queues that the project publishes to with those that workers consume."""
    found = published(project, configuration)
    names = sorted(found)
    report = project.report
    text = f"One worker consumes the project's queues: {listing(found)}."
    # Without `queues`, it also consumes those that only the host finds, and those of later releases.
    why = f"{text} Without `queues`, it consumes all that no other worker does."
    report.propose("app_workers", [WORKER], why)
    workers = project.given.get("app_workers")
    if not isinstance(workers, list):
        report.decided("queues", text, "app_workers")
        return
    if any(not item.get("queues") for item in workers if isinstance(item, dict)):
        report.fine("queues", f"Every queue has a worker: {', '.join(names)}.")
        return
    consumed = {queue for item in workers if isinstance(item, dict) for queue in item.get("queues", [])}
    consumed |= {*(project.given.get("app_external_queues") or []), *queues_of_processes(project)}
    if has_plain_worker(project):
        # It consumes task_queues or, without them, the default queue.
        consumed |= {name for name in names if found[name] in (DEFAULT_QUEUE, TASK_QUEUES)}
    missing = [name for name in names if name not in consumed]
    for name in missing:
        report.needs(
            "queues",
            f"No worker consumes the queue {name} ({found[name]}). Add it to the queues of a worker in app_workers in "
            f"{FILE}, or to app_external_queues if it is consumed elsewhere.",
            "app_workers",
        )
    if not missing:
        report.fine("queues", f"Every queue has a worker: {', '.join(names)}.")


def queues_of_processes(project: Project) -> set[str]:
    """Return the queues that Celery workers in app_processes name with -Q or --queues."""
    commands = [str(one.get("command", "")) for one in project.given.get("app_processes") or []]
    found = [QUEUES_OPTION.findall(command) for command in commands if WORKER_COMMAND.search(command)]
    return {queue for lists in found for names in lists for queue in names.split(",")}


def has_plain_worker(project: Project) -> bool:
    """Return whether a Celery worker in app_processes names no queues with -Q."""
    commands = [str(one.get("command", "")) for one in project.given.get("app_processes") or []]
    return any(PLAIN_WORKER.search(command) and not CHOICE_OF_QUEUES.search(command) for command in commands)


def listing(found: dict[str, str]) -> str:
    return ", ".join(f"{name} ({place})" for name, place in sorted(found.items()))


def published(project: Project, configuration: Configuration) -> dict[str, str]:
    """Return the queues that the project publishes to, and where each is named."""
    found: dict[str, str] = {}

    def add(value: Any, place: str) -> None:
        for name in possibilities(value):
            if isinstance(name, Call) and name.name.endswith("Queue"):
                add(name.arguments[0] if name.arguments else name.keywords.get("name", UNKNOWN), place)
            elif isinstance(name, str) and name:
                found.setdefault(name, place)

    default = configuration.get("task_default_queue")
    names = [name for name in possibilities(default) if isinstance(name, str)] if default is not None else ["celery"]
    for name in names:
        add(name, DEFAULT_QUEUE)
    for queue in task_queues(configuration.get("task_queues")):
        add(queue, TASK_QUEUES)
    for route in walk(configuration.get("task_routes")):
        if isinstance(route, dict) and "queue" in route:
            add(route["queue"], "task_routes")
        elif isinstance(route, dict) and not OPTIONS & set(route):
            # The value of a pattern may be the queue alone.
            for queue in route.values():
                add(queue if isinstance(plain(queue), str) else UNKNOWN, "task_routes")
    for options in walk(configuration.get("beat_schedule")):
        if isinstance(options, dict) and isinstance(plain(options.get("options", UNKNOWN)), dict):
            add(plain(options["options"]).get("queue", UNKNOWN), "beat's schedule")
    for file, queue in queues_in_code(project, configuration):
        add(queue, file)
    return found


def task_queues(value: Any) -> Iterable[Any]:
    for queues in possibilities(value) if value is not None else []:
        if isinstance(queues, dict | list | tuple | set):
            yield from queues


def queues_in_code(project: Project, configuration: Configuration) -> Iterable[tuple[str, Any]]:
    """Yield the file and the queue of calls such as shared_task(queue="mail") and apply_async(queue="mail")."""
    tree = project.tree
    for file in tree.grep(r"\bqueue\s*=", tree.python, "queue"):
        parsed = tree.parse(file)
        for node in queue_arguments(parsed) if parsed else ():
            yield file, constant(project, configuration, file, node)


def constant(project: Project, configuration: Configuration, file: str, node: ast.expr) -> Any:
    """Return the value of a constant, of settings.NAME, or of a name of the module."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings"):
        return project.settings.get(node.attr)
    if isinstance(node, ast.Name | ast.Attribute):
        return configuration.shallow.value(node, configuration.shallow.module(file))
    return UNKNOWN


# --- The scheduler -------------------------------------------------------------------------------------------------


def report_scheduler(project: Project, configuration: Configuration) -> None:
    report, given = project.report, project.given
    if given.get("app_beat") is False:
        report.fine("beat", "No beat runs: app_beat is false.", "app_beat")
        return
    chosen = given.get("app_beat_scheduler") or plain(configuration.get("beat_scheduler") or "")
    if not isinstance(chosen, str):
        report.fine("beat", "Beat's scheduler is computed by the settings.")
        return
    in_command = commanded(project.tree)
    if chosen:
        report.fine("beat", f"Beat's scheduler is {chosen}.")
    elif in_command:
        chosen = in_command[1]
        text = f"Beat's scheduler is {chosen}, as the command in {in_command[0]} has it."
        report.choose("beat", text, "app_beat_scheduler", chosen)
    elif project.has_app("django_celery_beat"):
        chosen = DATABASE_SCHEDULER
        text = (
            "django_celery_beat is installed, CELERY_BEAT_SCHEDULER is not set: beat runs with its DatabaseScheduler."
        )
        report.decided("beat", text, "app_beat_scheduler")
    elif has_schedule(project, configuration):
        report.fine("beat", "Beat runs the schedule of the settings.")
    elif reason := may_have_schedule(project):
        report.fine("beat", f"Beat runs: {reason}. (app_beat: false stops it.)", "app_beat")
    elif report.writes:
        text = "The project has no schedule, so it gets no beat."
        report.decided("beat", text, "app_beat")
        report.propose("app_beat", False, text)
    else:
        report.fine("beat", "The project has no schedule: beat sends nothing. (app_beat: false stops it.)", "app_beat")
    time_zone(project, configuration, chosen)


def commanded(tree: Tree) -> tuple[str, str] | None:
    """Return the file with a command that gives beat a scheduler, and the scheduler."""
    files = [
        file
        for file in tree.files
        if file.rpartition("/")[2] in COMMANDS or re.search(r"beat[^/]*(\.sh|\.service)?$", file)
    ]
    for file in sorted(files, key=lambda file: (file.count("/"), file)):
        match = BEAT_COMMAND.search(tree.read(file)) if not file.endswith(".py") else None
        if match:
            short = {"django": DATABASE_SCHEDULER, "redbeat.RedBeatScheduler": "redbeat.RedBeatScheduler"}
            return file, short.get(match[1], match[1])
    return None


def has_schedule(project: Project, configuration: Configuration) -> bool:
    schedule = configuration.get("beat_schedule")
    if schedule is not None and (isinstance(schedule, FromEnvironment | Either) or plain(schedule) != {}):
        return True
    pattern = r"add_periodic_task\(|beat_schedule|BEAT_SCHEDULE|@periodic_task|PeriodicTask\b"
    return any(True for _ in project.tree.grep(pattern, project.tree.python))


def may_have_schedule(project: Project) -> str:
    """Return why a project may have a schedule that was not found; "" if there is no reason."""
    package = next((name for name in SCHEDULERS if name in project.requirements), "")
    if package:
        return f"the requirements have {package}"
    return "" if project.settings.is_readable else "the settings cannot be read here, so there may be a schedule"


def time_zone(project: Project, configuration: Configuration, scheduler: str) -> None:
    """Warn of times without a zone, with which the database scheduler pauses after a start."""
    settings = project.settings
    zone = configuration.get("timezone") or settings.get("TIME_ZONE")
    if plain(settings.get("USE_TZ")) is not False or "django_celery_beat" not in scheduler:
        return
    if plain(zone) in ("UTC", "Etc/UTC"):
        return
    project.report.decided(
        "beat",
        f"Warning: USE_TZ is False beside a TIME_ZONE ({settings.where('USE_TZ')}), with which django_celery_beat may "
        'send nothing for an hour or more after beat starts. Set USE_TZ = True, or TIME_ZONE = "UTC".',
    )
