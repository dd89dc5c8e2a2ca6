"""Evaluate expressions of a project from their syntax."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import ParseResult, SplitResult

from .known import REQUIRED, Environment, call_known, cast, has_file, known_attribute
from .tree import Tree
from .values import UNKNOWN, Call, Either, External, FromEnvironment, Unknown, either, is_known, lift, names_of, truth

DEEPEST_CALL = 6
MOST_ROUNDS = 60
MISSING = object()
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: up(a, b) if isinstance(a, PurePosixPath) else a - b,
    ast.Mult: lambda a, b: a * b if not (isinstance(b, int) and b > 10**6 and not isinstance(a, int | float)) else None,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitAnd: lambda a, b: a & b,
}
COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def up(path: PurePosixPath, levels: int) -> PurePosixPath:
    """Return the folder so many levels above, as environ.Path subtracts."""
    return path.parents[levels - 1]


@dataclass
class Function:
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: Scope


@dataclass
class Class:
    name: str
    scope: Scope
    bases: list[Any] = field(default_factory=list)
    # The types of attributes, as the code has them, and their lines.
    annotations: dict[str, tuple[str, int]] = field(default_factory=dict)

    def members(self) -> dict[str, Any]:
        """Return the names of the class and of its bases in the project."""
        found: dict[str, Any] = {}
        for base in reversed(self.bases):
            if isinstance(base, Class):
                found |= base.members()
        return found | self.scope.names


@dataclass
class Scope:
    """The names of a module or function, and the file and line that set each of them last."""

    file: str
    names: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    parent: Scope | None = None
    returned: list[Any] = field(default_factory=list)

    def lookup(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return MISSING


def pydantic_settings(evaluator: Expressions, made: Class, keywords: dict[str, Any]) -> Scope | None:
    """Return the object that a class of pydantic's BaseSettings makes from the environment; None for other classes."""
    classes = list(reversed(list(with_bases(made))))
    if not any(isinstance(base, External) and base.name.endswith(".BaseSettings") for base in classes):
        return None
    found = Scope(made.scope.file)
    own = [one for one in classes if isinstance(one, Class)]
    prefix = ""
    for one in own:
        configured = one.scope.names.get("model_config")
        inner = one.scope.names.get("Config")
        more = configured.keywords if isinstance(configured, Call) else configured
        more = inner.scope.names if isinstance(inner, Class) else more
        prefix = more.get("env_prefix", prefix) if isinstance(more, dict) else prefix
    for one in own:
        for name, (annotation, line) in one.annotations.items():
            default = one.scope.names.get(name, REQUIRED)
            found.names[name] = pydantic_field(evaluator, one, f"{prefix}{name}", annotation, default, line)
            found.places[name] = (one.scope.file, line)
    found.names |= keywords
    return found


def with_bases(made: Any) -> Iterator[Any]:
    yield made
    for base in made.bases if isinstance(made, Class) else ():
        yield from with_bases(base)


def pydantic_field(evaluator: Expressions, made: Class, name: str, kind: str, default: Any, line: int) -> Any:
    """Return what a field of pydantic's BaseSettings is in the environment of a release."""
    if isinstance(default, Call) and default.name.rpartition(".")[2] == "Field":
        words = default.keywords
        alias = words.get("validation_alias", words.get("alias", words.get("env")))
        name = alias if isinstance(alias, str) else name
        first = default.arguments[0] if default.arguments else REQUIRED
        default = words.get("default", UNKNOWN if "default_factory" in words else first)
        default = REQUIRED if default is Ellipsis else default
    found = evaluator.environment.read(name.upper(), default, (made.scope.file, line))
    kind = re.sub(r"Optional\[(.*)\]|(.*?)\s*\|\s*None", r"\1\2", kind).rpartition("typing.")[2].lower()
    # What is no simple type is JSON.
    return cast("json" if re.match(r"(list|tuple|set|frozenset|dict|sequence)\b", kind) else kind, found)


class Stop(Exception):  # noqa: N818
    """The block ends here: return, raise, continue, break, or a module that is missing."""


