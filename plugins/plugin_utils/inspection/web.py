"""What pages need: the WSGI or ASGI callable, the server's packages, the health page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from .evaluate import Evaluator
from .expressions import Scope
from .known import Environment
from .layout import elsewhere, find_module, is_elsewhere, module_file
from .project import Project
from .report import FILE
from .requirements import Requirements
from .tree import join
from .values import Call, plain, possibilities, text_of

# Usual names of health pages, the best first.
HEALTH = (
    "healthz",
    "health",
    "up",
    "livez",
    "alive",
    "healthcheck",
    "health-check",
    "health_check",
    "heartbeat",
    "__heartbeat__",
    "ping",
    "ht",
    "readyz",
)
LONGEST, DEEPEST = 3000, 3
# The first version of gunicorn that serves ASGI without another package.
OWN_ASGI = 25
# Packages that are, or need, the package redis.
WITH_REDIS = {"redis", "django-redis", "channels-redis", "celery-redbeat", "rq", "django-rq", "huey"}
# Packages of applications and middleware, by the names of their modules.
APPLICATIONS = {
    "allauth": "django-allauth",
    "anymail": "django-anymail",
    "axes": "django-axes",
    "channels": "channels",
    "compressor": "django-compressor",
    "corsheaders": "django-cors-headers",
    "crispy_forms": "django-crispy-forms",
    "debug_toolbar": "django-debug-toolbar",
    "django_celery_beat": "django-celery-beat",
    "django_celery_results": "django-celery-results",
    "django_extensions": "django-extensions",
    "django_filters": "django-filter",
    "drf_spectacular": "drf-spectacular",
    "guardian": "django-guardian",
    "import_export": "django-import-export",
    "mptt": "django-mptt",
    "rest_framework": "djangorestframework",
    "silk": "django-silk",
    "simple_history": "django-simple-history",
    "storages": "django-storages",
    "taggit": "django-taggit",
    "whitenoise": "whitenoise",
    "widget_tweaks": "django-widget-tweaks",
}
PATHS = ("path", "re_path", "url")
# In the module of the ASGI callable, or in one that it imports.
ROUTER = re.compile(r"""["']websocket["']|URLRouter\(|ProtocolTypeRouter\(""")


def report_servers(project: Project) -> None:
    """Add findings about the WSGI and the ASGI callable, and which of them is served."""
    layout, report = project.layout, project.report
    if layout.wsgi:
        report.propose("app_wsgi_app", layout.wsgi, "The WSGI callable.")
        if is_elsewhere(project.tree, layout, layout.wsgi):
            report.decided("web", elsewhere("app_wsgi_app", layout.wsgi), "app_wsgi_app")
        else:
            report.fine("web", f"The WSGI callable is {layout.wsgi}.", "app_wsgi_app")
    asgi, reason = find_asgi(project)
    if asgi and reason:
        report.propose("app_asgi_app", asgi, "The ASGI callable.")
        text = f"The ASGI callable {asgi} is used: {reason}."
        if report.given.get("app_asgi_app"):
            report.fine("web", f"The ASGI callable is {asgi}.", "app_asgi_app")
        elif report.writes:
            report.propose("app_web", {"worker": "asgi"}, text)
            report.decided("web", text, "app_asgi_app")
        elif "worker" not in (report.given.get("app_web") or {}):
            text = (
                f"{reason[0].upper()}{reason[1:]}: set app_asgi_app to {asgi} in {FILE}, or app_web.worker to "
                "gthread to serve requests only."
            )
            report.needs("web", text, "app_asgi_app")
    if not layout.wsgi and not asgi:
        text = f"No wsgi.py or asgi.py was found. Set app_wsgi_app in {FILE} to MODULE:NAME of the WSGI callable."
        report.needs("web", text, "app_wsgi_app")


def find_asgi(project: Project) -> tuple[str, str]:
    """Return the ASGI callable, "" for none, and why it is served; "" if WSGI is enough."""
    layout = project.layout
    found = [layout.asgi] if layout.asgi else []
    module, _, name = text_of(project.settings.get("ASGI_APPLICATION")).rpartition(".")
    if not project.given.get("app_asgi_app") and module_file(project.tree, layout, module):
        found.append(f"{module}:{name}")
    for asgi in found:
        if serves_websockets(project, asgi.partition(":")[0]):
            return asgi, "it serves WebSockets"
    asgi = found[-1] if found else ""
    for app in ("channels", "daphne"):
        if project.has_app(app):
            return asgi, f"{app} is in INSTALLED_APPS"
    return asgi, "" if layout.wsgi else "the project has no WSGI callable"


def serves_websockets(project: Project, module: str) -> bool:
    """Return whether a module, or one of the project that it imports, routes WebSockets."""
    tree, evaluator = project.tree, project.settings.evaluator
    file = module_file(tree, project.layout, module)
    if ROUTER.search(tree.read(file)) or "WebSocket" in tree.read(file):
        return True
    parsed = tree.parse(file)
    names: list[str] = []
    for node in ast.walk(parsed) if parsed else ():
        if isinstance(node, ast.ImportFrom):
            source = evaluator.absolute(node, Scope(file))
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return any(ROUTER.search(tree.read(module_file(tree, project.layout, name))) for name in names)


def report_web(project: Project) -> None:
    requirements, report = project.requirements, project.report
    if requirements.packages and "gunicorn" not in requirements:
        text = "The requirements have no gunicorn."
        report.require("requirements", text, "app_extra_requirements", ["gunicorn>=23,<26"])
    if worker_of(project) == "asgi" and not has_own_asgi(requirements):
        lines = {"uvicorn-worker": "uvicorn-worker>=0.3,<1", "websockets": "websockets>=13"}
        missing = [line for name, line in lines.items() if name not in requirements]
        if requirements.has_extra("uvicorn", "standard"):
            missing = [line for line in missing if not line.startswith("websockets")]
        if missing and requirements.packages:
            text = "gunicorn needs uvicorn-worker and websockets for ASGI."
            report.require("requirements", text, "app_extra_requirements", missing)
    # A package has requirements of its own; the host says what is missing.
    if not project.layout.is_package:
        celery_packages(project)
        applications(project)
    health(project)


def celery_packages(project: Project) -> None:
    """Propose Celery and its Redis client, where the requirements lack them or may not fit."""
    requirements, report = project.requirements, project.report
    if requirements.packages and "celery" not in requirements:
        text = "The requirements have no celery."
        report.require("requirements", text, "app_extra_requirements", ["celery[redis]>=5.4,<6"])
    elif requirements.packages and not has_redis(requirements):
        text = "Celery needs the package redis for its broker, and the requirements have none."
        extra = "kombu[redis]" if has_old_celery(requirements) else "celery[redis]"
        report.require("requirements", text, "app_extra_requirements", [extra])
    elif requirements.packages and not is_redis_chosen(requirements):
        text = "The requirements pin no kombu: the newest version may not accept their version of redis."
        report.advise("requirements", text, "app_extra_requirements", ["kombu[redis]"])


def applications(project: Project) -> None:
    """Propose well-known packages of INSTALLED_APPS and MIDDLEWARE that the requirements lack."""
    used = [*project.apps, *(str(name) for name in project.settings.items("MIDDLEWARE"))]
    tops = dict.fromkeys(name.partition(".")[0] for name in used)
    for top in tops if project.requirements.packages else ():
        package = APPLICATIONS.get(top, "")
        if package and package not in project.requirements and not find_own(project, top):
            text = f"The settings use {top}, and the requirements have no {package}."
            project.report.advise("requirements", text, "app_extra_requirements", [package])


def find_own(project: Project, top: str) -> bool:
    """Return whether the project has a package or module of its own with this name."""
    paths = [join(root, top) for root in project.layout.importable]
    return any(path in project.tree.folders or f"{path}.py" in project.tree.files for path in paths)


def has_own_asgi(requirements: Requirements) -> bool:
    """Return whether gunicorn is pinned to a version that serves ASGI."""
    version = requirements.packages["gunicorn"].version if "gunicorn" in requirements else ""
    found = re.search(r"\d+", version)
    return found is not None and int(found[0]) >= OWN_ASGI


def has_redis(requirements: Requirements) -> bool:
    """Return whether the package redis is required, or comes with another one."""
    return any("redis" in package.extras or package.name in WITH_REDIS for package in requirements.packages.values())


def is_redis_chosen(requirements: Requirements) -> bool:
    """Return whether the requirements determine a kombu and a redis that fit.

    They name kombu, or Celery's extra is that of kombu.
    """
    if "kombu" in requirements:
        return True
    return requirements.has_extra("celery", "redis") and not has_old_celery(requirements)


def has_old_celery(requirements: Requirements) -> bool:
    """Return whether Celery is pinned to a version before 5.5, whose extra `redis` is not that of kombu."""
    pinned = re.match(r"\(?(?:==|~=(?=\s*\d+\.\d+\.\d))\s*(\d+)\.(\d+)", requirements.packages["celery"].version)
    return pinned is not None and (int(pinned[1]), int(pinned[2])) < (5, 5)


def worker_of(project: Project) -> str:
    """Return the kind of worker of gunicorn, as set or proposed."""
    proposed = project.report.settings.get("app_web")
    own = str((project.given.get("app_web") or {}).get("worker", "auto"))
    if own == "auto" and project.given.get("app_asgi_app"):
        return "asgi"
    return own if own != "auto" else proposed.value.get("worker", "") if proposed else ""


def health(project: Project) -> None:
    given = project.given.get("app_health_path")
    if given:
        project.report.fine("health", f"The health page is {given}.", "app_health_path")
        return
    found = []
    for path in routes(project):
        last = path.strip("/").rpartition("/")[2]
        if last in HEALTH and "<" not in path and path.strip("/").count("/") <= 2:
            found.append((path.strip("/").count("/"), HEALTH.index(last), path))
    if found:
        path = "/" + min(found)[2].lstrip("/")
        text = f"The health page is {path}, from the URLs of the project."
        project.report.propose("app_health_path", path, text)
        project.report.fine("health", text, "app_health_path")
    elif project.layout.is_package:
        text = "The URLs of a package are not inspected here: a deployment looks for a health page, and takes the home"
        text += " page or the login page without one."
        project.report.decided("health", text, "app_health_path")
    else:
        text = "The URLs have no health page such as /healthz/: a deployment takes the home page or the login page,"
        text += " and Django's 404 where the project has no URL."
        project.report.decided("health", text, "app_health_path")


def routes(project: Project) -> Iterator[str]:
    """Yield the paths of the project's URLs as far as they can be read."""
    module = plain(project.settings.get("ROOT_URLCONF"))
    if isinstance(module, str):
        yield from Routes(project).of_module(module, "", 0)


class Routes:
    """Reads the URLs of modules, without the views that they import."""

    def __init__(self, project: Project) -> None:
        self.project = project
        environment = Environment(project.variables)
        self.evaluator = Evaluator(project.tree, project.layout.importable, environment, only="urls")

    def of_module(self, module: str, prefix: str, depth: int) -> Iterator[str]:
        file = find_module(self.project.tree.files, self.project.layout.importable, module)
        if file and depth <= DEEPEST:
            yield from self.of_scope(self.evaluator.module(file), prefix, depth)

    def of_scope(self, scope: Scope, prefix: str, depth: int) -> Iterator[str]:
        for patterns in possibilities(scope.names.get("urlpatterns", [])):
            yield from self.of_patterns(patterns, prefix, depth)

    def of_patterns(self, patterns: Any, prefix: str, depth: int) -> Iterator[str]:
        for item in patterns[:LONGEST] if isinstance(patterns, list | tuple) else []:
            for call in possibilities(item):
                if isinstance(call, Call) and call.name.rpartition(".")[2] in PATHS and call.arguments:
                    yield from self.of_entry(call, prefix, depth)

    def of_entry(self, call: Call, prefix: str, depth: int) -> Iterator[str]:
        """Yield the path of one entry, or of those that it includes."""
        text = plain(call.arguments[0])
        if not isinstance(text, str):
            return
        if call.name.rpartition(".")[2] != "path":
            text = text.removeprefix("^").removesuffix("$").removesuffix("/?")
            if re.search(r"[\\()\[\]*+?^$|]", text):
                return
        view = call.arguments[1] if len(call.arguments) > 1 else None
        if not isinstance(view, Call) or view.name.rpartition(".")[2] != "include":
            yield prefix + text
            return
        target = plain(view.arguments[0]) if view.arguments else None
        target = target[0] if isinstance(target, tuple) and target else target
        if isinstance(target, str):
            if target.startswith("health_check"):
                yield prefix + text
            yield from self.of_module(target, prefix + text, depth + 1)
        elif isinstance(target, Scope):
            yield from self.of_scope(target, prefix + text, depth + 1)
        elif isinstance(target, list | tuple):
            yield from self.of_patterns(target, prefix + text, depth + 1)
