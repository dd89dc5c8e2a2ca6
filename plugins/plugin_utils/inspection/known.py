"""What settings modules call outside of the project: the environment, its parsers, paths, and a few builtins."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse, urlsplit

from .tree import Tree
from .values import UNKNOWN, Call, External, FromEnvironment, lift, names_of, plain

REQUIRED = object()
TRUE = ("1", "true", "yes", "y", "on", "t", "ok")
ENGINES = {
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "pgsql": "django.db.backends.postgresql",
    "psql": "django.db.backends.postgresql",
    "postgis": "django.contrib.gis.db.backends.postgis",
    "mysql": "django.db.backends.mysql",
    "mysql2": "django.db.backends.mysql",
    "sqlite": "django.db.backends.sqlite3",
    "oracle": "django.db.backends.oracle",
}
# Objects of django-environ and environs, and their methods.
READER = re.compile(r"^(?:environ|environs)\.(?:\w*Env|env)(?:\(\))?(?:\.(\w+))?$")
DATABASE_METHODS = ("db", "db_url", "dj_db_url")


@dataclass
class Read:
    """An environment variable that a module reads: where, and whether it must be set."""

    name: str
    required: bool
    file: str
    line: int
    # The class of django-configurations that reads it.
    owner: str = ""


@dataclass
class Environment:
    """The variables of a release, and what the project reads of them."""

    given: dict[str, Any]
    reads: list[Read] = field(default_factory=list)
    # Defaults that environ.Env(NAME=(type, default)) gives.
    scheme: dict[str, Any] = field(default_factory=dict)
    # Files that it opens, each with the file and line of the call.
    opened: list[tuple[str, str, int]] = field(default_factory=list)
    prefix: str = ""

    def read(self, name: Any, default: Any = REQUIRED, place: tuple[str, int] = ("", 0)) -> Any:
        """Return the value of a variable in the environment of a release."""
        if not isinstance(name, str):
            return UNKNOWN
        name = self.prefix + name
        if default is REQUIRED and name in self.scheme:
            scheme = self.scheme[name]
            default = scheme[1] if isinstance(scheme, list | tuple) and len(scheme) > 1 else REQUIRED
        self.reads.append(Read(name, default is REQUIRED, *place))
        names = frozenset({name}) | (names_of(default) if default is not REQUIRED else frozenset())
        if name in self.given:
            return FromEnvironment(frozenset({name}), self.given[name])
        default = UNKNOWN if default is REQUIRED else default
        return FromEnvironment(names, default.value if isinstance(default, FromEnvironment) else default)

    def open(self, path: Any, mode: Any, place: tuple[str, int]) -> None:
        """Note that a module reads a file."""
        path = plain(path)
        if isinstance(path, str | PurePosixPath) and isinstance(mode, str) and not re.search("[wax+]", mode):
            self.opened.append((str(path), *place))

    @contextlib.contextmanager
    def uncertain(self) -> Iterator[None]:
        """Run code that a release may not run: it needs neither the variables nor the files."""
        reads, opened = len(self.reads), len(self.opened)
        try:
            yield
        finally:
            for read in self.reads[reads:]:
                read.required = False
            del self.opened[opened:]

    def load(self, tree: Tree, path: Any) -> None:
        """Set the variables of a file that the release has, such as one for python-dotenv."""
        path, top = plain(path), PurePosixPath(tree.folder.as_posix())
        if not isinstance(path, str | PurePosixPath):
            return
        inside = str(PurePosixPath(path).relative_to(top)) if PurePosixPath(path).is_relative_to(top) else str(path)
        if inside in tree.files:
            for name, value in re.findall(r"^\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", tree.read(inside), re.M):
                self.given.setdefault(name, value.strip("'\""))

    def configuration_value(self, owner: str, name: str, value: Any) -> Any:
        """Return what an attribute of a class of django-configurations is; values.Value reads DJANGO_NAME."""
        if not isinstance(value, Call) or not re.match(r"(configurations\.)?values\.\w*Value$", value.name):
            return value
        kind = value.name.rpartition(".")[2]
        variable = plain(value.keywords.get("environ_name") or name)
        prefix = value.keywords.get("environ_prefix", "DJANGO")
        if isinstance(variable, str) and isinstance(prefix, str | None):
            variable = f"{prefix}_{variable}" if prefix and kind != "DatabaseURLValue" else variable
        if kind == "DatabaseURLValue":
            variable = "DATABASE_URL"
        default = REQUIRED if kind == "SecretValue" else value.arguments[0] if value.arguments else None
        found = self.read(variable, default, ("", 0))
        self.reads[-1].owner = owner
        return {"default": cast("db", found)} if kind == "DatabaseURLValue" else cast(kind[:-5].lower(), found)


def known_attribute(name: str) -> Any:
    """Return an attribute of a module outside of the project."""
    values = {
        "dj_database_url.DEFAULT_ENV": "DATABASE_URL",
        "sys.argv": ["gunicorn"],
        "sys.modules": {},
        "sys.platform": "linux",
        "os.name": "posix",
        "os.sep": "/",
    }
    return values[name] if name in values else External(name)


def call_known(
    environment: Environment,
    tree: Tree,
    name: str,
    arguments: list[Any],
    keywords: dict[str, Any],
    place: tuple[str, int],
) -> Any:
    """Return what a call of something outside of the project gives: a Call where it is not known."""
    first = arguments[0] if arguments else UNKNOWN
    if name in ("os.environ.get", "os.getenv", "os.environ.pop", "os.environ.setdefault"):
        if name == "os.environ.setdefault" and isinstance(first, str):
            environment.given.setdefault(first, arguments[1] if len(arguments) > 1 else "")
        return environment.read(first, default_of(arguments, keywords, None), place)
    if match := READER.match(name):
        return call_reader(environment, tree, match[1] or "", name, arguments, keywords, place)
    if name in ("open", "io.open", "codecs.open"):
        environment.open(first, keywords.get("mode", arguments[1] if len(arguments) > 1 else "r"), place)
        return Call(name, arguments, keywords)
    if name in ("dotenv.load_dotenv", "decouple.RepositoryEnv", "decouple.RepositoryIni"):
        if name.startswith("decouple."):
            environment.open(first, "r", place)
        environment.load(tree, first)
        return Call(name, arguments, keywords)
    if re.fullmatch(r"decouple\.(config|(Auto)?Config\(\))", name):
        found = environment.read(first, default_of(arguments, keywords, REQUIRED), place)
        return cast(type_name(keywords.get("cast")), found)
    if re.fullmatch(r"dj_database_url\.(config|parse)", name):
        return call_database_url(environment, name, arguments, keywords, place)
    if match := re.fullmatch(r"(dj_email_url|django_cache_url|dj_cache_url|dj_redis_url)\.(config|parse)", name):
        variable = "EMAIL_URL" if "email" in match[1] else "CACHE_URL"
        if match[2] == "parse":
            return lift(lambda _: UNKNOWN, first)
        found = environment.read(keywords.get("env", variable), default_of([None, *arguments], keywords, None), place)
        return lift(lambda _: UNKNOWN, found)
    if re.search(r"(^|\.)(u?gettext(_lazy|_noop)?|_)$", name) and arguments:
        return first
    function = FUNCTIONS.get(name)
    if function is not None and not keywords:
        return lift(function, *arguments)
    if name.startswith("os.path.") and name.rpartition(".")[2] in ("exists", "isfile", "isdir"):
        return lift(lambda path: has_file(tree, path), first)
    return Call(name, arguments, keywords)


def default_of(arguments: list[Any], keywords: dict[str, Any], missing: Any) -> Any:
    """Return the default that a call gives for a variable."""
    if "default" in keywords:
        return keywords["default"]
    return arguments[1] if len(arguments) > 1 else missing


def call_reader(
    environment: Environment,
    tree: Tree,
    method: str,
    name: str,
    arguments: list[Any],
    keywords: dict[str, Any],
    place: tuple[str, int],
) -> Any:
    """Call an object of django-environ or environs."""
    if not method and not name.endswith(("()", ".env")):
        environment.scheme |= keywords
        return Call(name, arguments, keywords)
    if method == "prefixed":
        return Call(name, arguments, keywords)
    if method in ("read_env", "read_envfile", "seal", "add_parser"):
        environment.load(tree, arguments[0] if arguments else keywords.get("env_file", keywords.get("path", UNKNOWN)))
        return None
    if method.endswith("_url_config"):
        return UNKNOWN
    defaults = {"db": "DATABASE_URL", "db_url": "DATABASE_URL", "cache": "CACHE_URL", "cache_url": "CACHE_URL"}
    first = arguments[0] if arguments else keywords.get("var", defaults.get(method, "EMAIL_URL"))
    # In environs the second argument is the default, in django-environ's env() the cast.
    position = 2 if not method and name.startswith("environ.") else 1
    default = keywords.get("default", arguments[position] if len(arguments) > position else REQUIRED)
    kind = method or type_name(keywords.get("cast", arguments[1] if position == 2 and len(arguments) > 1 else None))
    if not method and first in environment.scheme:
        scheme = environment.scheme[first]
        kind = kind or type_name(scheme[0] if isinstance(scheme, list | tuple) and scheme else scheme)
    found = cast(kind, environment.read(first, default, place))
    engine = plain(keywords.get("engine"))
    if method in DATABASE_METHODS and isinstance(engine, str):
        return lift(lambda value: value | {"ENGINE": engine} if isinstance(value, dict) else value, found)
    return found


def call_database_url(
    environment: Environment, name: str, arguments: list[Any], keywords: dict[str, Any], place: tuple[str, int]
) -> Any:
    if name.endswith(".parse"):
        found = cast("db", arguments[0] if arguments else keywords.get("url", UNKNOWN))
    else:
        variable = arguments[0] if arguments else keywords.get("env", "DATABASE_URL")
        found = cast("db", environment.read(variable, default_of(arguments, keywords, None), place))
    engine = plain(keywords.get("engine"))
    if isinstance(engine, str):
        found = lift(lambda value: value | {"ENGINE": engine} if isinstance(value, dict) else value, found)
    return found


def type_name(value: Any) -> str:
    """Return the name of a type that a variable is cast to."""
    name = value.name if isinstance(value, External | Call) else ""
    name = name.rpartition(".")[2].lower().removesuffix("()")
    return {"csv": "list", "strtobool": "bool", "dj_database_url.parse": "db", "parse": "db", "db_url": "db"}.get(
        name, name
    )


def cast(kind: str, value: Any) -> Any:
    """Return a value as a method such as env.bool returns it."""
    function = CASTS.get(kind)
    return lift(function, value) if function else value


def to_bool(value: Any) -> Any:
    return value.strip().lower() in TRUE if isinstance(value, str) else bool(value)


def to_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value or [])


def parse_database(url: Any) -> Any:
    """Return Django's settings of a database URL."""
    if not isinstance(url, str):
        return url if isinstance(url, dict) else {}
    parts = urlparse(url)
    scheme = parts.scheme.partition("+")[0]
    engine = ENGINES.get(scheme, "django.contrib.gis.db.backends.spatialite" if scheme == "spatialite" else scheme)
    return {
        "ENGINE": engine,
        "NAME": unquote(parts.path.lstrip("/")) or (":memory:" if "sqlite" in engine else ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def has_file(tree: Tree, path: Any) -> Any:
    top = PurePosixPath(tree.folder.as_posix())
    if not PurePosixPath(path).is_relative_to(top):
        return UNKNOWN
    inside = str(PurePosixPath(path).relative_to(top))
    return inside in tree.files or inside in tree.folders or inside == "."


def builtin_dict(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments)


CASTS: dict[str, Callable[[Any], Any]] = {
    "bool": to_bool,
    "boolean": to_bool,
    "int": int,
    "positiveinteger": int,
    "integer": int,
    "float": float,
    "str": str,
    "list": to_list,
    "tuple": lambda value: tuple(to_list(value)),
    "set": lambda value: set(to_list(value)),
    "json": lambda value: json.loads(value) if isinstance(value, str) else value,
    "path": lambda value: PurePosixPath(value),
    "db": parse_database,
    "db_url": parse_database,
    "dj_db_url": parse_database,
    "cache": lambda value: {"LOCATION": value},
    "cache_url": lambda value: {"LOCATION": value},
    "dj_cache_url": lambda value: {"LOCATION": value},
    "dict": lambda value: UNKNOWN if isinstance(value, str) else value,
    "email": lambda value: UNKNOWN,
    "email_url": lambda value: UNKNOWN,
    "dj_email_url": lambda value: UNKNOWN,
}


def make_path(*parts: Any) -> PurePosixPath:
    return PurePosixPath(*parts)


def same_path(path: Any) -> Any:
    return path


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pathlib.Path": make_path,
    "pathlib.PurePath": make_path,
    "environ.Path": make_path,
    "path.Path": make_path,
    "unipath.Path": make_path,
    "os.path.join": lambda *parts: str(PurePosixPath(*parts)),
    "os.path.dirname": lambda path: str(PurePosixPath(path).parent),
    "os.path.basename": lambda path: PurePosixPath(path).name,
    "os.path.abspath": lambda path: normal(str(path)),
    "os.path.normpath": lambda path: normal(str(path)),
    "os.path.realpath": lambda path: normal(str(path)),
    "os.path.expanduser": same_path,
    "os.fspath": str,
    "str": lambda value="": str(value) if isinstance(value, str | int | float | PurePosixPath) else UNKNOWN,
    "int": lambda value=0: int(value),
    "float": lambda value=0.0: float(value),
    "bool": lambda value=False: bool(value),
    "len": len,
    "list": lambda value=(): list(value),
    "tuple": lambda value=(): tuple(value),
    "set": lambda value=(): set(value),
    "frozenset": lambda value=(): set(value),
    "dict": builtin_dict,
    "sorted": sorted,
    "min": min,
    "max": max,
    "sum": sum,
    "isinstance": lambda *_: UNKNOWN,
    "json.loads": json.loads,
    "ast.literal_eval": ast.literal_eval,
    "distutils.util.strtobool": to_bool,
    "urllib.parse.quote": lambda value, *_: value,
    "urllib.parse.quote_plus": lambda value, *_: value,
    "urllib.parse.urlparse": urlparse,
    "urllib.parse.urlsplit": urlsplit,
    "urllib.parse.unquote": lambda text, *_: unquote(text),
    "platform.system": lambda: "Linux",
}


def normal(path: str) -> str:
    """Return a path without its "..", as os.path.normpath does on the host."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == ".." and kept and kept[-1] != "..":
            kept.pop()
        elif part not in (".", "") or not kept:
            kept.append(part)
    return "/".join(kept)
