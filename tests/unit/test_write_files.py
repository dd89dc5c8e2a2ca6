"""The action write_files, run by Ansible on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import ansible_playbook

ROOT = Path(__file__).parents[2]
TEXT = "# {{ ansible_managed }}\n{% include 'part.j2' %}\n\n{% for name in names %}\n{{ name }}\n{% endfor %}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/list.j2").write_text(TEXT)
    (tmp_path / "templates/part.j2").write_text("part {{ word }}\n")
    return tmp_path


def play(folder: Path, arguments: dict[str, Any], *options: str) -> dict[str, Any]:
    """Run the action and return its result."""
    task = {"name": "Write", "write_files": arguments}
    variables = {
        "word": "of all",
        "ansible_managed": "ours",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    }
    book = [{"name": "Test", "hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [task]}]
    (folder / "play.yml").write_text(json.dumps(book))
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    arguments = ("-i", "localhost,", "-c", "local", folder / "play.yml", *options)
    done = ansible_playbook(*arguments, environment=environment, one_process=True)
    assert done.stdout.lstrip().startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]


def test_second_run_changes_nothing(folder: Path) -> None:
    files = [
        {"src": "list.j2", "dest": str(folder / "new/one"), "vars": {"names": ["a", "b"]}},
        {"content": "{{ '{{' }} as it is }}", "dest": str(folder / "two"), "mode": "0600"},
    ]
    first = play(folder, {"mode": "0644", "files": files})
    assert first["changed"] is True, first
    assert (folder / "new/one").read_text() == "# ours\npart of all\na\nb\n"
    assert (folder / "two").read_text() == "{{ as it is }}"
    assert [oct((folder / name).stat().st_mode)[-3:] for name in ("new/one", "two")] == ["644", "600"]
    assert play(folder, {"mode": "0644", "files": files})["changed"] is False
    (folder / "two").chmod(0o644)
    third = play(folder, {"mode": "0644", "files": files})
    assert third["written"] == [str(folder / "two")]


def test_missing_folders_are_readable_by_all_where_logins_have_a_strict_umask(folder: Path) -> None:
    request = {"files": [{"content": "", "dest": str(folder / "one/two/file"), "mode": "0644"}], "check": False}
    command = ["sh", "-c", 'umask 077; exec "$0" "$1"', sys.executable, str(ROOT / "plugins/host/write_files.py")]
    subprocess.run(command, input=json.dumps(request), text=True, stdout=subprocess.DEVNULL, check=True)
    assert [oct((folder / name).stat().st_mode)[-3:] for name in ("one", "one/two")] == ["755", "755"]


def test_check_mode_writes_nothing_and_shows_the_diff(folder: Path) -> None:
    (folder / "old").write_text("before\n")
    files = [{"content": "after\n", "dest": str(folder / name), "mode": "0644"} for name in ("old", "nowhere/new")]
    result = play(folder, {"files": files}, "--check", "--diff")
    assert result["changed"] is True
    assert [(one["before"], one["after"]) for one in result["diff"]] == [("before\n", "after\n"), ("", "after\n")]
    assert (folder / "old").read_text() == "before\n"
    assert not (folder / "nowhere").exists()


def test_invalid_file_replaces_nothing(folder: Path) -> None:
    (folder / "old").write_text("before\n")
    file = {"content": "wrong\n", "dest": str(folder / "old"), "mode": "0644", "validate": "grep -q right %s"}
    result = play(folder, {"files": [file]})
    assert "old was not replaced" in result["msg"]
    assert (folder / "old").read_text() == "before\n"


def test_file_without_a_source_is_an_error(folder: Path) -> None:
    result = play(folder, {"files": [{"dest": str(folder / "old")}]})
    assert "needs exactly one of src, content, link, absent" in result["msg"]


def test_links_are_created_and_absent_files_removed(folder: Path) -> None:
    (folder / "replaced").write_text("a file\n")
    (folder / "removed").symlink_to("nowhere")
    files = [
        {"link": "../there", "dest": str(folder / "new/link")},
        {"link": "there", "dest": str(folder / "replaced")},
        {"absent": True, "dest": str(folder / "removed")},
    ]
    assert len(play(folder, {"files": files}, "--check")["written"]) == 3
    assert (folder / "replaced").read_text() == "a file\n"
    assert len(play(folder, {"files": files})["written"]) == 3
    assert [str((folder / name).readlink()) for name in ("new/link", "replaced")] == ["../there", "there"]
    assert not (folder / "removed").is_symlink()
    assert play(folder, {"files": files})["changed"] is False


def test_absent_false_is_an_error(folder: Path) -> None:
    (folder / "old").write_text("before\n")
    result = play(folder, {"files": [{"absent": False, "dest": str(folder / "old")}]})
    assert "absent: false" in result["msg"]
    assert (folder / "old").exists()


def test_unknown_owner_is_an_error(folder: Path) -> None:
    result = play(folder, {"files": [{"content": "", "dest": str(folder / "new"), "owner": "nosuchuser"}]})
    assert "nosuchuser" in result["msg"]
    assert not (folder / "new").exists()


def test_unknown_option_is_an_error(folder: Path) -> None:
    result = play(folder, {"files": [{"content": "", "dest": str(folder / "new"), "own": "root"}]})
    assert "files.own" in result["msg"]


def test_a_changed_comment_is_written_but_not_effective(folder: Path) -> None:
    """Roles restart services only for effective changes."""
    file = str(folder / "settings")
    play(folder, {"files": [{"content": "# one\nport 1\n", "dest": file}]})
    comment = play(folder, {"files": [{"content": "# two\nport 1\n", "dest": file}]})
    assert (comment["written"], comment["effective"]) == ([file], [])
    setting = play(folder, {"files": [{"content": "# two\nport 2\n", "dest": file}]})
    assert (setting["written"], setting["effective"]) == ([file], [file])


def test_the_interpreter_of_a_script_is_no_comment(folder: Path) -> None:
    file = str(folder / "script")
    play(folder, {"mode": "0755", "files": [{"content": "#!/bin/sh\ntrue\n", "dest": file}]})
    changed = play(folder, {"mode": "0755", "files": [{"content": "#!/bin/bash\ntrue\n", "dest": file}]})
    assert changed["effective"] == [file]


# --- The record of what was written --------------------------------------------------------------------------------


@pytest.fixture
def write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the program as on a host, whose files are in a temporary folder."""
    specification = importlib.util.spec_from_file_location("write_files_on_host", ROOT / "plugins/host/write_files.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    monkeypatch.setattr(program, "RECORD", folder / "state/files.json")
    monkeypatch.setattr(program, "TEMPORARY", (f"{folder}/run/",))

    def run(*files: dict[str, Any], check: bool = False) -> dict[str, Any]:
        files = [{"mode": "0644"} | file | {"dest": str(folder / file["dest"])} for file in files]
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"files": files, "check": check})))
        return program.main()

    return run


