"""Processes and timers beside the pages, the workers and beat, which the project starts elsewhere."""

from __future__ import annotations

import json
import re

from ..preflight.commands import TAKEN
from .project import Project
from .report import FILE

# Applications that need a process of their own, and its command.
COMMANDS = {
    "django_q": "qcluster",
    "django_rq": "rqworker",
    "huey.contrib.djhuey": "run_huey",
    "django_dramatiq": "rundramatiq",
    "background_task": "process_tasks",
}
TIMERS = {"django_cron": "runcrons"}
# Processes that Seedbed runs, or that deployments and developers start.
KNOWN = re.compile(
    r"gunicorn|uvicorn|daphne|hypercorn|uwsgi|waitress|runserver|celery\b.*\b(worker|beat|flower)\b|watchmedo|npm "
    r"|webpack"
)
COMPOSE = re.compile(r"(.*/)?(docker-)?compose([.-]\w+)*\.ya?ml")
# Commands of Django that do not keep running, or that only developers start.
SHORT = re.compile(
    r"check|clear\w*|collect\w*|compile\w*|compress|create\w*|flush|init\w*|load\w*|make\w*|migrate\w*|run_?server\w*|seed\w*"
    r"|setup\w*|shell\w*|test\w*|update\w*|wait\w*"
)
PROCFILE = re.compile(r"^([A-Za-z][\w-]*)\s*:\s*(\S.*?)\s*$", re.M)


def report_processes(project: Project) -> None:
    """Add findings about processes of the Procfile and of applications that nothing here would start."""
    names = ("app_processes", "app_cron", "app_hooks", "app_build_commands")
    given = " ".join(str(project.given.get(name) or "") for name in names)
    place = project.layout.project_dir
    file = next((name for name in (f"{place}/Procfile".lstrip("/"), "Procfile") if name in project.tree.files), "")
    for name, command in PROCFILE.findall(project.tree.read(file)):
        if name not in ("web", "release") and not KNOWN.search(command) and command not in given:
            process(project, f"{file} has the process {name}, which nothing here runs", name, command)
    compose = [name for name in sorted(project.tree.files) if COMPOSE.fullmatch(name)]
    for name in compose if not file else ():
        commands = re.findall(r"^\s*command:.*\bmanage\.py\s+([a-z][\w-]*)", project.tree.read(name), re.M)
        for command in dict.fromkeys(commands):
            # Of development.
            if not re.search("dev|local|test|override", name) and not SHORT.fullmatch(command) and command not in given:
                line = f"{project.layout.django} {command}"
                process(project, f"{name} runs manage.py {command}, which nothing here runs", command, line)
    for app, command in COMMANDS.items():
        if project.has_app(app) and command not in given:
            text = f"{app} is installed, whose tasks nothing here runs"
            process(project, text, command, f"{project.layout.django} {command}")
    for app, command in TIMERS.items():
        if project.has_app(app) and command not in given:
            line = f'app_cron: [{{name: {command}, command: {project.layout.django} {command}, schedule: "*:0/5"}}]'
            text = f"{app} is installed, whose tasks nothing here runs. Where they must run, write into {FILE}: {line}."
            project.report.decided("processes", text, "app_cron")


def process(project: Project, text: str, name: str, command: str) -> None:
    line = f"app_processes: [{{name: {accepted(project, name)}, command: {json.dumps(command, ensure_ascii=False)}}}]"
    text = f"{text}. Where it must run, write into {FILE}: {line}."
    project.report.decided("processes", text, "app_processes")


def accepted(project: Project, name: str) -> str:
    """Return a name for app_processes: in the characters that it may have, and not that of another process."""
    proposed = project.report.settings.get("app_workers")
    workers = [*(project.given.get("app_workers") or []), *(proposed.value if proposed else [])]
    name = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"{name}_process" if name in {*TAKEN, *(worker["name"] for worker in workers)} else name
