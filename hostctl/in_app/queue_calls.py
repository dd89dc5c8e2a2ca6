"""Queues that calls name, such as apply_async(queue="mail"), found in the syntax of the code.

The inspection on the control machine (plugins/plugin_utils/inspection) uses this module, too.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Calls that name a queue. (Those of delay() are the task's own arguments.)
PUBLISHING = (
    "shared_task",
    "task",
    "apply_async",
    "set",
    "send_task",
    "signature",
    "periodic_task",
    "subtask",
)
# Folders whose code does not run in production.
ASIDE = re.compile(
    r"(^|/)(tests?|testing|docs?|examples?|samples?|demos?|benchmarks?|contrib|fixtures|\.[^/]*|\{\{[^/]*)(/|$)", re.I
)
DEPENDENCIES = {"node_modules", "venv", "__pycache__"}


def queue_arguments(module: ast.Module) -> Iterator[ast.expr]:
    """Yield the expressions that name a queue: `queue=` of calls that publish, and `queue` of classes of tasks."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and call_name(node) in PUBLISHING:
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "queue")
        elif isinstance(node, ast.ClassDef) and any("Task" in ast.unparse(base) for base in node.bases):
            for statement in node.body:
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "queue":
                    yield statement.value


def call_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def queues_in_code(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield FILE:LINE and the queue of every such expression below a folder whose value is known.

    The value of a name is that in the module, if that is loaded; modules are not imported for it.
    """
    code, kinds = Code(folder), queue_kinds()
    for path in python_files(folder, code.in_use()):
        module = parse(path, r"\bqueue\s*=")
        if module is None:
            continue
        names = code.names(path, module)
        for node in queue_arguments(module):
            value = value_of(node, names)
            # By its type: the truth of a QuerySet is a query, and so is the class of a lazy object.
            if issubclass(type(value), kinds) and value:
                yield f"{path.relative_to(folder)}:{node.lineno}", value


def queue_kinds() -> tuple[type, ...]:
    """Return the types of values that name a queue."""
    with contextlib.suppress(ImportError):
        from kombu import Queue

        return str, Queue
    return (str,)


class Code:
    """The modules below a folder, and what their names stand for."""

    def __init__(self, folder: Path) -> None:
        self.loaded = {
            os.path.realpath(file): module
            for module in list(sys.modules.values())
            if isinstance(file := getattr(module, "__dict__", {}).get("__file__"), str)
        }
        self.folder = folder.resolve()
        inside = [path for path in map(Path, sys.path) if path.resolve().is_relative_to(self.folder)]
        # Without .venv, whose packages name none of the project's queues.
        paths = [path for path in inside if "/." not in f"/{path.resolve().relative_to(self.folder)}"]
        self.roots = list(dict.fromkeys([*paths, folder]))
        self.parsed: dict[Path, dict[str, Any]] = {}

    def in_use(self) -> set[str]:
        """Return the folders of loaded modules, and those of sys.path: an application may have the name `docs`."""
        return {str(Path(file).parent) for file in self.loaded} | {str(root.resolve()) for root in self.roots}

    def names(self, path: Path, module: ast.Module) -> dict[str, Any]:
        """Return the values of a module's names, also of those that it imports from others of the folder."""
        names: dict[str, Any] = {}
        with contextlib.suppress(ImportError):
            from django.conf import settings

            names["settings"] = settings
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                names |= self.imported(path, node)
        known = self.loaded.get(os.path.realpath(path))
        return names | (vars(known) if known else constants(module))

    def imported(self, path: Path, node: ast.ImportFrom) -> dict[str, Any]:
        """Return the values of the names that `from MODULE import NAME` binds, as far as they are known."""
        found = self.module(path, node.level, node.module or "")
        if any(alias.name == "*" for alias in node.names):
            return {name: value for name, value in found.items() if not name.startswith("_")}
        names = {}
        for alias in node.names:
            if alias.name in found:
                names[alias.asname or alias.name] = found[alias.name]
            elif below := self.module(path, node.level, ".".join(filter(None, [node.module, alias.name]))):
                names[alias.asname or alias.name] = SimpleNamespace(**below)
        return names

    def module(self, path: Path, level: int, name: str) -> Mapping[str, Any]:
        """Return the names of a module that `path` imports, without those that it imports itself; {} if unknown."""
        parts = name.split(".") if name else []
        for root in path.resolve().parents[level - 1 : level] if level else self.roots:
            place = root.joinpath(*parts)
            for file in (place / "__init__.py", *([place.with_name(f"{place.name}.py")] if parts else [])):
                if file.is_file() and file.resolve().is_relative_to(self.folder):
                    return self.contents(file.resolve())
        return {}

    def contents(self, file: Path) -> Mapping[str, Any]:
        if known := self.loaded.get(os.path.realpath(file)):
            return vars(known)
        if file not in self.parsed:
            module = parse(file)
            self.parsed[file] = constants(module) if module else {}
        return self.parsed[file]


def python_files(folder: Path, in_use: set[str]) -> Iterator[Path]:
    """Yield the Python files that may run in production; folders in use may have any name."""
    for parent, folders, files in os.walk(os.path.realpath(folder)):
        folders[:] = sorted(
            name
            for name in folders
            if name not in DEPENDENCIES and (not ASIDE.search(name) or f"{parent}/{name}" in in_use)
        )
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def parse(path: Path, pattern: str = "") -> ast.Module | None:
    """Return the syntax tree of a file that contains a pattern; None for others, and for what is no Python."""
    try:
        text = path.read_text(errors="replace")
        return ast.parse(text) if re.search(pattern, text) else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def constants(module: ast.Module) -> dict[str, Any]:
    """Return the names of a module that is not loaded, as far as they are constants."""
    names: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node.value.value for target in targets if isinstance(target, ast.Name)}
    return names


def value_of(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of a constant, of a name of the module, or of an attribute of one; None for others."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        with contextlib.suppress(Exception):
            return getattr(value_of(node.value, names), node.attr)
    return None
