"""Evaluate modules of a project, such as its settings, from their syntax: nothing is imported or run."""

from __future__ import annotations

import ast
import contextlib
import fnmatch
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from .expressions import MOST_ROUNDS, OPERATORS, Class, Expressions, Function, Scope, Stop, joined
from .known import Environment
from .layout import find_module
from .tree import Tree
from .values import UNKNOWN, Call, External, FromEnvironment, Unknown, either, is_known, lift, names_of, plain, truth

MOST_STEPS = 20_000
NO_FILE = ("FileNotFoundError", "OSError", "IOError", "EnvironmentError", "Exception")
NO_MODULE = ("ImportError", "ModuleNotFoundError", "Exception")
NO_VARIABLE = ("KeyError", "ImproperlyConfigured", "UndefinedValueError", "Exception")
# Imports of modules of the project that are followed from one to the next.
DEEPEST_IMPORT = 5


class Evaluator(Expressions):
    """Evaluates modules of a project in the environment of a release."""

    def __init__(
        self, tree: Tree, roots: list[str], environment: Environment, deepest: int = DEEPEST_IMPORT, only: str = ""
    ) -> None:
        self.tree, self.roots, self.environment = tree, roots, environment
        self.modules: dict[str, Scope] = {}
        # Modules of the project that were imported and are not there, with the file and line that import them.
        self.missing: list[tuple[str, str, int]] = []
        # Only files with this text in their path are followed, beside those of the caller.
        self.deepest, self.only = deepest, only
        self.depth = self.steps = self.nesting = 0

    def module(self, file: str) -> Scope:
        """Return the names of a module; of one that is still being evaluated, those known so far."""
        if file not in self.modules:
            scope = self.modules[file] = Scope(file)
            place = PurePosixPath(self.tree.folder.as_posix(), file)
            scope.names |= {"__file__": str(place), "__name__": self.name_of(file)}
            parsed = self.tree.parse(file) if self.follows(file) else None
            self.nesting += 1
            # A module that loads ends with its last statement: one that raises here would not have been reached.
            for statement in parsed.body if parsed else []:
                with contextlib.suppress(Stop, RecursionError):
                    self.block([statement], scope)
            self.nesting -= 1
        return self.modules[file]

    def follows(self, file: str) -> bool:
        return self.nesting <= self.deepest and (self.nesting == 0 or self.only in file)

    def name_of(self, file: str) -> str:
        root = max((root for root in self.roots if not root or file.startswith(f"{root}/")), key=len, default="")
        return (
            file.removeprefix(f"{root}/" if root else "")
            .removesuffix(".py")
            .removesuffix("/__init__")
            .replace("/", ".")
        )

    # --- Statements ------------------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], scope: Scope) -> None:
        for statement in statements:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise Stop
            handler = getattr(self, f"do_{type(statement).__name__.lower()}", None)
            if handler:
                handler(statement, scope)

    def do_import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            scope.names[alias.asname or name] = self.imported(name)

    def imported(self, name: str) -> Any:
        file = find_module(self.tree.files, self.roots, name)
        return self.module(file) if file else External(name)

    def do_importfrom(self, node: ast.ImportFrom, scope: Scope) -> None:
        module = self.absolute(node, scope)
        file = find_module(self.tree.files, self.roots, module)
        if not file:
            self.import_other(node, module, scope)
            return
        source = self.module(file)
        for alias in node.names:
            if alias.name == "*":
                public = {name for name in source.names if not name.startswith("_")}
                scope.names |= {name: source.names[name] for name in public}
                scope.places |= {name: source.places[name] for name in public if name in source.places}
                continue
            name = alias.asname or alias.name
            inner = find_module(self.tree.files, self.roots, f"{module}.{alias.name}")
            if alias.name in source.names:
                scope.names[name] = source.names[alias.name]
                scope.places[name] = source.places.get(alias.name, (scope.file, node.lineno))
            else:
                scope.names[name] = self.module(inner) if inner else UNKNOWN

    def import_other(self, node: ast.ImportFrom, module: str, scope: Scope) -> None:
        """Import from a module outside of the project, or from a folder of it without __init__.py."""
        top = module.partition(".")[0]
        own = node.level > 0 or find_module(self.tree.files, self.roots, top)
        for alias in node.names:
            inner = find_module(self.tree.files, self.roots, f"{module}.{alias.name}")
            if inner:
                scope.names[alias.asname or alias.name] = self.module(inner)
            elif own:
                self.missing.append((module, scope.file, node.lineno))
                raise Stop
            elif alias.name != "*":
                scope.names[alias.asname or alias.name] = External(f"{module}.{alias.name}")

    def absolute(self, node: ast.ImportFrom, scope: Scope) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name_of(scope.file).split(".")
        package = parts if scope.file.endswith("__init__.py") else parts[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])

    def do_assign(self, node: ast.Assign, scope: Scope) -> None:
        value = self.value(node.value, scope)
        for target in node.targets:
            self.assign(target, value, scope)

    def do_annassign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value:
            self.assign(node.target, self.value(node.value, scope), scope)

    def do_augassign(self, node: ast.AugAssign, scope: Scope) -> None:
        operator = OPERATORS.get(type(node.op))
        before, after = self.value(node.target, scope), self.value(node.value, scope)
        value = lift(joined(operator), before, after) if operator else UNKNOWN
        # What is appended to a list that is unknown is unknown; its beginning remains known otherwise.
        self.assign(node.target, before if isinstance(value, Unknown) and is_known(before) else value, scope)

    def assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            scope.names[target.id] = value
            scope.places[target.id] = (scope.file, target.lineno)
        elif isinstance(target, ast.Tuple | ast.List):
            items = list(value) if isinstance(value, list | tuple) else []
            for number, item in enumerate(target.elts):
                self.assign(item, items[number] if len(items) == len(target.elts) else Unknown(names_of(value)), scope)
        elif isinstance(target, ast.Attribute):
            name = ast.unparse(target)
            scope.names[name], scope.places[name] = value, (scope.file, target.lineno)
        elif isinstance(target, ast.Subscript):
            self.assign_item(target, value, scope)

    def assign_item(self, target: ast.Subscript, value: Any, scope: Scope) -> None:
        holder, key = self.value(target.value, scope), self.value(target.slice, scope)
        if isinstance(holder, External) and holder.name == "os.environ" and isinstance(key, str):
            self.environment.given.setdefault(key, value)
        elif isinstance(holder, FromEnvironment) and isinstance(holder.value, dict):
            holder = holder.value
        if isinstance(holder, Scope) and isinstance(key, str):
            holder.names[key], holder.places[key] = value, (scope.file, target.lineno)
        elif isinstance(holder, dict | list) and is_known(key):
            try:
                holder[key] = value
            except (TypeError, IndexError):
                return

    def do_expr(self, node: ast.Expr, scope: Scope) -> None:
        self.value(node.value, scope)

    def do_if(self, node: ast.If, scope: Scope) -> None:
        test = self.value(node.test, scope)
        answer = truth(test)
        if answer is not None:
            if raises(node.body if answer else node.orelse):
                self.require(names_of(test))
            self.block(node.body if answer else node.orelse, scope)
        else:
            self.branches([node.body, node.orelse], scope)

    def require(self, names: frozenset[str]) -> None:
        """Note that the settings cannot be loaded without a variable."""
        for read in self.environment.reads if len(names) == 1 else []:
            if read.name in names and read.name not in self.environment.given:
                read.required = True

    def include(self, files: list[Any], scope: Scope) -> None:
        """Run files of the project in a module, as django-split-settings does."""
        folder, outer = scope.file.rpartition("/")[0], scope.file
        for item in files:
            pattern = plain(item.arguments[0] if isinstance(item, Call) and item.arguments else item)
            path = PurePosixPath(folder, pattern).as_posix() if isinstance(pattern, str) else ""
            for file in sorted(file for file in self.tree.files if matches(file, path) and file != outer):
                scope.file = file
                parsed = self.tree.parse(file)
                for statement in parsed.body if parsed else []:
                    with contextlib.suppress(Stop, RecursionError):
                        self.block([statement], scope)
        scope.file = outer

    def branches(self, blocks: list[list[ast.stmt]], scope: Scope) -> None:
        """Run blocks of which only one will run, each on the names before; then a name may have either value."""
        before = scope.names
        after, ended = [], 0
        with self.environment.uncertain():
            for block in blocks:
                scope.names = duplicate(before)
                try:
                    self.block(block, scope)
                    after.append(scope.names)
                except Stop:
                    ended += 1
                    if not raises(block):
                        after.append(scope.names)
        scope.names = merge(after or [before], before)
        if ended == len(blocks):
            raise Stop

    def do_try(self, node: ast.Try, scope: Scope) -> None:
        caught = any(handler_is_for(handler, *NO_VARIABLE) for handler in node.handlers)
        count, missing, opened = len(self.environment.reads), len(self.missing), len(self.environment.opened)
        try:
            self.block(node.body, scope)
            if any(handler_is_for(handler, *NO_FILE) and not raises(handler.body) for handler in node.handlers):
                del self.environment.opened[opened:]
            self.block(node.orelse, scope)
        except Stop:
            # A module that may be missing: the handlers run.
            if any(handler_is_for(handler, *NO_MODULE) for handler in node.handlers):
                del self.missing[missing:]
                self.block(node.handlers[0].body, scope)
            elif not returns(node.body):
                raise
        if caught:
            handlers = [handler.body for handler in node.handlers]
            required = [read for read in self.environment.reads[count:] if read.required]
            fails = not required or all(self.fails(body, scope) for body in handlers)
            for read in required:
                read.required = fails
            if not fails:
                self.branches([[], *handlers], scope)
        self.block(node.finalbody, scope)
        if returns(node.body):
            raise Stop

    def fails(self, block: list[ast.stmt], scope: Scope) -> bool:
        """Return whether a block certainly raises an exception: it neither ends nor returns."""
        before, returned = scope.names, len(scope.returned)
        scope.names = duplicate(before)
        try:
            self.block(block, scope)
        except Stop:
            return len(scope.returned) == returned
        finally:
            scope.names = before
        return False

    def do_with(self, node: ast.With, scope: Scope) -> None:
        outer, suppressed = self.environment.prefix, frozenset[str]()
        for item in node.items:
            value = self.value(item.context_expr, scope)
            suppressed |= suppressed_by(value)
            if isinstance(value, Call) and (prefix := prefix_of(value)):
                self.environment.prefix += prefix
                # `as env` gives the same object.
                value = External("environs.env")
            if item.optional_vars:
                self.assign(item.optional_vars, value if isinstance(value, Call | External) else UNKNOWN, scope)
        try:
            self.block_in(suppressed, node.body, scope)
        finally:
            self.environment.prefix = outer

    def block_in(self, suppressed: frozenset[str], statements: list[ast.stmt], scope: Scope) -> None:
        """Run a block, after which some exceptions, by their names, do not matter."""
        count, missing, opened = len(self.environment.reads), len(self.missing), len(self.environment.opened)
        try:
            self.block(statements, scope)
        except Stop:
            if not suppressed.intersection(NO_MODULE) or len(self.missing) == missing:
                raise
            del self.missing[missing:]
        if suppressed.intersection(NO_FILE):
            del self.environment.opened[opened:]
        if suppressed.intersection(NO_VARIABLE):
            for read in self.environment.reads[count:]:
                read.required = False

    def do_for(self, node: ast.For, scope: Scope) -> None:
        values = self.value(node.iter, scope)
        items = list(values)[:MOST_ROUNDS] if isinstance(values, list | tuple | dict | set | frozenset) else [UNKNOWN]
        for item in items:
            self.assign(node.target, item, scope)
            try:
                self.block(node.body, scope)
            except Stop:
                if returns(node.body):
                    raise
        self.block(node.orelse, scope)

    def do_while(self, node: ast.While, scope: Scope) -> None:
        self.branches([node.body, []], scope)

    def do_match(self, node: ast.Match, scope: Scope) -> None:
        """Run each case as one that may be it: patterns are not evaluated."""
        subject = Unknown(names_of(self.value(node.subject, scope)))
        for pattern in (part for case in node.cases for part in ast.walk(case.pattern)):
            name = pattern.rest if isinstance(pattern, ast.MatchMapping) else getattr(pattern, "name", None)
            if name:
                scope.names[name] = subject
        last = node.cases[-1]
        is_complete = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and not last.guard
        self.branches([*(case.body for case in node.cases), *([] if is_complete else [[]])], scope)

    def do_functiondef(self, node: ast.FunctionDef, scope: Scope) -> None:
        scope.names[node.name] = Function(node, scope)

    do_asyncfunctiondef = do_functiondef

    def do_classdef(self, node: ast.ClassDef, scope: Scope) -> None:
        inner = Scope(scope.file, parent=scope)
        made = Class(node.name, inner, [self.value(base, scope) for base in node.bases])
        scope.names[node.name] = made
        made.annotations |= {
            one.target.id: (ast.unparse(one.annotation), one.lineno)
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
        for base in made.bases:
            if isinstance(base, Class):
                inner.places |= base.scope.places
        with contextlib.suppress(Stop):
            self.block(node.body, inner)
        for name, value in list(inner.names.items()):
            inner.names[name] = self.environment.configuration_value(node.name, name, value)

    def do_return(self, node: ast.Return, scope: Scope) -> None:
        scope.returned.append(self.value(node.value, scope) if node.value else None)
        raise Stop

    def do_raise(self, node: ast.Raise, scope: Scope) -> None:
        raise Stop

    do_continue = do_break = do_raise


def matches(file: str, pattern: str) -> bool:
    """Return whether a pattern such as components/*.py, whose * stays in one folder, matches a file."""
    return file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern)


