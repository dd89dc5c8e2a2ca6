"""What playbooks/restore.yml calls on the hosts, for a restore and for the return to the former database."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from project import ROOT, Run, run_playbook

PROGRAM = """\
#!/bin/sh
echo "$0 $*" >>{log}
echo "To return to: the database that was replaced"
"""


def play(folder: Path, *hosts: str, **variables: object) -> list[str]:
    """Run the tasks of the playbook; the first host has the database. Return what the hosts have called."""
    found = run(folder, *hosts, **variables)
    assert found.status == 0, found.output
    return [line.removeprefix(f"{folder}/") for line in (folder / "log").read_text().splitlines()]


def run(folder: Path, *hosts: str, text: str = PROGRAM, **variables: object) -> Run:
    for host in hosts:
        program = folder / host
        program.write_text(text.format(log=folder / "log"))
        program.chmod(0o755)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    local |= {"ansible_async_dir": str(folder / "async")}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"vars": local, "hosts": {host: {} for host in hosts}}}))
    tasks = [{"ansible.builtin.import_role": {"name": "backup", "tasks_from": name}} for name in ("confirm", "restore")]
    tasks += [{"ansible.builtin.debug": {"msg": "Kept: {{ backup_restore_problem | default('nothing') }}"}}]
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    given = {
        "__backup_program": f"{folder}/{{{{ inventory_hostname }}}}", "backup_database_hosts": [hosts[0]],
        "backup_several_hosts": len(hosts) > 1, "backup_restore_yes": True,
    }  # fmt: skip
    return run_playbook(
        folder / "play.yml", folder / "hosts.yml", "-e", json.dumps(given | variables),
        one_process=True, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
    )  # fmt: skip


def test_without_a_database_of_the_inventory_there_is_none_to_return_to(tmp_path: Path) -> None:
    """Uploads are backed up all the same: a managed database."""
    found = run(tmp_path, "web", backup_restore_undo="true", backup_database_hosts=[])
    assert found.status != 0
    assert "there is no former one to return to" in found.output
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["at", "restore_att", "restore_time"])
def test_a_variable_that_a_restore_does_not_have(tmp_path: Path, name: str) -> None:
    """Without it, the newest state would be restored."""
    found = run(tmp_path, "web", **{name: "2026-11-28T18:59:30Z", "restore_yes": True})
    assert found.status != 0
    said = " ".join(found.output.split())
    assert f"Nothing was changed: a restore has no variable {name}. It has: restore_at, " in said
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("undo", "question"), [("true", "Return to the former database? "), ("false", "Restore? ")])
def test_the_question_says_what_is_done(undo: str, question: str) -> None:
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/confirm.yml").read_text())
    (prompt,) = [task["ansible.builtin.pause"]["prompt"] for task in tasks if "ansible.builtin.pause" in task]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["bool"] = lambda value: value == "true"
    assert environment.from_string(prompt).render(backup_restore_undo=undo).startswith(question)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("no", "Nothing was changed, as you answered no."),
        # Without a terminal.
        ("", "Nothing was changed. To restore without being asked: -e restore_yes=true"),
        ("yes", None),
    ],
)
def test_another_answer_than_yes_changes_nothing(typed: str, expected: str | None) -> None:
    tasks = DataLoader().load_from_file(str(ROOT / "roles/backup/tasks/confirm.yml"), trusted_as_template=True)
    (task,) = [one for one in tasks if one["name"] == "Confirm | Stop without a yes"]
    given = {**task["vars"], "__backup_answer": {"user_input": typed}, "backup_restore_yes": False}
    templar = Templar(DataLoader(), variables=given)
    stops = all(templar.evaluate_conditional(condition) for condition in task["when"])
    assert (templar.template(task["ansible.builtin.fail"]["msg"]) if stops else None) == expected


def test_the_former_database_of_several_hosts_is_returned_to(tmp_path: Path) -> None:
    calls = play(tmp_path, "data", "web", backup_restore_undo="true")
    words = "data backup restore --undo --database-only"
    assert calls == [f"{words} --show", f"{words} --yes"], "a host of uploads has nothing to return to"


@pytest.mark.parametrize("hosts", [("data", "web"), ("one",)])
def test_a_restore_is_of_all_hosts(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    calls = play(tmp_path, *hosts, backup_restore_at="2026-11-28T18:59:30Z")
    only = " --database-only" if len(hosts) > 1 else ""
    words = f"backup restore --at 2026-11-28T18:59:30Z{only}"
    assert sorted(calls) == sorted([f"{hosts[0]} {words} --show", *(f"{host} {words} --yes" for host in hosts)])


FAILS = """\
#!/bin/sh
echo "$*" | grep -q -e --show && exit
echo "Restoring the backup."
echo "There is no room." >&2
exit 1
"""


@pytest.mark.parametrize(("text", "kept"), [(FAILS, "Restoring the backup.\nThere is no room."), (PROGRAM, "nothing")])
def test_a_problem_is_kept_until_the_other_hosts_have_started(tmp_path: Path, text: str, kept: str) -> None:
    """What the restore says was printed before."""
    found = run(tmp_path, "one", text=text)
    assert found.status == 0
    lines = found.output.splitlines()
    assert ("  one: There is no room." in lines) == (text == FAILS)
    assert f'"msg": {json.dumps(f"Kept: {kept}")}' in found.output


def test_a_return_migrates_and_parks_nothing() -> None:
    """It is a state in which the release was live."""
    plays = yaml.safe_load((ROOT / "playbooks/restore.yml").read_text())
    (complete,) = [
        task for one in plays for task in one.get("tasks", [])
        if task.get("ansible.builtin.include_role", {}).get("tasks_from") == "complete.yml"
    ]  # fmt: skip
    assert "not backup_restore_undo | bool" in complete["when"]
