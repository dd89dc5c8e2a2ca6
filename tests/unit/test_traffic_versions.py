"""The versions that scenarios make of the project are what their names say."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
from traffic import versions


@pytest.mark.parametrize("change", ["column=note", *versions.CHANGES])
def test_each_change_changes_something_and_stays_python(tmp_path: Path, change: str) -> None:
    plain, changed = (versions.make(tmp_path / name, "v1", *names) for name, names in {"a": [], "b": [change]}.items())
    texts = [
        {file.relative_to(folder): file.read_text() for file in folder.rglob("*") if file.is_file()}
        for folder in (plain, changed)
    ]
    assert texts[0] != texts[1]
    assert texts[0].keys() <= texts[1].keys()
    for file, text in texts[1].items():
        if file.suffix == ".py":
            ast.parse(text, str(file))


def test_two_versions_differ_in_their_name_alone(tmp_path: Path) -> None:
    one, two = (versions.make(tmp_path / name, name) for name in ("v1", "v2"))
    differing = [
        file.relative_to(one)
        for file in one.rglob("*")
        if file.is_file() and file.read_bytes() != (two / file.relative_to(one)).read_bytes()
    ]
    assert differing == [Path("ledger/version.py")]


def test_migrations_follow_one_another(tmp_path: Path) -> None:
    folder = versions.make(tmp_path / "v", "v", "column=note", "column=remark", "failing-migration")
    names = sorted(file.stem for file in (folder / "ledger/migrations").glob("[0-9]*.py"))
    assert names == ["0001_initial", "0002_note", "0003_remark", "0004_fails"]
    for before, name in itertools.pairwise(names):
        assert f'"ledger", "{before}"' in (folder / f"ledger/migrations/{name}.py").read_text()
    assert (folder / "ledger/models.py").read_text().count("db_default") == 2


def test_a_dependency_is_pinned_to_what_was_never_published(tmp_path: Path) -> None:
    text = (versions.make(tmp_path / "v", "v", "missing-dependency") / "requirements.txt").read_text()
    assert len(re.findall(r"^\w.*==9999\.", text, re.MULTILINE)) == 1


def test_a_change_has_a_name_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="row=note is no change; there are column=NAME, new-task"):
        versions.make(tmp_path / "v", "v", "row=note")


def test_what_is_not_there_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match=r"settings\.py is not there"):
        versions.make(tmp_path / "v", "v", source=tmp_path / "empty")


def test_version_made_again_replaces_the_first(tmp_path: Path) -> None:
    versions.make(tmp_path / "v", "v1", "import-error")
    assert versions.A_MODULE not in (versions.make(tmp_path / "v", "v2") / "core/urls.py").read_text()
