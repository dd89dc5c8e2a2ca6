"""Snapshots: the tag changes with everything that provisions a host."""

from __future__ import annotations

from pathlib import Path

import pytest
import snapshot


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    for name in snapshot.INPUTS:
        file = tmp_path / name if "." in name else tmp_path / name / "one/file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    return tmp_path


@pytest.mark.parametrize("name", snapshot.INPUTS)
def test_digest_changes_with_each_input(root: Path, name: str) -> None:
    before = snapshot.digest("base", "secrets")
    assert snapshot.digest("base", "secrets") == before
    file = root / name if "." in name else root / name / "one/file"
    file.write_text("two")
    assert snapshot.digest("base", "secrets") != before


def test_digest_changes_with_the_base_image_and_the_secrets(root: Path) -> None:
    assert len({snapshot.digest(*pair) for pair in (("a", "b"), ("a", "c"), ("d", "b"))}) == 3


def test_digest_ignores_compiled_files(root: Path) -> None:
    before = snapshot.digest("base", "secrets")
    (root / "hostctl/__pycache__").mkdir()
    (root / "hostctl/__pycache__/one.pyc").write_text("compiled")
    assert snapshot.digest("base", "secrets") == before


def test_host_is_in_every_group() -> None:
    inventory = snapshot.inventory("debian13")["all"]
    assert set(inventory["children"]) == set(snapshot.GROUPS)
    assert inventory["hosts"]["snapshot"]["ansible_host"] == snapshot.ADDRESSES["debian13"]
