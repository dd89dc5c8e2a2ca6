"""The values of settings are known without running them; what is not known is Unknown, never an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspected import write
from plugin_utils.inspection.evaluate import Evaluator
from plugin_utils.inspection.known import Environment
from plugin_utils.inspection.tree import Tree
from plugin_utils.inspection.values import Either, FromEnvironment, Unknown, names_of, plain, possibilities

IMPORTS = (
    "import os, environ, decouple, dj_database_url\nfrom pathlib import Path\nenv = environ.Env(ON=(bool, True))\n"
)
URL = "postgresql://ada:secret@db.example.org:5433/notes"


def evaluate(folder: Path, text: str, given: dict[str, Any] | None = None, **files: str) -> dict[str, Any]:
    """Return the names of a module; keyword arguments are other modules beside it."""
    modules = {f"{name}.py": content for name, content in files.items()}
    write(folder, {"settings.py": IMPORTS + text} | modules)
    evaluator = Evaluator(Tree(folder), [""], Environment(given or {}))
    return evaluator.module("settings.py").names | {"reads": evaluator.environment.reads, "missing": evaluator.missing}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2", 3),
        ("'a' + str(1)", "a1"),
        ("f'{1}-{\"b\"}'", "1-b"),
        ("'%s/%s' % ('a', 'b')", "a/b"),
        ("[1, *[2], 3]", [1, 2, 3]),
        ("{'a': 1, **{'b': 2}}", {"a": 1, "b": 2}),
        ("[x.upper() for x in ['a', 'b'] if x != 'b']", ["A"]),
        ("'a,b'.split(',')", ["a", "b"]),
        ("None or 'x'", "x"),
        ("1 if [] else 2", 2),
        ("'test' in __import__('sys').argv", None),
        ("(lambda x: x + 1)(1)", 2),
        ("os.path.join('a', 'b')", "a/b"),
        ("str(Path('/a/b').parent / 'c')", "/a/c"),
        ("os.path.join(os.path.dirname('/a/b/c'), '..')", "/a/b/.."),
        ("{'a': {'b': 1}}['a']['b']", 1),
    ],
)
def test_expressions(tmp_path: Path, expression: str, value: Any) -> None:
    found = evaluate(tmp_path, f"X = {expression}")["X"]
    assert isinstance(found, Unknown) if value is None else found == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("os.environ['NAME']", "yes"),
        ("os.environ.get('NAME', 'no')", "yes"),
        ("os.getenv('NAME')", "yes"),
        ("os.environ['NAME'].upper()", "YES"),
        ("os.environ.get('NAME', '') == 'yes'", True),
        ("env('NAME')", "yes"),
        ("env.bool('NAME', False)", True),
        ("env.list('NAME')", ["yes"]),
        ("decouple.config('NAME', default=False, cast=bool)", True),
        ("bool(os.environ.get('NAME') or 0)", True),
    ],
)
def test_environment(tmp_path: Path, expression: str, value: Any) -> None:
    found = evaluate(tmp_path, f"X = {expression}", {"NAME": "yes"})["X"]
    assert isinstance(found, FromEnvironment)
    assert found.names == {"NAME"}
    assert plain(found) == value


@pytest.mark.parametrize(
    ("expression", "required", "value"),
    [
        ("os.environ['NAME']", True, None),
        ("env('NAME')", True, None),
        ("env('NAME', default='d')", False, "d"),
        ("env.str('NAME', 'd')", False, "d"),
        ("env('ON')", False, True),
        ("decouple.config('NAME')", True, None),
        ("os.environ.get('NAME', 'd')", False, "d"),
    ],
)
def test_required_variables(tmp_path: Path, expression: str, required: bool, value: Any) -> None:
    found = evaluate(tmp_path, f"X = {expression}")
    assert [read.required for read in found["reads"]] == [required]
    if value is not None:
        assert plain(found["X"]) == value


@pytest.mark.parametrize(
    "expression",
    [
        "dj_database_url.config()",
        "dj_database_url.parse(os.environ['DATABASE_URL'])",
        "dj_database_url.config(default='sqlite:///x', conn_max_age=60)",
        "env.db()",
        "env.db('DATABASE_URL', default='sqlite:///x')",
        "decouple.config('DATABASE_URL', cast=dj_database_url.parse)",
    ],
)
def test_database_urls(tmp_path: Path, expression: str) -> None:
    found = evaluate(tmp_path, f"X = {expression}", {"DATABASE_URL": URL})["X"]
    assert names_of(found) == {"DATABASE_URL"}
    database = plain(found)
    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert (database["HOST"], database["PORT"], database["NAME"]) == ("db.example.org", "5433", "notes")


def test_branches_of_unknown_conditions(tmp_path: Path) -> None:
    text = "import socket\nX = 1\nif socket.gethostname() == 'a':\n    X = 2\nelse:\n    Y = 3\n"
    found = evaluate(tmp_path, text)
    assert sorted(possibilities(found["X"])) == [1, 2]
    assert isinstance(found["X"], Either)
    assert found["Y"] == 3


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("case _:\n        X = 4", [2, 3, 4]),
        ("case _:\n        raise ValueError", [2, 3]),
        ("case 'c':\n        X = 4", [1, 2, 3, 4]),
    ],
)
def test_cases_of_match(tmp_path: Path, last: str, expected: list[int]) -> None:
    text = """X = 1
