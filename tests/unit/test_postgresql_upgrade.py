"""An upgrade of PostgreSQL that is killed at any command is completed, or reverted, by the next run; no row is lost."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from project import ROOT


def load(path: str) -> ModuleType:
    name = f"{Path(path).parent.name}_{Path(path).stem}"
    found = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


program, in_use = load("plugins/host/postgresql_upgrade.py"), load("plugins/host/host_in_use.py")

ROWS = {"public.shop_order": 3, 'public."Odd name"': 0}
REQUEST = {
    "version": "17", "databases": ["shop"], "roles": ["shop", "shop_2", "shop_owner"], "port": 5432, "others": False,
    "replace": False, "maintenance": False, "playbook": "PLAYBOOK", "check": False,
}  # fmt: skip
# More than the calls of any sequence below.
MANY = 100


class Killed(BaseException):
    """The process ends without any clean-up."""


class Machine:
    """A Debian 13 with PostgreSQL 15, which has the databases, and an empty 17. Commands change files below `root`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.running: set[str] = set()
        # By systemd, at boot.
        self.enabled: set[str] = set()
        self.calls: list[str] = []
        # Those of them that do not only look.
        self.changes: list[str] = []
        # The number of the change that is killed, and whether before, in the middle of, or after it.
        self.kill: tuple[int, str] = (MANY, "")
        self.fails: dict[str, str] = {}
        self.answers: dict[str, list[str]] = {}
        for version in ("15", "17"):
            self.write(f"usr/lib/postgresql/{version}/bin/postgres")
            self.write(f"usr/lib/postgresql/{version}/bin/pg_upgrade")
            self.write(f"usr/share/postgresql/{version}/extension/plpgsql.control")
        for folder in ("run", "var/log", "proc", "var/lib/postgresql"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.create("15", 5432)
        self.write("etc/postgresql/15/main/conf.d/60-seedbed.conf", "hba_file = 'x'\n")
        self.write("var/lib/postgresql/15/main/base/16385/rows", json.dumps(ROWS))
        self.running.add("15")
        self.enabled.add("15")
        self.create("17", 5433)
        monkeypatch.setattr(program, "run", self.run)
        monkeypatch.setattr(program.os, "fsync", lambda handle: None)

    def write(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def folder(self, version: str) -> Path:
        return self.root / f"etc/postgresql/{version}/main"

    def data(self, version: str) -> Path:
        return self.root / f"var/lib/postgresql/{version}/main"

    def create(self, version: str, port: int) -> None:
        self.write(f"etc/postgresql/{version}/main/start.conf", "# comment\nauto\n")
        self.write(f"etc/postgresql/{version}/main/postgresql.conf", f"port = {port}\n")
        self.write(f"var/lib/postgresql/{version}/main/base/5/PG_VERSION")

    def port(self, version: str) -> int:
        return program.Cluster(version, self.root).port

    def rows(self, version: str) -> dict[str, int]:
        return json.loads((self.data(version) / "base/16385/rows").read_text())

    def upgrade(self, **request: Any) -> Any:
        return program.Upgrade(REQUEST | request, self.root)

    def state_of(self) -> str:
        """Return the step that is recorded."""
        return self.upgrade().state.step

    def former(self) -> list[str]:
        """Return what stops site.yml."""
        self.write("etc/os-release", 'VERSION_ID="13"\n')
        given = {"application": "shop", "services": ["postgresql"], "ports": {}, "firewall_rules": [], "ssh_port": 22}
        return in_use.Host(given, self.root).former_cluster

    # -- commands

    def run(self, *command: str, log: Any = None, text: str = "") -> str:
        self.calls.append(" ".join(command))
        if "psql" not in command and command[-1] != "status":
            self.changes.append(self.calls[-1])
        number, moment = self.kill
        killed = self.changes[-1:] == self.calls[-1:] and len(self.changes) - 1 == number
        if killed and moment == "before":
            raise Killed
        if (error := self.fails.get(command[0])) is not None:
            raise program.UpgradeError(error)
        name = (command[4] if command[0] == "runuser" else command[0]).replace("-", "_")
        try:
            return getattr(self, name)(command, text, killed and moment == "within") or ""
        finally:
            if killed:
                raise Killed

    def systemctl(self, command: tuple[str, ...], text: str, half: bool) -> None:
        units = [word for word in command if word.startswith("postgresql@")]
        version = units[0].partition("@")[2].partition("-")[0] if units else ""
        if "start" in command:
            assert self.folder(version).exists()
            assert not self.running or self.port(version) not in map(self.port, self.running)
            self.running.add(version)
        if "stop" in command or "--now" in command:
            self.running.discard(version)
        if "enable" in command:
            self.enabled.add(version)
        if "disable" in command:
            self.enabled.discard(version)

    def pg_ctlcluster(self, command: tuple[str, ...], text: str, half: bool) -> None:
        if command[-1] == "status" and command[1] not in self.running:
            raise program.UpgradeError("down")

    def pg_conftool(self, command: tuple[str, ...], text: str, half: bool) -> None:
        _, version, _, _, _, port = command
        assert version not in self.running, "it would listen on the former port"
        self.write(f"etc/postgresql/{version}/main/postgresql.conf", f"port = {port}\n")

    def pg_dropcluster(self, command: tuple[str, ...], text: str, half: bool) -> None:
        version = command[2]
        self.running.discard(version)
        shutil.rmtree(self.data(version), ignore_errors=True)
        if not half:
            shutil.rmtree(self.folder(version))

    def pg_upgradecluster(self, command: tuple[str, ...], text: str, half: bool) -> None:
        assert command[1:6] == ("-v", "17", "-m", "upgrade", "--no-start")
        assert not self.folder("17").exists(), "target cluster already exists"
        assert self.running == {"15"}
        self.running.clear()
        self.create("17", 5433)
        shutil.copytree(self.data("15") / "base/16385", self.data("17") / "base/16385")
        if half:
            self.write("var/lib/postgresql/17/main/base/16385/rows", "{}")
            return
        self.write("etc/postgresql/15/main/start.conf", "manual\n")
        self.write("etc/postgresql/15/main/postgresql.conf", "port = 5433\n")
        self.write("etc/postgresql/17/main/postgresql.conf", "port = 5432\n")

    def run_parts(self, command: tuple[str, ...], text: str, half: bool) -> None:
        assert self.running == {"17"}
        assert command[-1] == "/etc/postgresql-common/pg_upgradecluster.d"

    def psql(self, command: tuple[str, ...], text: str, half: bool) -> str:
        [port] = [int(word.partition("=")[2]) for word in command if word.startswith("--port=")]
        [database] = [word.partition("=")[2] for word in command if word.startswith("--dbname=")]
        [version] = [version for version in self.running if self.port(version) == port]
        sql = text.split("\n", 1)[1].rstrip(";")
        for known, lines in self.answers.items():
            if known in sql:
                return "\n".join(lines)
        if sql == program.DATABASES:
            return "postgres\nshop\ntemplate1"
        if sql == program.EXTENSIONS:
            return "plpgsql"
        if sql == program.ROLES:
            return "postgres\nshop\nshop_owner"
        tables = self.rows(version) if database == "shop" else {}
        if sql == program.TABLES:
            return "\n".join(tables)
        return "\n".join(str(tables.get(name, 0)) for name in re.findall(r"FROM ONLY ([^;]+)", sql))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "host", monkeypatch)


def forth(machine: Machine, **request: Any) -> None:
    """Take the steps as the playbook does; the role postgresql starts the new cluster between two of them."""
    if not machine.upgrade(**request).plan()["needed"]:
        return
    for step in ("begin", "copy", "check", "release", "finish"):
        if step == "check" and machine.upgrade().state.step == program.COPIED:
            machine.running.add("17")
            machine.enabled.add("17")
        getattr(machine.upgrade(**request), step)()


def back(machine: Machine) -> None:
    machine.upgrade().back()


def killed(machine: Machine, sequence: Callable[[Machine], None], number: int, moment: str) -> bool:
    """Run a sequence of steps and kill it at a command; return whether it came to that."""
    machine.changes, machine.kill = [], (number, moment)
    try:
        sequence(machine)
    except Killed:
        return True
    finally:
        machine.kill = (MANY, "")
    return False


def every_kill(machine: Machine, sequence: Callable[[Machine], None], moment: str) -> Iterator[str]:
    """Kill a sequence at each of its changes, one after another; yield that command, then restore the machine."""
    saved, running, enabled = machine.root.with_name("saved"), set(machine.running), set(machine.enabled)
    shutil.copytree(machine.root, saved)
    number = 0
    while killed(machine, sequence, number, moment):
        yield machine.calls[-1]
        shutil.rmtree(machine.root)
        shutil.copytree(saved, machine.root)
        machine.running, machine.enabled = set(running), set(enabled)
        number += 1
    assert number > 5


def assert_upgraded(machine: Machine) -> None:
    assert machine.running == {"17"}
    assert "15" not in machine.enabled
    assert (machine.port("15"), machine.port("17")) == (5433, 5432)
    assert not program.Cluster("15", machine.root).starts_at_boot
    assert machine.rows("17") == machine.rows("15") == ROWS
    assert machine.former() == []


def assert_as_before(machine: Machine) -> None:
    assert machine.running == machine.enabled == {"15"}
    assert machine.port("15") == 5432
    assert program.Cluster("15", machine.root).starts_at_boot
    assert machine.rows("15") == ROWS
    assert machine.former() == ["15", "17"], "site.yml still stops"


# --- The whole way


def test_every_row_is_in_the_new_cluster(machine: Machine) -> None:
    assert machine.upgrade().plan()["needed"]
    forth(machine)
    assert_upgraded(machine)
    assert not machine.upgrade().plan()["needed"]
    lines = machine.upgrade().finish()["lines"]
    assert "3 rows in 2 tables are the same in both" in lines[0]
    assert {"  PLAYBOOK -e drop_old_cluster=true", "  PLAYBOOK -e upgrade_back=true"} <= set(lines)


def test_a_host_without_an_earlier_cluster_has_nothing_to_upgrade(machine: Machine) -> None:
    shutil.rmtree(machine.folder("15"))
    found = machine.upgrade().plan()
    assert (found["needed"], found["old"]) == (False, "")
    assert "nothing to upgrade" in found["lines"][0]
    assert machine.calls == []


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_killed_upgrade_is_completed(machine: Machine, moment: str) -> None:
    for command in every_kill(machine, forth, moment):
        assert machine.rows("15") == ROWS, command
        if machine.state_of() in program.UNFINISHED:
            assert machine.former() == ["15", "17"], "site.yml must not configure either cluster"
        forth(machine)
        assert_upgraded(machine)


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_killed_upgrade_is_reverted(machine: Machine, moment: str) -> None:
    reverted = 0
    for _ in every_kill(machine, forth, moment):
        if machine.state_of() in program.REVERTIBLE:
            machine.upgrade().revert()
            assert_as_before(machine)
            assert not machine.upgrade().state_file.exists()
            reverted += 1
    assert reverted > 5


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_killed_revert_is_completed(machine: Machine, moment: str) -> None:
    for step in ("begin", "copy"):
        getattr(machine.upgrade(), step)()
    machine.running.add("17")
    machine.enabled.add("17")
    for _ in every_kill(machine, lambda machine: machine.upgrade().revert(), moment):
        machine.upgrade().revert()
        assert_as_before(machine)


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_killed_return_is_completed(machine: Machine, moment: str) -> None:
    forth(machine)
    for _ in every_kill(machine, back, moment):
        assert machine.former() == ["15", "17"]
        with pytest.raises(program.UpgradeError, match=r"was interrupted.*-e upgrade_back=true"):
            machine.upgrade().plan()
        back(machine)
        assert_as_before(machine)
        assert machine.rows("17") == ROWS, "what was written since stays"


def test_what_the_application_wrote_is_never_reverted(machine: Machine) -> None:
    forth(machine)
    state = machine.upgrade()
    state.write(program.RELEASED)
    machine.write("var/lib/postgresql/17/main/base/16385/rows", json.dumps(ROWS | {"public.shop_order": 4}))
    assert machine.upgrade().revert() == {"changed": False}
    forth(machine)
    assert machine.rows("17")["public.shop_order"] == 4


def test_a_running_pg_upgradecluster_of_a_killed_run_is_waited_for(machine: Machine) -> None:
    machine.upgrade().begin()
    machine.write("proc/4711/comm", "pg_upgradeclust\n")
    with pytest.raises(program.UpgradeError, match=r"still running on this host \(pg_upgradeclust, process 4711\)"):
        machine.upgrade().copy()


def test_a_second_run_at_once_changes_nothing(machine: Machine) -> None:
    machine.upgrade().begin()
    with (
        machine.upgrade().locked(),
        pytest.raises(program.UpgradeError, match=r"still running on this host \(another run\)"),
    ):
        machine.upgrade().plan()
    assert machine.state_of() == program.BEGUN


@pytest.mark.parametrize("step", ["copy", "check", "release", "finish"])
def test_an_upgrade_that_another_run_has_reverted_does_not_continue(machine: Machine, step: str) -> None:
    for one in ("begin", "copy", "revert"):
        getattr(machine.upgrade(), one)()
    with pytest.raises(program.UpgradeError, match="Another run has ended this upgrade"):
        getattr(machine.upgrade(), step)()
    assert_as_before(machine)


def test_the_error_of_pg_upgradecluster_is_shown(machine: Machine) -> None:
    machine.upgrade().begin()
    machine.fails["pg_upgradecluster"] = "could not load library"
    with pytest.raises(program.UpgradeError, match="could not load library"):
        machine.upgrade().copy()
    del machine.fails["pg_upgradecluster"]
    machine.upgrade().revert()
    assert_as_before(machine)


@pytest.mark.parametrize(
    ("sql", "lines", "text"),
    [
        ("FROM ONLY", ["3", "1"], 'shop: public."Odd name" has 1 rows instead of 0'),
        (program.TABLES, ["public.shop_order"], 'shop: public."Odd name" has None rows instead of 0'),
        (program.DATABASES, ["postgres"], "the database shop is missing"),
        (program.EXTENSIONS, [], "shop: the extension plpgsql is missing"),
        (program.ROLES, ["postgres", "shop"], "the role shop_owner is missing"),
    ],
)
def test_a_copy_that_differs_is_refused(machine: Machine, sql: str, lines: list[str], text: str) -> None:
    for step in ("begin", "copy"):
        getattr(machine.upgrade(), step)()
    machine.running.add("17")
    machine.answers[sql] = lines
    with pytest.raises(program.UpgradeError, match=re.escape(text)):
        machine.upgrade().check()
    assert machine.state_of() == program.COPIED


# --- Before anything changes

REFUSALS: dict[str, tuple[Callable[[Machine], Any], str]] = {
    "down": (lambda machine: machine.running.clear(), "is down. Type on the host: systemctl start postgresql@15-main"),
    "no programs": (
        lambda machine: (machine.root / "usr/lib/postgresql/17/bin/pg_upgrade").unlink(),
        "apt-get install postgresql-17",
    ),
    "databases of others": (
        lambda machine: machine.answers.update({"datistemplate": ["blog", "wiki"]}),
        "has databases of others: blog, wiki.*PLAYBOOK -e upgrade_other_databases=true",
    ),
    "sessions of others": (
        lambda machine: machine.answers.update({"pg_stat_activity": ["ada in shop (psql, process 17)"]}),
        r"Others use PostgreSQL 15/main now: ada in shop \(psql, process 17\)",
    ),
    "extension": (
        lambda machine: machine.answers.update({"pg_extension": ["plpgsql", "postgis"]}),
        "does not have the extension postgis.*apt-cache search postgresql-17 | grep -i postgis",
    ),
    "new cluster in use": (
        lambda machine: machine.write("var/lib/postgresql/17/main/base/16400/PG_VERSION"),
        "PostgreSQL 17/main exists and has databases.*PLAYBOOK -e replace_new_cluster=true",
    ),
    "disk": (
        lambda machine: setattr(program, "EXTRA_BYTES", 2**60),
        r"free; the copy of PostgreSQL 15/main needs 1073741824.0 GiB",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_fail_is_refused_before_the_application_stops(
    machine: Machine, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "EXTRA_BYTES", 1)
    prepare, text = REFUSALS[case]
    prepare(machine)
    with pytest.raises(program.UpgradeError, match=text):
        machine.upgrade().plan()
    assert machine.state_of() == ""
    assert not [call for call in machine.calls if not call.startswith(("pg_ctlcluster 15 main status", "runuser"))]


def test_databases_of_others_are_copied_when_that_is_meant(machine: Machine) -> None:
    machine.answers |= {"datistemplate": ["blog"], "pg_stat_activity": ["ada in blog (psql, process 17)"]}
    forth(machine, others=True)
    assert_upgraded(machine)


# --- Afterwards


def test_a_second_upgrade_after_a_return_replaces_the_new_cluster_only_when_told_to(machine: Machine) -> None:
    forth(machine)
    back(machine)
    since = machine.upgrade().state.since
    with pytest.raises(program.UpgradeError, match=f"has what was written since {since}, before the return"):
        machine.upgrade().plan()
    forth(machine, replace=True)
    assert_upgraded(machine)


def test_the_old_cluster_is_removed_only_after_the_upgrade(machine: Machine) -> None:
    with pytest.raises(program.UpgradeError, match="15/main has the databases: upgrade them first"):
        machine.upgrade().drop()
    forth(machine)
    assert "is removed" in machine.upgrade().drop()["lines"][0]
    assert not machine.folder("15").exists()
    assert machine.rows("17") == ROWS
    assert machine.upgrade().drop()["lines"] == ["There is no cluster of an earlier version."]
    with pytest.raises(program.UpgradeError, match="was removed: there is no way back"):
        machine.upgrade().back()


def test_there_is_no_way_back_without_an_upgrade(machine: Machine) -> None:
    with pytest.raises(program.UpgradeError, match="No upgrade to PostgreSQL 17 is recorded"):
        machine.upgrade().back()


def test_the_maintenance_page_of_the_operator_is_remembered(machine: Machine) -> None:
    """A run that was killed finds the page on, because of itself."""
    assert machine.upgrade(maintenance=False).begin()["maintenance"] is False
    assert machine.upgrade(maintenance=True).begin()["maintenance"] is False


def test_both_programs_have_the_same_file_and_steps() -> None:
    assert in_use.POSTGRESQL_UPGRADE == program.STATE
    assert set(in_use.UNFINISHED_STEPS) == {*program.UNFINISHED, program.RETURNING}