class Expressions:
    """Evaluates expressions; Evaluator adds statements."""

    tree: Tree
    environment: Environment
    depth: int

    def block(self, statements: list[ast.stmt], scope: Scope) -> None:
        raise NotImplementedError

    def assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        raise NotImplementedError

    def include(self, files: list[Any], scope: Scope) -> None:
        raise NotImplementedError

    def value(self, node: ast.expr, scope: Scope) -> Any:
        """Return the value of an expression; Unknown where only running it would tell."""
        handler = getattr(self, f"of_{type(node).__name__.lower()}", None)
        return handler(node, scope) if handler else UNKNOWN

    def of_constant(self, node: ast.Constant, scope: Scope) -> Any:
        return node.value

    def of_name(self, node: ast.Name, scope: Scope) -> Any:
        found = scope.lookup(node.id)
        return External(node.id) if found is MISSING else found

    def of_namedexpr(self, node: ast.NamedExpr, scope: Scope) -> Any:
        value = self.value(node.value, scope)
        self.assign(node.target, value, scope)
        return value

    def of_attribute(self, node: ast.Attribute, scope: Scope) -> Any:
        holder = self.value(node.value, scope)
        if isinstance(holder, Scope):
            return holder.names.get(node.attr, UNKNOWN)
        if isinstance(holder, Class):
            return holder.members().get(node.attr, UNKNOWN)
        if isinstance(holder, External):
            return known_attribute(f"{holder.name}.{node.attr}")
        if isinstance(holder, Call):
            return External(f"{holder.name}().{node.attr}")
        name = ast.unparse(node)
        if name in scope.names:
            return scope.names[name]
        return lift(lambda value: path_attribute(value, node.attr), holder)

    def of_subscript(self, node: ast.Subscript, scope: Scope) -> Any:
        holder = self.value(node.value, scope)
        key = self.value(node.slice, scope)
        if isinstance(holder, External) and holder.name == "os.environ":
            return self.environment.read(key, place=(scope.file, node.lineno))
        return lift(lambda value, key: value[key], holder, key)

    def of_slice(self, node: ast.Slice, scope: Scope) -> Any:
        parts = [self.value(part, scope) if part else None for part in (node.lower, node.upper, node.step)]
        return lift(slice, *parts)

    def of_binop(self, node: ast.BinOp, scope: Scope) -> Any:
        operator = OPERATORS.get(type(node.op))
        left, right = self.value(node.left, scope), self.value(node.right, scope)
        result = lift(joined(operator), left, right) if operator else UNKNOWN
        if isinstance(node.op, ast.Add) and result == UNKNOWN:
            # The known part of `[...] + static(...)`.
            return next((side for side in (left, right) if isinstance(side, list)), UNKNOWN)
        return result

    def of_boolop(self, node: ast.BoolOp, scope: Scope) -> Any:
        """Return what `a or b` gives, with the environment variables of all that was looked at."""
        seen: frozenset[str] = frozenset()
        possible: list[Any] = []
        for part in node.values:
            value = self.value(part, scope)
            seen |= value.names if isinstance(value, FromEnvironment | Unknown) else frozenset()
            answer = truth(value)
            if answer is None:
                possible.append(value)
            elif answer == isinstance(node.op, ast.Or) or part is node.values[-1]:
                possible.append(value)
                break
        result = either(*possible)
        return FromEnvironment(seen, result) if seen and not isinstance(result, FromEnvironment | Unknown) else result

    def of_unaryop(self, node: ast.UnaryOp, scope: Scope) -> Any:
        value = self.value(node.operand, scope)
        if isinstance(node.op, ast.Not):
            return lift(lambda item: UNKNOWN if truth(item) is None else not truth(item), value)
        return lift(lambda item: -item if isinstance(node.op, ast.USub) else item, value)

    def of_compare(self, node: ast.Compare, scope: Scope) -> Any:
        left, right = self.value(node.left, scope), self.value(node.comparators[0], scope)
        compare = COMPARISONS[type(node.ops[0])]
        if isinstance(right, External) and right.name == "os.environ" and isinstance(left, str):
            known = left in self.environment.given
            self.environment.read(left, None, place=(scope.file, node.lineno))
            return FromEnvironment(frozenset({left}), known == isinstance(node.ops[0], ast.In))
        if len(node.ops) > 1 or isinstance(left, External | Call | Scope) or isinstance(right, External | Call | Scope):
            return Unknown(names_of([left, right]))
        return lift(compare, left, right)

    def of_ifexp(self, node: ast.IfExp, scope: Scope) -> Any:
        test = self.value(node.test, scope)
        answer = truth(test)
        if answer is None:
            with self.environment.uncertain():
                return either(self.value(node.body, scope), self.value(node.orelse, scope))
        result = self.value(node.body if answer else node.orelse, scope)
        return FromEnvironment(test.names, result) if isinstance(test, FromEnvironment) and is_known(result) else result

    def of_joinedstr(self, node: ast.JoinedStr, scope: Scope) -> Any:
        parts = [
            self.value(part.value if isinstance(part, ast.FormattedValue) else part, scope) for part in node.values
        ]
        return lift(lambda *values: "".join(text(value) for value in values), *parts)

    def of_list(self, node: ast.List, scope: Scope) -> Any:
        found: list[Any] = []
        for item in node.elts:
            value = self.value(item.value if isinstance(item, ast.Starred) else item, scope)
            if not isinstance(item, ast.Starred):
                found.append(value)
            elif isinstance(value, list | tuple | set | dict):
                found += list(value)
            else:
                found += [
                    item
                    for part in [value]
                    if isinstance(part, Either)
                    for one in part.values
                    if isinstance(one, list | tuple)
                    for item in one
                ]
        return found

    def of_tuple(self, node: ast.Tuple, scope: Scope) -> Any:
        return tuple(self.of_list(node, scope))

    def of_set(self, node: ast.Set, scope: Scope) -> Any:
        return lift(lambda *items: set(items), *self.of_list(node, scope))

    def of_dict(self, node: ast.Dict, scope: Scope) -> Any:
        found: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            value = self.value(item, scope)
            if key is None:
                value = value.value if isinstance(value, FromEnvironment) else value
                found |= value if isinstance(value, dict) else {}
                continue
            name = self.value(key, scope)
            name = name.value if isinstance(name, FromEnvironment) else name
            try:
                found[name] = value
            except TypeError:
                continue
        return found

    def of_listcomp(self, node: ast.ListComp, scope: Scope) -> Any:
        values = self.value(node.generators[0].iter, scope)
        if isinstance(values, FromEnvironment) and isinstance(values.value, list | tuple):
            return FromEnvironment(values.names, self.of_items(node, values.value, scope))
        return self.of_items(node, values, scope)

    def of_items(self, node: ast.ListComp, values: Any, scope: Scope) -> Any:
        """Return what a comprehension makes of these values."""
        if isinstance(values, FromEnvironment | Unknown) or len(node.generators) > 1:
            return lift(lambda _: UNKNOWN, values) if not is_known(values) else UNKNOWN
        if not isinstance(values, list | tuple | dict | set):
            return UNKNOWN
        inner, found = Scope(scope.file, parent=scope), []
        for item in list(values)[:MOST_ROUNDS]:
            self.assign(node.generators[0].target, item, inner)
            if all(truth(self.value(test, inner)) is not False for test in node.generators[0].ifs):
                found.append(self.value(node.elt, inner))
        return found

    of_setcomp = of_generatorexp = of_listcomp

    def of_lambda(self, node: ast.Lambda, scope: Scope) -> Any:
        return Function(node, scope)

    def of_call(self, node: ast.Call, scope: Scope) -> Any:
        arguments = self.of_list(ast.List(node.args), scope)
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value, scope)
            keywords |= {keyword.arg: value} if keyword.arg else value if isinstance(value, dict) else {}
        place = (scope.file, node.lineno)
        if isinstance(node.func, ast.Attribute):
            holder = self.value(node.func.value, scope)
            if not isinstance(holder, External | Scope | Class | Call):
                if node.func.attr in ("read_text", "read_bytes", "open") and isinstance(holder, PurePosixPath):
                    given = arguments[0] if arguments else "r"
                    mode = keywords.get("mode", given) if node.func.attr == "open" else "r"
                    self.environment.open(holder, mode, place)
                return self.method(holder, node.func.attr, arguments, keywords)
        called = self.value(node.func, scope)
        if isinstance(called, Function):
            return self.call_function(called, arguments, keywords)
        if isinstance(called, External | Call):
            name = called.name if isinstance(called, External) else f"{called.name}()"
            if name in ("locals", "globals", "vars"):
                return scope
            if name in ("split_settings.tools.include", "split_settings.include"):
                return self.include(arguments, scope)
            return call_known(self.environment, self.tree, name, arguments, keywords, place)
        if isinstance(called, PurePosixPath):
            return lift(called.joinpath, *arguments)
        if isinstance(called, Class):
            return pydantic_settings(self, called, keywords) or Call(called.name, arguments, keywords)
        return Unknown(names_of([arguments, keywords]))

    def method(self, holder: Any, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Call a method of a text, list, mapping or path."""
        inner = holder.value if isinstance(holder, FromEnvironment) else holder
        if isinstance(inner, list | dict | set) and name in (
            "append",
            "extend",
            "insert",
            "update",
            "add",
            "setdefault",
            "remove",
        ):
            try:
                change(inner, name, arguments, keywords)
                return inner.get(arguments[0]) if name == "setdefault" else None
            except (TypeError, ValueError, IndexError, KeyError):
                return UNKNOWN
        if isinstance(inner, dict) and name in ("get", "pop") and arguments:
            return lift(lambda key: inner.get(key, arguments[1] if len(arguments) > 1 else None), arguments[0])
        return lift(lambda value, *rest: safe_method(self.tree, value, name, rest), holder, *arguments)

    def call_function(self, function: Function, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Return what a function of the project returns; Unknown where it calls too deep."""
        if self.depth >= DEEPEST_CALL:
            return Unknown(names_of([arguments, keywords]))
        inner = Scope(function.scope.file, parent=function.scope)
        bind(self, function, arguments, keywords, inner)
        self.depth += 1
        before = len(self.environment.reads)
        try:
            if isinstance(function.node, ast.Lambda):
                return self.value(function.node.body, inner)
            self.block(function.node.body, inner)
        except Stop:
            pass
        finally:
            self.depth -= 1
        result = either(*inner.returned) if inner.returned else None
        # What decided which value is returned.
        seen = frozenset(read.name for read in self.environment.reads[before:])
        return FromEnvironment(seen, result) if seen and is_known(result) else result


def bind(
    evaluator: Expressions, function: Function, arguments: list[Any], keywords: dict[str, Any], inner: Scope
) -> None:
    """Give the parameters of a function their values."""
    wanted = function.node.args
    parameters = [*wanted.posonlyargs, *wanted.args]
    defaults = [None] * (len(parameters) - len(wanted.defaults)) + list(wanted.defaults)
    pairs = [*zip(parameters, defaults, strict=True), *zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True)]
    for parameter, default in pairs:
        inner.names[parameter.arg] = evaluator.value(default, function.scope) if default else UNKNOWN
    for parameter, value in zip(parameters, arguments, strict=False):
        inner.names[parameter.arg] = value
    if wanted.vararg:
        inner.names[wanted.vararg.arg] = tuple(arguments[len(parameters) :])
    if wanted.kwarg:
        inner.names[wanted.kwarg.arg] = dict(keywords)
    inner.names |= keywords


