"""Queues that calls in the code name, as a deployment finds them on the host."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from inspected import write

from hostctl.in_app.queue_calls import queues_in_code


def found(folder: Path, files: dict[str, str]) -> dict[str, str]:
    return {queue: place for place, queue in queues_in_code(write(folder, files))}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "django", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "django.conf", SimpleNamespace(settings=SimpleNamespace(MAIL_QUEUE="mail")))


@pytest.mark.parametrize(
    "code",
    [
        'send.apply_async(queue="mail")\n',
        'send.s(1).set(queue="mail")\n',
        '@shared_task(queue="mail")\ndef send(): pass\n',
        'QUEUE = "mail"\nsend.apply_async(queue=QUEUE)\n',
        'QUEUE: Final = "mail"\nsend.apply_async(queue=QUEUE)\n',
        'app.send_task("x", queue=settings.MAIL_QUEUE)\n',
        'class Send(Task):\n    queue = "mail"\n',
    ],
)
def test_queue_of_a_call(tmp_path: Path, code: str) -> None:
    line = len(code.splitlines()) if "def send" not in code else 1
    assert found(tmp_path, {"notes/views.py": code}) == {"mail": f"notes/views.py:{line}"}


def test_application_with_a_name_of_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"docs/views.py": 'send.apply_async(queue="mail")\n', "docs/tests/x.py": 'f.apply_async(queue="no")\n'}
    assert found(tmp_path, files) == {}
    monkeypatch.setitem(sys.modules, "docs", SimpleNamespace(__file__=str(tmp_path / "docs/__init__.py")))
    assert found(tmp_path, files) == {"mail": "docs/views.py:1"}


def test_project_in_a_folder_with_a_name_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"demo/notes/views.py": 'send.apply_async(queue="mail")\n'}
    assert found(tmp_path, files) == {}
    monkeypatch.syspath_prepend(str(tmp_path / "demo"))
    assert found(tmp_path, files) == {"mail": "demo/notes/views.py:1"}


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("from notes.names import MAIL", "MAIL"),
        ("from notes.names import MAIL as QUEUE", "QUEUE"),
        ("from notes.names import *", "MAIL"),
        ("from ...names import MAIL", "MAIL"),
        ("from ... import names", "names.MAIL"),
        ("from notes import names as own", "own.MAIL"),
        ("from ... import OF_PACKAGE", "OF_PACKAGE"),
    ],
)
def test_name_of_another_module_that_is_not_loaded(tmp_path: Path, imports: str, name: str) -> None:
    command = f"def handle():\n    {imports}\n    send.apply_async(queue={name})\n"
    if imports.endswith("*"):
        command = f"{imports}\n\nsend.apply_async(queue={name})\n"
    package = {"notes/__init__.py": 'OF_PACKAGE = "mail"\n', "notes/names.py": 'MAIL: str = "mail"\n'}
    files = package | {"notes/management/commands/send.py": command}
    assert found(tmp_path, files) == {"mail": "notes/management/commands/send.py:3"}


def test_name_of_a_module_below_a_folder_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    command = "from notes.names import MAIL\nsend.apply_async(queue=MAIL)\n"
    assert found(tmp_path, {"src/notes/names.py": 'MAIL = "mail"\n', "src/notes/x.py": command}) == {
        "mail": "src/notes/x.py:2"
    }


def test_names_outside_of_the_release_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"names.py": 'MAIL = "mail"\n'})
    command = "from ..names import MAIL\nfrom ......names import MAIL\nsend.apply_async(queue=MAIL)\n"
    assert found(tmp_path / "release", {"x.py": command}) == {}


def test_values_are_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth of a QuerySet, and the class of a lazy object, may be a query."""

    class Query:
        def __bool__(self) -> bool:
            raise AssertionError("evaluated")

        __class__ = property(__bool__)

    monkeypatch.setattr(sys.modules["django.conf"].settings, "ROWS", Query(), raising=False)
    assert found(tmp_path, {"notes/x.py": "form.set(queue=settings.ROWS)"}) == {}


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("notes/tests/test_x.py", 'send.apply_async(queue="mail")'),
        (".venv/lib/x.py", 'send.apply_async(queue="mail")'),
        ("notes/x.txt", 'send.apply_async(queue="mail")'),
        ("notes/x.py", 'send.apply_async(queue="mail"'),
        ("notes/x.py", 'send.delay(queue="mail")'),
        ("notes/x.py", "send.apply_async(queue=queue)"),
        ("notes/x.py", 'send.apply_async(queue=f"{region}")'),
        ("notes/x.py", "send.apply_async(queue=settings.UNSET)"),
    ],
)
def test_what_names_no_queue(tmp_path: Path, file: str, code: str) -> None:
    assert found(tmp_path, {file: code}) == {}


def test_names_of_a_loaded_module_have_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'class Queues:\n    MAIL = "".join(["ma", "il"])\n\ndef send():\n    task.apply_async(queue=Queues.MAIL)\n'
    assert found(tmp_path, {"views.py": text}) == {}
    spec = importlib.util.spec_from_file_location("views_of_a_test", tmp_path / "views.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "views_of_a_test", module)
    spec.loader.exec_module(module)
    assert found(tmp_path, {}) == {"mail": "views.py:5"}
