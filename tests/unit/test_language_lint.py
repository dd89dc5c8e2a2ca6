"""tools/language_lint.py finds idioms, also across lines and in names, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("language_lint", PROJECT / "tools/language_lint.py")
assert SPEC is not None
assert SPEC.loader is not None
language_lint = importlib.util.module_from_spec(SPEC)
sys.modules["language_lint"] = language_lint
SPEC.loader.exec_module(language_lint)


def words_in(text: str) -> list[str]:
    return [finding.words for finding in language_lint.find_idioms(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Whoever logs in", ["Whoever"]),
        ("it puts the others back", ["puts the others back"]),
        ("# Whatever fails is put\n# back.", ["put # back"]),
        ('"is put "\n    "back"', ['put " "back']),
        ("def put_back(self):", ["put_back"]),
        ("tasks of one's own", ["one's own"]),
        ("somebody else's file", ["somebody else's"]),
        ("A rollout is followed", ["rollout"]),
    ],
)
def test_an_idiom_is_found(text: str, found: list[str]) -> None:
    assert words_in(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "We recommend amendments.",
        "systemd unit shop-rollout.service",
        "molecule/rollout/molecule.yml",
        "`rollout`",
        "rollout.json",
        "Doorstep",
        "gets in the way",
        "User=nobody  # language-lint: allow nobody",
        "chown nobody: by whom  <!-- language-lint: allow nobody, whom -->",
    ],
)
def test_nothing_else_is_found(text: str) -> None:
    assert words_in(text) == []


def test_patterns_are_lowercase() -> None:
    """The quick search reads lowercase text, in which a capital letter never matches.

    A class such as \\S or \\W would match, but is not needed, and is refused here as well.
    """
    assert [pattern for pattern in language_lint.IDIOMS if pattern != pattern.lower()] == []


def test_an_allowance_covers_its_own_words_alone() -> None:
    assert words_in("nobody, anew  # language-lint: allow nobody") == ["anew"]


def test_it_prints_where_and_what_instead_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.md"
    path.write_text("fine\nstill anew\n")
    monkeypatch.setattr(sys, "argv", ["language_lint.py", str(path)])
    assert language_lint.main() == 1
    assert f'{path}:2: "anew": "again", or "new"' in capsys.readouterr().out


def test_numbered_test_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "test_zz_last.py"
    path.write_text("")
    assert language_lint.lint(iter([path])) == 1


@pytest.mark.parametrize(
    "name", ["requirements.txt", "app_src/requirements-dev.txt", "LICENSE", "tools/language_lint.py"]
)
def test_files_of_others_are_skipped(name: str) -> None:
    assert language_lint.SKIPPED.fullmatch(name)