def recorded(folder: Path) -> dict[str, str]:
    found = json.loads((folder / "state/files.json").read_text())
    return {name.removeprefix(f"{folder}/"): digest for name, digest in found.items()}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def test_what_was_written_is_recorded(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    write({"dest": "one", "content": "a\n"}, {"dest": "two", "content": "\udcff\n"}, {"dest": "run/now", "content": ""})
    assert recorded(folder) == {"one": digest("a\n"), "two": hashlib.sha256(b"\xff\n").hexdigest()}
    assert (folder / "state/files.json").stat().st_mode & 0o777 == 0o600
    # The files of other tasks stay in it; those that were removed, or are links now, do not.
    write({"dest": "three", "content": "c"}, {"dest": "one", "link": "three"}, {"dest": "two", "absent": True})
    assert recorded(folder) == {"three": digest("c")}
    assert (folder / "one").read_text() == "c"


def test_an_unchanged_record_is_not_written_again(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    write({"dest": "one", "content": "a\n"})
    before = (folder / "state/files.json").stat().st_ino
    assert write({"dest": "one", "content": "a\n"})["changed"] is False
    assert (folder / "state/files.json").stat().st_ino == before


def test_a_file_from_before_there_was_a_record_is_recorded(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    (folder / "one").write_text("a\n")
    (folder / "one").chmod(0o644)
    assert write({"dest": "one", "content": "a\n"})["changed"] is False
    assert recorded(folder) == {"one": digest("a\n")}


def test_check_mode_records_nothing(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    assert write({"dest": "one", "content": "a\n"}, check=True)["changed"] is True
    assert not (folder / "state").exists()


def test_a_file_that_was_not_replaced_keeps_its_record(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    write({"dest": "one", "content": "a\n"}, {"dest": "two", "content": "b\n"})
    invalid = {"dest": "two", "content": "wrong\n", "validate": "grep -q right %s"}
    assert write({"dest": "one", "content": "new\n"}, invalid)["failed"] is True
    assert recorded(folder) == {"one": digest("new\n"), "two": digest("b\n")}


def test_a_record_that_cannot_be_written_fails_nothing(folder: Path, write: Callable[..., dict[str, Any]]) -> None:
    (folder / "state").write_text("not a folder\n")
    assert write({"dest": "one", "content": "a\n"})["changed"] is True