match os.environ["KIND"].split("/"):
    case ["a", *rest]:
        X = 2
        A = os.environ["ONLY_A"]
        open("a.json")
    case {"b": b, **more} | [str() as b, *more]:
        X = 3
        Y = b
"""
    found = evaluate(tmp_path, f"{text}    {last}\n")
    assert sorted(possibilities(found["X"])) == expected
    assert {read.name: read.required for read in found["reads"]} == {"KIND": True, "ONLY_A": False}
    assert names_of(found["Y"]) == {"KIND"}


def test_known_condition_takes_one_branch(tmp_path: Path) -> None:
    text = "DEBUG = os.environ.get('DEBUG', '0') == '1'\nX = 'a'\nif DEBUG:\n    X = 'b'\n"
    assert evaluate(tmp_path, text)["X"] == "a"
    assert evaluate(tmp_path, text, {"DEBUG": "1"})["X"] == "b"


def test_star_import_and_change(tmp_path: Path) -> None:
    base = "APPS = ['a']\n_HIDDEN = 1\nDATABASES = {'default': {}}\n"
    text = "from base import *\nAPPS += ['b']\nAPPS.append('c')\nDATABASES['default']['NAME'] = 'x'\n"
    found = evaluate(tmp_path, text, base=base)
    assert found["APPS"] == ["a", "b", "c"]
    assert found["DATABASES"] == {"default": {"NAME": "x"}}
    assert "_HIDDEN" not in found


def test_optional_module_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "local.py").unlink(missing_ok=True)
    write(
        tmp_path,
        {
            "config/__init__.py": "",
            "config/s.py": "try:\n    from .local import *\nexcept ImportError:\n    X = 1\nY = 2\n",
        },
    )
    evaluator = Evaluator(Tree(tmp_path), [""], Environment({}))
    found = evaluator.module("config/s.py").names
    assert (found["X"], found["Y"]) == (1, 2)
    assert evaluator.missing == []


def test_suppressed_errors_need_nothing(tmp_path: Path) -> None:
    text = "import contextlib\nwith contextlib.suppress(ImportError):\n    from .local import *\nY = 2\n"
    write(tmp_path, {"config/__init__.py": "", "config/s.py": text})
    evaluator = Evaluator(Tree(tmp_path), [""], Environment({}))
    assert evaluator.module("config/s.py").names["Y"] == 2
    assert evaluator.missing == []
    text = "from contextlib import suppress\nwith suppress({}):\n    KEY = os.environ['KEY']\n"
    for error, required in (("KeyError", False), ("OSError", True)):
        found = evaluate(tmp_path, text.format(error))
        assert [read.required for read in found["reads"]] == [required]


def test_variable_of_an_unknown_condition_is_not_required(tmp_path: Path) -> None:
    text = "import socket\nX = os.environ['NAME'] if socket.gethostname() == 'a' else ''\n"
    assert [read.required for read in evaluate(tmp_path, text)["reads"]] == [False]


def test_variable_that_may_be_missing(tmp_path: Path) -> None:
    text = "try:\n    KEY = os.environ['KEY']\nexcept KeyError:\n    KEY = 'insecure'\n"
    found = evaluate(tmp_path, text)
    assert [read.required for read in found["reads"]] == [False]
    assert "insecure" in possibilities(found["KEY"])


def test_function_of_the_project(tmp_path: Path) -> None:
    text = """
def required(name, default=None):
    if name in os.environ:
        return os.environ[name]
    return default

X = required("NAME", "d")
"""
    found = evaluate(tmp_path, text)["X"]
    assert names_of(found) == {"NAME"}
    assert plain(found) == "d"
    assert plain(evaluate(tmp_path, text, {"NAME": "v"})["X"]) == "v"


@pytest.mark.parametrize(
    "text",
    [
        "X = 1 / 0",
        "X = [][1]",
        "X = {}['a']",
        "X = undefined.attribute()",
        "import json\nX = json.loads('{')",
        "X = int('a')",
        "X = 'a' * 10**12",
        "def f(): return f()\nX = f()",
        "while True:\n    X = open('f').read()",
        "X = [y async for y in z]",
        "from . import settings\nX = settings.X",
        "class A(B, metaclass=C):\n    X = 1\nX = A.Y",
        "X = os.environ[os.environ['A']]",
        "match 1:\n    case 1:\n        X = 2",
        "X = (",
        "raise SystemExit\nX = 1",
    ],
)
def test_nothing_raises(tmp_path: Path, text: str) -> None:
    evaluate(tmp_path, text)
