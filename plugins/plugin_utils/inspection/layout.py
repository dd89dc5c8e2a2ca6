"""Find the parts of a Django project: manage.py, settings module, WSGI, ASGI, Celery application."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .report import FILE, Report
from .tree import Tree, join

PRODUCTION = ("production", "prod", "live", "deploy", "deployment", "server", "heroku", "docker")
DEVELOPMENT = ("local", "dev", "develop", "development", "test", "tests", "testing", "ci", "debug")
CELERY_FILE = re.compile(r"celery\w*\.py$")
COMMENT = re.compile(r"^[ \t]*#.*$", re.M)
SETDEFAULT = r"""environ(?:\.setdefault\(\s*|\[\s*)["']{}["']\s*(?:,|\]\s*=)\s*["']([^"']+)["']"""


@dataclass
class Layout:
    """The parts of a project; an empty text is a part that was not found.

    `project_dir` is the folder of manage.py; `roots` are folders whose modules can be imported, the first one first.
    """

    project_dir: str = ""
    manage: str = ""
    roots: list[str] = field(default_factory=lambda: [""])
    settings_module: str = ""
    settings_file: str = ""
    configuration: str = ""
    wsgi: str = ""
    asgi: str = ""
    celery: str = ""
    celery_file: str = ""
    # Further folders that the project adds to sys.path.
    paths: list[str] = field(default_factory=list)
    # The manage.py of other folders.
    others: list[str] = field(default_factory=list)
    # Settings modules that were not chosen.
    alternatives: list[str] = field(default_factory=list)

    @property
    def importable(self) -> list[str]:
        """Folders whose modules the project can import."""
        return [*self.roots, *self.paths]

    @property
    def is_package(self) -> bool:
        """Whether the code of the project is a package that the requirements install."""
        return not self.manage and not self.settings_file

    @property
    def django(self) -> str:
        """The command that runs Django's commands in the project's folder, as hostctl/application.py does."""
        if self.manage:
            return "python manage.py"
        return "python -m configurations" if self.configuration else "python -m django"


def find_layout(tree: Tree, given: Mapping[str, Any]) -> Layout | None:
    """Return the layout of a project, with the settings that the user has set.

    None where there is neither a manage.py nor a settings module, or where manage.py is in another folder.
    """
    folder, anywhere = str(given.get("app_project_dir") or "").strip("/"), find_manage(tree)
    manage = join(folder, "manage.py") if "app_project_dir" in given else "".join(anywhere[:1])
    if manage not in tree.files:
        if anywhere:
            return None
        manage = ""
    layout = Layout(project_dir=manage.rpartition("/")[0] if manage else folder, manage=manage)
    layout.others = [file for file in anywhere if file != manage]
    layout.roots = list(dict.fromkeys([layout.project_dir, join(layout.project_dir, "src"), "src", ""]))
    layout.roots = [root for root in layout.roots if not root or root in tree.folders]
    find_settings(tree, layout, str(given.get("app_settings_module") or ""))
    if not manage and not layout.settings_module:
        return None
    layout.wsgi = str(given.get("app_wsgi_app") or "") or find_server_module(tree, layout, "wsgi")
    layout.asgi = str(given.get("app_asgi_app") or "") or find_server_module(tree, layout, "asgi")
    find_celery(tree, layout, str(given.get("app_celery_app") or ""))
    layout.paths = added_paths(tree, layout)
    return layout


def added_paths(tree: Tree, layout: Layout) -> list[str]:
    """Return the folders that manage.py, the settings or wsgi.py add to sys.path, such as apps."""
    found: dict[str, None] = {}
    for file in filter(None, [layout.manage, layout.settings_file, *tree.named("wsgi.py")]):
        for call in re.findall(r"^\s*sys\.path\.(?:insert|append)\((.*)\)", tree.read(file), re.M):
            name = "/".join(re.findall(r"""["']([\w./-]+)["']""", call))
            found |= {path: None for root in layout.roots if (path := join(root, name)) in tree.folders and name}
    return [path for path in found if path not in layout.roots]


def find_manage(tree: Tree) -> list[str]:
    """Return every manage.py of Django, the one nearest to the top first."""
    return [file for file in tree.named("manage.py") if re.search(r"django|DJANGO", tree.read(file))]


def module_file(tree: Tree, layout: Layout, module: str) -> str:
    """Return the file of a module that a deployment packs; "" for others."""
    return find_module(tree.files, layout.roots, module)


def is_elsewhere(tree: Tree, layout: Layout, name: str) -> bool:
    """Return whether MODULE or MODULE:NAME is neither the project's nor that of a project that is a package."""
    module = name.partition(":")[0]
    return not layout.is_package and not find_module(tree.files, layout.importable, module)


def elsewhere(setting: str, name: str) -> str:
    """Return the warning about such a module."""
    module = name.partition(":")[0]
    return (
        f"Warning: {setting} names the module {module}, which the project does not have. Unless a package of the "
        f"requirements has it, correct it in {FILE}."
    )


def find_module(files: frozenset[str], roots: list[str], module: str) -> str:
    path = module.replace(".", "/")
    for root in roots if path else []:
        for candidate in (join(root, f"{path}.py"), join(root, path, "__init__.py")):
            if candidate in files:
                return candidate
    return ""


def module_name(layout: Layout, file: str) -> str:
    """Return the dotted name of a file, below the longest root that holds it."""
    roots = sorted((root for root in layout.roots if not root or file.startswith(f"{root}/")), key=len, reverse=True)
    inside = file.removeprefix(f"{roots[0]}/") if roots and roots[0] else file
    return inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def variable_in(text: str, name: str) -> str:
    """Return the value that a file gives an environment variable."""
    match = re.search(SETDEFAULT.format(name), COMMENT.sub("", text))
    return match[1] if match else ""


def find_settings(tree: Tree, layout: Layout, given: str) -> None:
    servers = [file for file in tree.named("wsgi.py", "asgi.py") if below(layout, file)]
    celeries = [file for file in tree.named("celery.py", "celery_app.py") if below(layout, file)]
    texts = [tree.read(file) for file in filter(None, [*servers, *celeries, layout.manage])]
    named = [name for name in (variable_in(text, "DJANGO_SETTINGS_MODULE") for text in texts) if name]
    named = list(dict.fromkeys(name for name in named if module_file(tree, layout, name)))
    candidates = list(dict.fromkeys([*named, *siblings(tree, layout, named), *conventional(tree, layout, named)]))
    layout.settings_module = given or choose(tree, layout, candidates)
    for name in [] if given else named:
        # Those of Celery, where they add to the others.
        pattern = rf"^from {re.escape(layout.settings_module)} import \*"
        if re.search(pattern, tree.read(module_file(tree, layout, name)), re.M):
            layout.settings_module = name
    layout.settings_file = module_file(tree, layout, layout.settings_module)
    layout.alternatives = [name for name in candidates if name != layout.settings_module]
    layout.configuration = next(filter(None, (variable_in(text, "DJANGO_CONFIGURATION") for text in texts)), "")


def below(layout: Layout, file: str) -> bool:
    return not layout.project_dir or file.startswith(f"{layout.project_dir}/")


def siblings(tree: Tree, layout: Layout, named: list[str]) -> list[str]:
    """Return the modules beside the named ones: those of their package, and those with a similar name."""
    found = []
    for name in named:
        file = module_file(tree, layout, name)
        folder, _, base = file.rpartition("/")
        pattern = (
            r"[a-z]\w*\.py"
            if "settings" in folder.rpartition("/")[2] or base == "__init__.py"
            else r"settings_?\w+\.py"
        )
        found += [other for other in sorted(tree.files) if re.fullmatch(f"{re.escape(folder)}/{pattern}", other)]
    return [module_name(layout, file) for file in found]


def conventional(tree: Tree, layout: Layout, named: list[str]) -> list[str]:
    # Without manage.py, a module of that name may be of another framework.
    if named or not layout.manage:
        return []
    files = [file for file in tree.python if re.search(r"(^|/)settings(/\w+)?\.py$", file) and below(layout, file)]
    return [module_name(layout, file) for file in files if re.search("INSTALLED_APPS|import", tree.read(file))]


def kind_of(module: str) -> int:
    """Return 0 for the settings of production, 1 for those of no environment, 2 for those of development."""
    top, _, inner = module.lower().partition(".")
    # The name of the project says nothing, such as server.
    words = re.split(r"[._-]", (inner if inner and "settings" not in top else f"{top}.{inner}").replace("settings", ""))
    if any(word in PRODUCTION for word in words):
        return 0
    return 2 if any(word in DEVELOPMENT for word in words) else 1


def choose(tree: Tree, layout: Layout, candidates: list[str]) -> str:
    """Return the settings module of production: the named one, unless one beside it has a name of production."""
    production = [name for name in candidates if kind_of(name) == 0]
    # Those of Docker or Heroku only where the project has no others for production.
    production.sort(
        key=lambda name: (
            min(PRODUCTION.index(word) for word in re.split(r"[._]", name) if word in PRODUCTION)
            if set(re.split(r"[._]", name)) & set(PRODUCTION)
            else len(PRODUCTION)
        )
    )
    if candidates and kind_of(candidates[0]) == 0:
        return candidates[0]
    return (production or sorted(candidates, key=kind_of) or [""])[0]


def find_server_module(tree: Tree, layout: Layout, kind: str) -> str:
    """Return MODULE:NAME of the WSGI or ASGI callable."""
    file = next((file for file in tree.named(f"{kind}.py") if below(layout, file)), "")
    if not file:
        pattern = rf"get_{kind}_application\(|ProtocolTypeRouter\(" if kind == "asgi" else r"get_wsgi_application\("
        places = [path for path in tree.python if below(layout, path)]
        file = next(tree.grep(pattern, places, "ication"), "") or next(tree.grep(pattern, places, "Router("), "")
    if not file:
        return ""
    text = tree.read(file)
    names = re.findall(r"^(\w+)\s*(?::[^=\n]+)?=(?!=)", text, re.M)
    # The callable may be a function around Django's.
    functions = re.findall(r"^(?:async )?def (\w+)\(", text, re.M)
    usual = [name for name in ("application", "app") if name in names or name in functions]
    name = next(iter(usual), names[-1] if names else "application")
    return f"{module_name(layout, file)}:{name}"


def find_celery(tree: Tree, layout: Layout, given: str) -> None:
    if given:
        module = given.partition(":")[0]
        inside = [f"{module}.celery", module]
        files = [file for file in (module_file(tree, layout, name) for name in inside) if file]
        layout.celery = given
        layout.celery_file = next(tree.grep(r"\bCelery\(", files), files[0] if files else "")
        return
    places = [file for file in tree.python if below(layout, file)]
    makers = celery_makers(tree, places)
    assigned = rf"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)*({'|'.join(makers)})\("
    other = r"^(app|celery|celery_app)\s*=()"
    found = matches(tree, places, assigned, "elery") or matches(tree, places, other, "Celery(")
    if not found:
        return
    found.sort(key=lambda one: (not one[1][2].endswith("Celery"), not CELERY_FILE.search(one[0]), one[0].count("/")))
    layout.celery_file, name = found[0][0], found[0][1][1]
    module = module_name(layout, layout.celery_file)
    if module.endswith(".celery"):
        layout.celery = module.removesuffix(".celery")
    else:
        layout.celery = module if name in ("app", "celery") else f"{module}:{name}"


def matches(tree: Tree, files: list[str], pattern: str, word: str) -> list[tuple[str, re.Match[str]]]:
    """Return the first match of a pattern in each of the files that have the word."""
    found = [(file, re.search(pattern, tree.read(file), re.M)) for file in files if word in tree.read(file)]
    return [(file, match) for file, match in found if match]


def celery_makers(tree: Tree, places: list[str]) -> list[str]:
    """Return the names of what creates a Celery application: the class, its subclasses, functions that call one."""
    found = [r"\w*Celery"]
    for file in places:
        parsed = tree.parse(file) if "Celery" in tree.read(file) else None
        for node in parsed.body if parsed else ():
            if isinstance(node, ast.ClassDef) and any(is_celery(base) for base in node.bases):
                found.append(node.name)
            elif isinstance(node, ast.FunctionDef):
                calls = [one for one in ast.walk(node) if isinstance(one, ast.Call) and is_celery(one.func)]
                found += [node.name] if calls else []
    return found


def is_celery(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2].endswith("Celery")


def report_layout(tree: Tree, layout: Layout, packages: Iterable[str], report: Report) -> None:
    """Add what was found, and what is missing. `packages` are the names of the requirements."""
    propose = report.propose
    propose("app_project_dir", layout.project_dir, "The folder of manage.py.")
    if layout.manage:
        others = layout.others if "app_project_dir" not in report.given else []
        also = f" (There is also {', '.join(others[:3])}: app_project_dir chooses.)" if others else ""
        text = f"manage.py is in {layout.project_dir or 'the top folder'}.{also}"
        report.fine("project", text, "app_project_dir")
    else:
        text = f"There is no manage.py: Django's commands run as `{layout.django}`."
        report.fine("project", text, "app_project_dir")
    if layout.is_package:
        report_package(layout, packages, report)
        return
    if layout.settings_file:
        propose("app_settings_module", layout.settings_module, "Django's settings module.")
        others = [name for name in layout.alternatives if kind_of(name) < 2]
        also = (
            f" (There are also {', '.join(others[:5])}.)"
            if others and "app_settings_module" not in report.given
            else ""
        )
        report.fine("settings", f"The settings module is {layout.settings_module}.{also}", "app_settings_module")
        if kind_of(layout.settings_module) == 2 and "app_settings_module" not in report.given:
            report.needs(
                "settings",
                f"{layout.settings_module} is a settings module for development, and none for production was found: "
                f"write one, and set app_settings_module in {FILE}.",
                "app_settings_module",
            )
    else:
        what = (
            f"{layout.settings_module} is not a module of the project" if layout.settings_module else "none was found"
        )
        report.needs("settings", f"Settings module: {what}. Set app_settings_module in {FILE}.", "app_settings_module")
    if layout.celery_file:
        propose("app_celery_app", layout.celery, f"The Celery application in {layout.celery_file}.")
        report.fine("celery", f"The Celery application is {layout.celery} ({layout.celery_file}).", "app_celery_app")
    elif layout.celery and is_elsewhere(tree, layout, layout.celery):
        report.decided("celery", elsewhere("app_celery_app", layout.celery), "app_celery_app")
    elif "app_celery_app" not in report.given:
        report.needs(
            "celery",
            "No Celery application was found: add celery.py beside the settings, as Celery's guide for Django has it, "
            f"or set app_celery_app in {FILE}.",
            "app_celery_app",
        )
    if layout.configuration:
        variable = {"DJANGO_CONFIGURATION": layout.configuration}
        report.require(
            "settings", f"django-configurations uses the class {layout.configuration}.", "app_environment", variable
        )


def report_package(layout: Layout, packages: Iterable[str], report: Report) -> None:
    """Add what is known of a project whose code is a package among the requirements: the names that were given."""
    top = layout.settings_module.partition(".")[0].lower().replace("_", "-")
    # mayan-edms has the module mayan.
    if not any(top == name or top in name.split("-") for name in packages):
        report.needs(
            "settings",
            f"There is no manage.py, and {layout.settings_module} is neither a module of the project nor of a package "
            f"of that name among its requirements. Set app_project_dir in {FILE} to the folder of manage.py; for a "
            "project that is installed as a package, add it to the requirements, and set app_settings_module.",
            "app_settings_module",
        )
        return
    report.propose("app_settings_module", layout.settings_module, "Django's settings module.")
    report.decided(
        "settings",
        f"The settings module {layout.settings_module} comes with a package and is not inspected here. Set the "
        f"variables that it reads in app_environment in {FILE}; the host checks the settings before anything migrates.",
        "app_settings_module",
    )
    if layout.celery:
        report.propose("app_celery_app", layout.celery, "The Celery application.")
        report.fine("celery", f"The Celery application is {layout.celery}.", "app_celery_app")
    else:
        report.needs("celery", f"Set app_celery_app in {FILE} to the package's Celery application.", "app_celery_app")
