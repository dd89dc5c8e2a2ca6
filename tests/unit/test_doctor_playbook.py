"""playbooks/doctor.yml prints what the hosts say as it is, and names those that are not well."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from project import ROOT, run_playbook

SPEC = importlib.util.spec_from_file_location("doctor_action", ROOT / "plugins/action/doctor.py")
ACTION = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ACTION)

SCREEN = """\
shop on one                                             2026-11-30 14:37:54 UTC  1.1 s
x   release      7e3b973c5423-6b98fa, deployed 5 min ago by root@vm, which is longer than what YAML breaks: inactive
                 shopctl verify"""


def doctor(folder: Path, screens: dict[str, tuple[str, int]], *options: str) -> tuple[int, str]:
    """Run the tasks of the playbook with a program for each host; return the exit status and the output."""
    for host, (screen, status) in screens.items():
        program = folder / host
        program.write_text(f"#!/bin/sh\n[ $1 = doctor ] || exit 9\ncat <<'END'\n{screen}\nEND\nexit {status}\n")
        program.chmod(0o755)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    hosts = {"all": {"vars": local, "hosts": {host: {} for host in [*screens, "gone"]}}}
    (folder / "hosts.yml").write_text(json.dumps(hosts))
    tasks = [{"ansible.builtin.import_role": {"name": "monitoring", "tasks_from": "doctor.yml"}}]
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    return play(folder, *options)


def play(folder: Path, *options: str) -> tuple[int, str]:
    found = run_playbook(
        folder / "play.yml",
        folder / "hosts.yml",
        *("-e", json.dumps({"__monitoring_program": f"{folder}/{{{{ inventory_hostname }}}}"})),
        *options,
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
    )
    return found.status, found.output


def test_the_screen_of_each_host_is_printed_as_it_is(tmp_path: Path) -> None:
    screens = {"one": (SCREEN, 2), "two": (SCREEN.replace(" one ", " two "), 2), "three": ("!   drill  late", 1)}
    status, output = doctor(tmp_path, screens)
    assert status != 0
    for host, (screen, _) in screens.items():
        assert "\n".join(f"  {host}: {line}" for line in screen.splitlines()) in output
    assert "Not well: one, two. " in output
    assert "could not be checked (see above): gone" in output


@pytest.mark.parametrize(("status", "broken"), [(2, ["one"]), (1, [])])
def test_what_is_broken_is_written_for_make_doctor(tmp_path: Path, status: int, broken: list[str]) -> None:
    file = tmp_path / "outcome.json"
    given = ("-e", json.dumps({"monitoring_outcome": str(file)}))
    _, output = doctor(tmp_path, {"one": (SCREEN, status), "two": (SCREEN, 0)}, *given)
    assert json.loads(file.read_text()) == {"broken": broken, "silent": ["gone"]}
    # No excerpt of a task, except of the one that could not run.
    assert output.count("Origin:") == 1
    assert "fatal: [one]" not in output


# Stands for ansible-playbook, beside the Python that runs the tool. Its last argument names the file of the outcome.
PLAYBOOK = """#!/bin/sh
echo 'PLAY RECAP'
echo "$*" >"$0.words"
for last; do :; done
[ -z '{outcome}' ] || echo '{outcome}' >"$(echo "$last" | sed 's/.*: "//; s/"}}//')"
exit {status}
"""


@pytest.mark.parametrize(
    ("outcome", "status", "expected", "last"),
    [
        ({"broken": [], "silent": []}, 0, 0, "Broken: none."),
        ({"broken": ["one", "two"], "silent": []}, 0, 2, "Broken: one, two. Below each line with x, above, is what to"),
        ({"broken": [], "silent": ["gone"]}, 4, 4, "Broken: none of those that were checked."),
        (None, 4, 4, "No server was checked: see above."),
    ],
)
def test_the_last_line_of_make_doctor(
    tmp_path: Path, outcome: dict[str, Any] | None, status: int, expected: int, last: str
) -> None:
    done = make_doctor(tmp_path, outcome, status, "-i", "inventory/production.yml")
    assert done.returncode == expected, done.stderr
    assert done.stdout.splitlines()[0] == "PLAY RECAP"
    assert done.stdout.splitlines()[-1].startswith(last)
    assert ("Not checked: gone. The reason is above." in done.stdout) is bool(outcome and outcome["silent"])


def make_doctor(
    folder: Path, outcome: dict[str, Any] | None, status: int, *words: str
) -> subprocess.CompletedProcess[str]:
    playbook = folder / "ansible-playbook"
    playbook.write_text(PLAYBOOK.format(outcome=json.dumps(outcome) if outcome else "", status=status))
    playbook.chmod(0o755)
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); sys.executable = {str(folder / 'python')!r}"
    code += f"; import doctor; sys.exit(doctor.main({list(words)}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_make_doctor_asks_the_servers_of_several_inventories(tmp_path: Path) -> None:
    done = make_doctor(tmp_path, {"broken": [], "silent": []}, 0, "-i", "inventory/a.yml", "--inventory", "b.yml")
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "ansible-playbook.words").read_text()
    assert given.startswith(f"-i inventory/a.yml -i b.yml {ROOT}/playbooks/doctor.yml -e ")


def test_the_program_gets_the_settings_of_this_clone(tmp_path: Path) -> None:
    """One of an earlier version does not know them."""
    doctor(tmp_path, {"one": (SCREEN, 0), "earlier": (SCREEN, 0)})
    (tmp_path / "one").write_text(f"#!/bin/sh\necho $*\ncat >{tmp_path}/given\n")
    words = 'echo "shopctl: error: unrecognized arguments: --clone-settings" >&2; exit 2'
    (tmp_path / "earlier").write_text(f'#!/bin/sh\n[ "$*" = doctor ] && echo "ok  site" || {{ {words}; }}\n')
    more = tmp_path / "more"
    more.mkdir()
    (more / "hosts").write_text("gone\n")
    output = play(tmp_path, "-i", str(more))[1]
    assert "  one: doctor --clone-settings\n" in output
    assert "  earlier: ok  site\n" in output
    given = json.loads((tmp_path / "given").read_text())
    assert given["path"] == str(ROOT)
    assert given["inventories"] == [str(tmp_path / "hosts.yml"), str(more)]
    # Those that this inventory has; with group_vars, all that docs/settings.md lists.
    assert re.fullmatch("[0-9a-f]{64}", given["settings"]["postgresql_settings"])


CLONE = "/srv/a,b/clone"


@pytest.mark.parametrize(
    ("sources", "of_host", "of_clone"),
    [
        ([f"{CLONE}/inventory/a.yml"], "inventory/a.yml", ["inventory/a.yml"]),
        ([f"{CLONE}/inventory"], "inventory", ["inventory"]),
        (["/srv/a,b/hosts.yml"], "", ["/srv/a,b/hosts.yml"]),
        (["shop.example.org,"], "", []),
        (["one,two"], "", []),
        ([f"{CLONE}/inventory/a.yml", f"{CLONE}/inventory/b.yml"], "", ["inventory/a.yml", "inventory/b.yml"]),
        ([f"{CLONE}/inventory/a.yml", "/srv/b.yml"], "", ["inventory/a.yml", "/srv/b.yml"]),
        ([f"{CLONE}/inventory/a.yml", "two,"], "", []),
        ([], "", []),
    ],
)
def test_inventories_are_named_relative_to_the_clone(sources: list[str], of_host: str, of_clone: list[str]) -> None:
    """In alerts and by `shopctl doctor`, one that is a file or folder of the clone; by `make doctor`, all."""
    loader = DataLoader()
    wiring = loader.load_from_file(str(ROOT / "group_vars/all/wiring.yml"), trusted_as_template=True)
    given = {"ansible_inventory_sources": sources, "role_path": f"{CLONE}/roles/monitoring"}
    assert Templar(loader, variables=given).template(wiring["monitoring_inventory"]) == of_host
    assert ACTION.inventories(sources, Path(CLONE)) == of_clone


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([f"{CLONE}/inventory/a.yml"], "-i inventory/a.yml"),
        ([f"{CLONE}/inventory/a.yml", f"{CLONE}/inventory/b"], "-i inventory/a.yml -i inventory/b"),
        (["/srv/my hosts.yml", "two,"], "-i '/srv/my hosts.yml' -i two,"),
        ([f"{CLONE}2/a.yml"], f"-i {CLONE}2/a.yml"),
        ([], "-i INVENTORY"),
    ],
)
def test_commands_of_messages_name_the_inventories_as_given(sources: list[str], expected: str) -> None:
    loader = DataLoader()
    wiring = loader.load_from_file(str(ROOT / "group_vars/all/wiring.yml"), trusted_as_template=True)
    commands = {
        "certificate_help_retry": "type: ansible-playbook {} playbooks/provision.yml --tags certificate",
        "postgresql_upgrade_command": "ansible-playbook {} playbooks/upgrade-postgresql.yml",
    }
    given = {"ansible_inventory_sources": sources, "role_path": f"{CLONE}/roles/certificate"}
    templar = Templar(loader, variables=given | {"app_inventory_options": wiring["app_inventory_options"]})
    for name, command in commands.items():
        assert templar.template(wiring[name]).strip() == command.format(expected)


def test_a_warning_does_not_fail_the_run(tmp_path: Path) -> None:
    status, output = doctor(tmp_path, {"one": ("!   drill  late", 1)}, "--check", "--limit", "one")
    assert status == 0
    assert "  one: !   drill  late\n" in output
    assert "Not well" not in output
