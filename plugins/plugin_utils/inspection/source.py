"""What a deployment would leave out of the project: submodules, files of Git LFS, ignored files that are imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ..preflight.application import is_git_url
from .expressions import Scope
from .known import normal
from .layout import find_module, kind_of, module_name
from .project import Project
from .report import FILE
from .tree import join

# Files beside the application's code that production does not import.
TESTS = re.compile(r"(^|/)(tests?|test_\w+|\w+_tests?|conftest)\.py$")


def report_source(project: Project) -> None:
    # A deployment from a git URL fetches both; the clone that is inspected has neither.
    if not is_git_url(str(project.given.get("app_source") or "")):
        report_unfetched(project)
    for file, place in (dict.fromkeys(ignored_imports(project), "the settings") | ignored_modules(project)).items():
        if file not in (project.given.get("app_files") or {}):
            report_ignored(project, file, place)
    report_opened(project)


def report_ignored(project: Project, file: str, place: str) -> None:
    text = f"{file} is imported by {place}, and git ignores it, so a deployment leaves it out"
    if project.given.get("app_build_commands"):
        project.report.decided("files", f"{text}, unless app_build_commands make it.", "app_build_commands")
        return
    project.report.needs(
        "files",
        f"{text}. Add it to app_files in {FILE} ({file}: {{src: PATH}}), or to the repository.",
        "app_files",
    )


def report_opened(project: Project) -> None:
    """Report files in the project's folder that the settings open, and that a deployment does not have."""
    top = PurePosixPath(project.tree.folder.as_posix())
    found = {path: f"{file}:{line}" for path, file, line in reversed(project.settings.evaluator.environment.opened)}
    for path, place in sorted(found.items()):
        full = PurePosixPath(normal(str(PurePosixPath(top, project.layout.project_dir, path))))
        name = str(full.relative_to(top)) if full.is_relative_to(top) else ""
        if name and name not in project.tree.files and name not in (project.given.get("app_files") or {}):
            text = f"{place} opens {name}, which a deployment does not have"
            if project.given.get("app_build_commands"):
                project.report.decided("files", f"{text}, unless app_build_commands make it.", "app_build_commands")
                continue
            text = f"{text}: git ignores it, or it is not in the project. Add it to app_files in {FILE} "
            project.report.needs("files", f"{text}({name}: {{src: PATH}}), or to the repository.", "app_files")


def report_unfetched(project: Project) -> None:
    tree, report = project.tree, project.report
    # Of a git URL, release_archive fetches them.
    for module in tree.submodules if tree.repository else []:
        if not any(file.startswith(f"{module}/") for file in tree.files):
            report.needs(
                "submodules",
                f"The submodule {module} is empty. Type in the project: git submodule update --init --recursive",
            )
    pointers = tree.pointers() if tree.repository else []
    if pointers:
        report.needs(
            "files",
            f"{len(pointers)} files, such as {pointers[0]}, are pointers of Git LFS. Type in the project: git lfs pull",
        )


def ignored_imports(project: Project) -> list[str]:
    """Return modules that the settings import, which are on this machine and are not packed."""
    found = []
    for module, _, _ in project.settings.evaluator.missing:
        path = module.replace(".", "/")
        for root in project.layout.roots:
            for name in (f"{path}.py", f"{path}/__init__.py"):
                file = f"{root}/{name}" if root else name
                if project.tree.on_disk(file) and file not in project.tree.files:
                    found.append(file)
    return sorted(set(found))


def ignored_modules(project: Project) -> dict[str, str]:
    """Return ignored modules of the project's packages that its code imports, each with FILE:LINE of an import."""
    tree, layout = project.tree, project.layout
    modules = {
        module_name(layout, file): file
        for file in tree.ignored
        if file.removesuffix("/__init__.py").rpartition("/")[0] in tree.folders
    }
    words = {name.rpartition(".")[2] for name in modules if "." in name}
    if not words:
        return {}
    found: dict[str, str] = {}
    # Those of other environments are the settings' own matter.
    others = {find_module(tree.files, layout.roots, name) for name in layout.alternatives}
    files = [file for file in tree.python if is_of_package(project, file) and file not in others]
    for file in tree.grep(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b", files):
        for name, line in imports(project, file):
            if name in modules and not find_module(tree.files, layout.roots, name):
                found.setdefault(modules[name], f"{file}:{line}")
    return found


def is_of_package(project: Project, file: str) -> bool:
    """Return whether a file is a module of a package, and neither tests nor settings for development."""
    if file == project.layout.settings_file or TESTS.search(file):
        return False
    package = join(file.rpartition("/")[0], "__init__.py")
    settings = "settings" in file and kind_of(module_name(project.layout, file)) == 2
    return "/" in file and package in project.tree.files and not settings


def imports(project: Project, file: str) -> Iterator[tuple[str, int]]:
    """Yield the modules of the project's packages that a module always imports, each with its line.

    What is imported in `try`, in a condition or in a function may be missing.
    """
    tree, layout, evaluator = project.tree, project.layout, project.settings.evaluator
    parsed = tree.parse(file)
    for node in parsed.body if parsed else ():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = evaluator.absolute(node, Scope(file))
            own = tree.read(find_module(tree.files, layout.roots, module))
            # A name that the package itself defines is no module.
            inner = [alias.name for alias in node.names if not re.search(rf"\b{re.escape(alias.name)}\b", own)]
            names = [module, *(f"{module}.{name}" for name in inner)]
        yield from ((name, node.lineno) for name in names if "." in name)