def handler_is_for(handler: ast.ExceptHandler, *names: str) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind).rpartition(".")[2] in names for kind in kinds)


def suppressed_by(value: Any) -> frozenset[str]:
    """Return the names of the exceptions of contextlib.suppress(); none for other context managers."""
    if not isinstance(value, Call) or value.name != "contextlib.suppress":
        return frozenset()
    return frozenset(item.name.rpartition(".")[2] for item in value.arguments if isinstance(item, External))


def prefix_of(call: Call) -> str:
    """Return the prefix of `with env.prefixed("NAME_")` of environs; "" for other calls."""
    first = plain(call.arguments[0]) if call.arguments else ""
    return first if call.name.endswith(".prefixed") and isinstance(first, str) else ""


def raises(block: list[ast.stmt]) -> bool:
    return any(isinstance(statement, ast.Raise) or is_exit(statement) for statement in block)


def is_exit(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "sys.exit"
    )


def returns(block: list[ast.stmt]) -> bool:
    return bool(block) and isinstance(block[-1], ast.Return)


def duplicate(names: Mapping[str, Any]) -> dict[str, Any]:
    """Copy names whose values a branch may change."""
    return {name: copied(value) for name, value in names.items()}


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def merge(branches: list[dict[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names after one of several branches."""
    if len(branches) == 1:
        return branches[0]
    names = dict.fromkeys(name for branch in branches for name in branch)
    return {name: either(*(branch[name] for branch in branches if name in branch)) for name in names}