def joined(operator: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Let lists and tuples be added to each other."""

    def apply(left: Any, right: Any) -> Any:
        if (isinstance(left, list) and isinstance(right, tuple)) or (
            isinstance(left, tuple) and isinstance(right, list)
        ):
            return [*left, *right]
        if (isinstance(left, PurePosixPath) and isinstance(right, str)) or isinstance(
            left, list | tuple | dict | str | int | float | PurePosixPath | set
        ):
            return operator(left, right)
        return UNKNOWN

    return apply


def text(value: Any) -> str:
    if isinstance(value, str | int | float | PurePosixPath):
        return str(value)
    raise TypeError


def path_attribute(value: Any, name: str) -> Any:
    if isinstance(value, PurePosixPath) and name in ("parent", "parents", "name", "stem", "suffix", "root"):
        # Those of environ.Path have a root, which is the path as text.
        return str(value) if name == "root" else getattr(value, name)
    if isinstance(value, ParseResult | SplitResult) and not name.startswith("_"):
        return getattr(value, name)
    return UNKNOWN


def change(holder: Any, name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Apply a method that changes a list, mapping or set."""
    if name == "extend":
        holder.extend(arguments[0] if isinstance(arguments[0], list | tuple) else [])
    elif name == "update" and isinstance(holder, dict):
        more = arguments[0] if arguments else {}
        more = more.value if isinstance(more, FromEnvironment) else more
        holder.update(more if isinstance(more, dict) else {}, **keywords)
    else:
        getattr(holder, name)(*arguments)


def safe_method(tree: Tree, value: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method that changes nothing."""
    if isinstance(value, PurePosixPath):
        return path_method(tree, value, name, arguments)
    if isinstance(value, str) and name == "get_secret_value":
        # Of pydantic's SecretStr.
        return value
    if isinstance(value, str | dict | list | tuple | bytes) and not name.startswith("_") and name != "format_map":
        result = getattr(value, name)(*arguments)
        return list(result) if name in ("items", "keys", "values") else result
    return UNKNOWN


def path_method(tree: Tree, path: PurePosixPath, name: str, arguments: tuple[Any, ...]) -> Any:
    if name in ("resolve", "absolute", "expanduser", "__call__"):
        return path
    if name in ("joinpath", "path"):
        return path.joinpath(*arguments)
    if name in ("as_posix", "__str__"):
        return str(path)
    if name in ("exists", "is_file", "is_dir"):
        return has_file(tree, path)
    if name in ("with_name", "with_suffix", "relative_to"):
        return getattr(path, name)(*arguments)
    return UNKNOWN
