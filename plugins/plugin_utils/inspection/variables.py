"""Environment variables that the settings cannot do without."""

from __future__ import annotations

import re

from .evaluate import Evaluator
from .known import Environment, Read
from .layout import below, find_module, variable_in
from .project import Project
from .report import FILE
from .values import Either, plain

SAMPLES = (".env.example", ".env.sample", "env.example", "example.env", ".env.dist", ".env.template", ".env.production")


def set_at_start(project: Project, name: str) -> str:
    """Return the value that wsgi.py, asgi.py or manage.py give a variable; "" for none."""
    files = [file for file in project.tree.named("wsgi.py", "asgi.py", "manage.py") if below(project.layout, file)]
    return next(filter(None, (variable_in(project.tree.read(file), name) for file in files)), "")


def application_modules(project: Project) -> list[str]:
    """Return what Django imports at each start: applications that are certainly installed, and the URLs."""
    value = project.settings.get("INSTALLED_APPS")
    lists = [plain(one) for one in (value.values if isinstance(value, Either) else [value])]
    first, *others = [one if isinstance(one, list | tuple) else [] for one in lists]
    apps = [
        re.sub(r"\.apps\.\w+$", "", app) for app in first if isinstance(app, str) and all(app in one for one in others)
    ]
    urls = project.settings.plain("ROOT_URLCONF")
    modules = [f"{app}{part}" for app in apps for part in ("", ".apps", ".models")]
    return [*modules, *([urls] if isinstance(urls, str) else [])]


def reads_at_start(project: Project) -> list[Read]:
    """Return what modules of the servers, Celery and applications read themselves when they are imported."""
    layout = project.layout
    modules = [name.partition(":")[0] for name in (layout.wsgi, layout.asgi)]
    modules += application_modules(project)
    files = {layout.celery_file, *(find_module(project.tree.files, layout.roots, module) for module in modules)} - {""}
    evaluator = Evaluator(project.tree, layout.importable, Environment(project.variables), deepest=0)
    for file in sorted(files):
        evaluator.module(file)
    return [read for read in evaluator.environment.reads if read.file in files]


def report_variables(project: Project) -> None:
    """Report variables without a default that neither Seedbed nor app_environment sets."""
    project.forget()
    environment = project.settings.evaluator.environment
    files = [
        name for name in project.given.get("app_files") or {} if re.search(r"env|\.(ini|toml|ya?ml|json|cfg)$", name)
    ]
    if files:
        project.report.fine("environment", f"Variables may come from {', '.join(files)} of app_files.", "app_files")
        return
    owners = {"", *project.configuration_classes()}
    reads: dict[str, Read] = {}
    for read in [*environment.reads, *reads_at_start(project)]:
        if read.required and read.owner in owners and read.name not in environment.given:
            reads.setdefault(read.name, read)
    for name in sorted(reads):
        if value := set_at_start(project, name):
            text = f"{name} is set where some processes start, and others need it, too."
            project.report.require("environment", text, "app_environment", {name: value})
            del reads[name]
    sample = next((name for name in project.tree.named(*SAMPLES)), "")
    for read in sorted(reads.values(), key=lambda read: read.name):
        hint = f" ({sample} has an example.)" if sample and read.name in project.tree.read(sample) else ""
        place = f"{read.file}:{read.line}" if read.file else project.layout.settings_module
        project.report.needs(
            "environment",
            f"{read.name} is read without a default ({place}). Add it to app_environment in {FILE}.{hint}",
            "app_environment",
        )
