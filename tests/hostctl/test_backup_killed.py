"""A backup, copy, drill or restore that is killed at any step is told; the data and the copies are as they were.

The steps are found by running each once: every change of a file, and the middle of every write, by hostctl and by the
stand-ins for PostgreSQL and the programs. A run is a process of its own. It is stopped at each step, and the files that
a kill would leave there are kept; then such a process gets SIGKILL, which must leave the same files and no lock.
"""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import shutil
import signal
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl.backup import commands, drill, notes, restore, run, scratch
from hostctl.backup.configuration import LOCAL, OFFSITE, Configuration
from hostctl.backup.server import Server
from hostctl.backup.state import State, is_held, lock
from hostctl.backup.tools import Repository, Restic, Target
from hostctl.host import Host
from hostctl.settings import BusyError, ReleaseError, Settings
from tests.hostctl.fake_backups import SEGMENT_BYTES, Steps, Tree, World, backups_of, read_tree, write_tree

ROWS = ["first", "second"]
OPTIONS = {
    "action": None, "full": False, "json": False, "source": "", "at": "", "offsite": False, "show": False,
    "yes": False, "undo": False, "other_secrets": False, "uploads": False, "database_only": False,
    "complete": False,
}  # fmt: skip

LATER: list[list[dict[str, Any]]] = [
    [{}, {"action": "drill", "source": LOCAL}], [], [], [{}, {"action": "drill", "source": OFFSITE}], [],
]  # fmt: skip


class Manager:
    def __init__(self, world: World) -> None:
        self.world = world

    def alive(self) -> dict[str, str]:
        return {"web": "r1"} if self.world.application.read_text() == "runs" else {}


@dataclass
class Installation:
    """A host of which copies are made: each kill begins with the same one."""

    world: World
    settings: Settings
    # Between the two rows.
    moment: str = ""
    # Why the application does not start.
    boot_problem: str = ""
    # What follows, for some of the kills: each costs a tenth of a second.
    later: Iterator[list[dict[str, Any]]] = field(default_factory=lambda: itertools.cycle(LATER))
    kept: dict[str, Tree] = field(default_factory=dict)

    def keep(self, name: str) -> None:
        self.kept[name] = read_tree(self.world.root)

    def reset(self, name: str) -> None:
        write_tree(self.world.root, self.kept[name])

    def run(self, *calls: dict[str, Any], steps: Steps | None = None) -> list[tuple[int, str]]:
        """Run `shopctl backup …` for each of the calls; return their exit statuses and outputs."""
        results = []
        with pytest.MonkeyPatch.context() as patch:
            install(patch, self.world)
            host = Host(self.settings)
            host.manager = Manager(self.world)
            if self.boot_problem:
                patch.setattr(Host, "boot", lambda host: self.refuse_to_boot())
            if steps:
                steps.watch(patch)
            for call in calls:
                with redirect_stdout(io.StringIO()) as output:
                    try:
                        status = commands.run(host, Namespace(**OPTIONS | call))
                    except (BusyError, ReleaseError) as error:
                        status = 1
                        print(error)
                results.append((status, output.getvalue()))
        return results

    def stops(self, call: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """Run a call in a process that stops at each of its steps; yield the process and the step, then resume it.

        The caller may kill the process instead.
        """
        outside = self.world.root.parent
        log, results = outside / "steps", outside / "results"
        process = os.fork()
        if not process:
            status = 99
            try:
                gc.disable()
                results.write_text(json.dumps(self.run(call, steps=Steps(log))))
                status = 0
            except BaseException:
                results.write_text(traceback.format_exc())
            os._exit(status)
        has_ended = False
        try:
            while os.WIFSTOPPED(status := os.waitpid(process, os.WUNTRACED)[1]):
                yield process, log.read_text().splitlines()[-1]
                os.kill(process, signal.SIGCONT)
            has_ended = True
        finally:
            # After a failed assertion of the caller.
            if not has_ended:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return
        assert status == 0, results.read_text()
        ((status, output),) = json.loads(results.read_text())
        # Without a yes, it ends after what it has to complete.
        assert status == 0 or "add --yes" in output, output

    def refuse_to_boot(self) -> None:
        raise ReleaseError(self.boot_problem)

    def kills(self, template: str, **call: Any) -> Iterator[str]:
        """Yield each step of a command, with the files of the host as they are after a kill there.

        Steps with the same files as the one before are left out.
        """
        self.reset(template)
        found: list[tuple[str, Tree]] = []
        steps = []
        for _, step in self.stops(call):
            steps.append(step)
            files = read_tree(self.world.root)
            if not found or files != found[-1][1]:
                found.append((step, files))
        assert len(steps) > 10, "these are not all of the steps"
        self.kill_in_the_middle(template, call, len(steps) // 2)
        for step, files in found:
            write_tree(self.world.root, files)
            yield step

    def kill_in_the_middle(self, template: str, call: dict[str, Any], number: int) -> None:
        """Kill a process where it has stopped: its files stay as they are, and its locks are released."""
        files: Tree = {}

        def is_there() -> bool:
            nonlocal files, number
            number -= 1
            files = read_tree(self.world.root)
            if number:
                return False
            assert any(is_held(self.world.configuration, name) for name in ("drill", "work", "ship"))
            return True

        self.kill(template, is_there, **call)
        assert read_tree(self.world.root) == files
        self.assert_unlocked()

    def kill(self, template: str, condition: Callable[[], Any], **call: Any) -> None:
        """Kill a command at the first of its steps at which the condition is true."""
        self.reset(template)
        is_killed = False
        for process, _ in self.stops(call):
            if condition():
                os.kill(process, signal.SIGKILL)
                is_killed = True
        assert is_killed, "the condition was never true"

    # -- what must be true after each

    def notes(self) -> str:
        return "\n".join(notes.notes(self.settings))

    def assert_unlocked(self) -> None:
        for name in ("drill", "work", "ship"):
            with lock(self.world.configuration, name):
                pass

    def assert_as_before(self, rows: list[str]) -> None:
        """The database, the application and the uploads."""
        world = self.world
        assert world.rows == rows
        assert [file.read_text() for file in (world.postgresql, world.application)] == ["runs", "runs"]
        assert world.at_boot.read_text() == "enable"
        assert (world.root / "media/upload").read_text() == "upload"

    def assert_target_is_restorable(self) -> None:
        """A new host finds what it needs: the record, its segment, and a base backup that the target names."""
        record = read_record(self.world.target)
        segments = list(self.world.target.glob(f"archive/shop/17-1/*/{record['segment']}-*.zst"))
        assert [json.loads(path.read_text())["canary"] for path in segments] == [record["seconds"]]
        for backup in backups_of(self.world.target):
            manifest = self.world.target / "backup/shop" / backup["label"] / "manifest"
            assert json.loads(manifest.read_text()) == backup, "the target names a backup that it does not have"


def read_record(target: Path) -> dict[str, Any]:
    for name in ("shipped.json", "shipped.json.copy"):
        try:
            return json.loads((target / name).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
    raise AssertionError("a new host would find no record at the target")


def install(patch: pytest.MonkeyPatch, world: World) -> None:
    """Replace what is outside of hostctl."""
    by_server: dict[str, Callable[..., Any]] = {
        "run": lambda self, script, *arguments, **more: world.answer(script),
        "write_canary": lambda self: world.write_canary(),
        "wait_archived": lambda self, segment: None,
        "segment_bytes": lambda self: SEGMENT_BYTES,
        "roles": lambda self: [],
        "canary_age": lambda self, moment: moment - world.read_state(self.data)["canary"],
    }
    for name, answer in by_server.items():
        patch.setattr(Server, name, answer)

    def start(self: scratch.Scratch) -> None:
        world.recover(self.data)
        self.server.data = self.data  # type: ignore[attr-defined]

    patch.setattr(scratch.Scratch, "start", start)
    patch.setattr(scratch.Scratch, "stop", lambda self: None)
    patch.setattr(
        Repository, "call", lambda self, command, *words, **more: world.pgbackrest(self.path, command, *words)
    )
    patch.setattr(Target, "call", lambda self, command, *words, **more: world.rclone(command, *words, **more))
    patch.setattr(Restic, "call", lambda self, *words, **more: world.restic(*words))
    patch.setattr(restore, "call", world.system)
    patch.setattr(restore, "wait_ended", lambda *arguments: None)
    for module in (restore, drill):
        patch.setattr(module, "migrations", lambda server, database: {})
    patch.setattr(drill, "count_rows", lambda server, database: {"rows": 1})
    patch.setattr(drill, "check_readable", lambda configuration, server: None)
    patch.setattr(drill, "digest", lambda path: path.read_text())
    patch.setattr(drill, "RESERVE", 0)
    patch.setattr(shutil, "chown", lambda *arguments, **more: None)
    # The application.
    patch.setattr(Host, "current_release", lambda self: "r1")
    patch.setattr(Host, "halt", lambda self: world.switch(world.application, "stopped"))
    patch.setattr(Host, "boot", lambda self: world.switch(world.application, "runs"))
    patch.setattr(restore, "Exchange", lambda host: SimpleNamespace(start=host.boot))
    patch.setattr(restore, "apply_pending", lambda host, release: [])
    answers = SimpleNamespace(ask=lambda *words: {"migrations": []} if words[0] == "known_migrations" else {})
    answers.close = lambda: None
    patch.setattr(restore, "Application", lambda host, release: answers)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A host with two rows, both copied off the host; a base backup is from before them."""
    root = tmp_path_factory.mktemp("backups")
    world = World(root / "world")
    world.create()
    (root / "srv/shop").mkdir(parents=True)
    (root / "etc/shop").mkdir(parents=True)
    settings = Settings(
        name="shop", domain="shop.example.org", celery_app="core", root=root / "srv", config=root / "etc"
    )
    found = Installation(world, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Configuration, "load", lambda settings: world.configuration)
        ((status, output),) = found.run({})
        assert status == 0, output
        # A backup ends at a full second, which a moment to restore must follow.
        time.sleep(2.1)
        world.insert("first")
        assert found.run({"action": "ship"})[0][0] == 0
        found.moment = datetime.now(UTC).isoformat()
        world.insert("second")
        assert found.run({"action": "ship"})[0][0] == 0
    # The next copy makes sure that the target is its own.
    State(world.configuration, "ship").write(checked_at=0)
    found.keep("copied")
    return found


@pytest.fixture
def installation(copied: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setattr(Configuration, "load", lambda settings: copied.world.configuration)
    monkeypatch.setattr(notes, "seconds_for", lambda settings: 60.0)
    copied.reset("copied")
    return copied


@pytest.mark.parametrize(
    "call",
    [
        {"full": True},
        {"action": "ship"},
        {"action": "drill", "source": LOCAL},
        {"action": "drill", "source": OFFSITE},
    ],
    ids=["backup", "ship", "drill-local", "drill-offsite"],
)
def test_a_killed_run_is_told_and_repeated(installation: Installation, call: dict[str, Any]) -> None:
    configuration, told = installation.world.configuration, 0
    for step in installation.kills("copied", **call):
        installation.assert_unlocked()
        installation.assert_as_before(ROWS)
        installation.assert_target_is_restorable()
        was_running = [kind for kind in notes.WHAT if State(configuration, kind).read().get("running_since")]
        assert ("was killed" in installation.notes()) == bool(was_running), step

        ((status, output),) = installation.run(call)
        assert status == 0, f"{step}: {output}"
        if was_running:
            assert "was killed" in output, step
            told += 1
        assert "was killed" not in installation.notes(), step
        installation.assert_as_before(ROWS)
        left = {path.name for path in configuration.state_folder.iterdir()}
        assert not {"drill", "index", "recovery"} & left, step
    assert told > 5


@pytest.mark.parametrize("offsite", [False, True], ids=["local", "offsite"])
def test_a_killed_restore_is_reverted_or_completed(installation: Installation, offsite: bool) -> None:
    """By what the status says to type, which restores nothing else."""
    world, outcomes = installation.world, set()
    for step in installation.kills("copied", action="restore", at=installation.moment, offsite=offsite, yes=True):
        installation.assert_unlocked()
        is_unfinished = notes.has_unfinished_restore(world.configuration)
        assert ("A restore was killed" in installation.notes()) == is_unfinished, step
        if world.application.read_text() == "stopped":
            assert is_unfinished, step
            is_accepted = State(world.configuration, "restore").read()["accepted"]
            assert is_accepted or world.at_boot.read_text() == "disable", step
        outcomes.add(complete(installation, step, {"reverted": ROWS, "completed": ROWS[:1]}))
    assert outcomes == {"reverted", "completed"}


@pytest.mark.parametrize("moment", ["reverted", "completed"])
def test_a_restore_whose_completion_is_killed_too(installation: Installation, moment: str) -> None:
    world = installation.world

    def is_the_moment() -> bool:
        if moment == "reverted":
            return not world.repository.exists()
        return bool(State(world.configuration, "restore").read().get("completing"))

    call = {"action": "restore", "at": installation.moment, "offsite": True, "yes": True}
    installation.kill("copied", is_the_moment, **call)
    installation.keep("killed")
    for step in installation.kills("killed", action="restore"):
        installation.assert_unlocked()
        if not notes.has_unfinished_restore(world.configuration):
            break
        assert complete(installation, step, {"reverted": ROWS, "completed": ROWS[:1]}) == moment


def test_a_killed_return_to_the_former_database_is_completed(installation: Installation) -> None:
    assert installation.run({"action": "restore", "at": installation.moment, "yes": True})[0][0] == 0
    installation.keep("restored")
    configuration, outcomes = installation.world.configuration, set()
    for step in installation.kills("restored", action="restore", undo=True, yes=True):
        installation.assert_unlocked()
        assert ("A restore was killed" in installation.notes()) == notes.has_unfinished_restore(configuration), step
        if "completed" not in outcomes and State(configuration, "restore").read().get("undoing"):
            before = (installation.world.root / "main/state").read_text()
            ((status, output),) = installation.run({"action": "restore", "undo": True, "show": True})
            assert (status, "It will be completed" in output) == (0, True), output
            assert (installation.world.root / "main/state").read_text() == before, "it was only to be shown"
        outcomes.add(complete(installation, step, {"not begun": ROWS[:1], "completed": ROWS}))
    assert outcomes == {"not begun", "completed"}


def test_the_repository_that_a_restore_has_replaced_is_named_after_a_return(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the command that completes a return that was killed; the next restore does not bring it back."""

    def unused(folder: Path) -> Path:
        # In the product, the names have the second: restores take longer.
        names = (folder.with_name(f"{folder.name}.before-{number}") for number in itertools.count())
        return next(name for name in names if not name.exists())

    monkeypatch.setattr(restore, "before", unused)
    state = State(installation.world.configuration, "restore")
    call = {"action": "restore", "at": installation.moment, "offsite": True, "yes": True}
    assert installation.run(call)[0][0] == 0
    repository = Path(state.read()["repository"])
    assert repository.is_dir()
    installation.keep("restored")
    installation.kill("restored", lambda: state.read().get("undoing"), action="restore", undo=True, yes=True)
    ((_, output),) = installation.run({"action": "restore"})
    kept = state.read()["kept"]
    assert f"The restored database is in {kept}" in output
    assert f"rm -r {kept} {repository}\n" in output
    installation.keep("returned")

    def has_replaced() -> bool:
        found = state.read()
        return found.get("accepted") is False and Path(found["kept"]).exists()

    installation.kill("returned", has_replaced, action="restore", at=installation.moment, yes=True)
    installation.run({"action": "restore"})
    installation.assert_as_before(ROWS)
    # Only the repository of this host itself has that file.
    assert (repository / "own").exists(), "it replaced the present one"
    assert state.read()["repository"] == str(repository)


def complete(installation: Installation, step: str, outcomes: dict[str, list[str]]) -> str:
    """Type what the status says, without a yes; return which outcome that has, and check that backups continue."""
    (restored, output), *others = installation.run({"action": "restore"}, *next(installation.later))
    assert (restored, "add --yes" in output) == (1, True), f"{step}: {output}"
    (outcome,) = [name for name, rows in outcomes.items() if rows == installation.world.rows]
    for status, text in others:
        assert status == 0, f"{step}, {outcome}: {text}"
    installation.assert_as_before(outcomes[outcome])
    assert outcome != "reverted" or (installation.world.repository / "own").exists(), step
    # Without another one, that the backup after a restore was killed is still told.
    assert ("killed" if others else "A restore was killed") not in installation.notes(), step
    return outcome


def test_a_file_that_is_lost_here_stays_at_the_target(installation: Installation) -> None:
    """The newest state does not need it: a drill from the target passes, and one from this host names it."""
    world = installation.world
    assert installation.run({"full": True})[0][0] == 0
    older = backups_of(world.repository)[0]["label"]
    world.base(older).unlink()
    ((status, output),) = installation.run({"action": "drill", "source": OFFSITE})
    assert status == 0, output
    there = world.target / "backup/shop" / older / "state"
    assert there.exists()
    ((status, output),) = installation.run({"action": "drill", "source": LOCAL})
    assert (status, f"file missing '{older}/state'" in output) == (1, True), output
    assert there.exists()


def test_an_expired_backup_is_removed_from_the_target_by_a_drill_from_this_host(installation: Installation) -> None:
    world = installation.world
    assert installation.run({"full": True})[0][0] == 0
    older, *newer = backups_of(world.repository)
    shutil.rmtree(world.base(older["label"]).parent)
    for name in ("backup.info", "backup.info.copy"):
        (world.repository / "backup/shop" / name).write_text(json.dumps(newer))
    there = world.target / "backup/shop" / older["label"] / "state"
    for source, is_there in ((OFFSITE, True), (LOCAL, False)):
        ((status, output),) = installation.run({"action": "drill", "source": source})
        assert (status, there.exists()) == (0, is_there), output


@pytest.mark.parametrize("reads", ["verify", "read_part"])
def test_uploads_are_copied_while_a_drill_reads(installation: Installation, reads: str) -> None:
    """That may take hours. A base backup, which expires what is read, and a restore wait."""
    configuration, results = installation.world.configuration, []
    with pytest.MonkeyPatch.context() as patch:
        original = getattr(drill, reads)

        def read(*arguments: Any, **more: Any) -> Any:
            State(configuration, "files").write(ok_at=0)
            with redirect_stdout(io.StringIO()) as output:
                run.regular(configuration)
            results.append((State(configuration, "files").read()["ok_at"] > 0, output.getvalue()))
            assert not notes.was_killed(configuration, "drill")
            assert is_held(configuration, "drill")
            return original(*arguments, **more)

        patch.setattr(drill, reads, read)
        install(patch, installation.world)
        with redirect_stdout(io.StringIO()):
            drill.drill(configuration, LOCAL)
    assert results
    assert all(is_copied for is_copied, _ in results), results


@pytest.mark.parametrize("call", [{"full": True}, {"action": "restore", "yes": True}], ids=["backup", "restore"])
def test_a_base_backup_and_a_restore_wait_for_a_drill(installation: Installation, call: dict[str, Any]) -> None:
    before = backups_of(installation.world.repository)
    with lock(installation.world.configuration, "drill"), pytest.MonkeyPatch.context() as patch:
        for module in (run, restore):
            patch.setattr(module, "lock", lambda configuration, name, wait=0: lock(configuration, name))
        ((status, output),) = installation.run(call)
    assert (status, "is running (process" in output) == (1, True), output
    assert backups_of(installation.world.repository) == before


def test_what_would_be_restored_is_shown_during_a_drill(installation: Installation) -> None:
    with lock(installation.world.configuration, "drill"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "lock", lambda configuration, name, wait=0: lock(configuration, name))
        ((status, output),) = installation.run({"action": "restore", "show": True})
    assert (status, "To restore: the database as it was at" in output) == (0, True), output


def test_a_return_whose_application_does_not_start_is_complete(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not begin again with each restore."""
    configuration = installation.world.configuration
    assert installation.run({"action": "restore", "at": installation.moment, "yes": True})[0][0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(installation, "boot_problem", "no worker")
        ((status, output),) = installation.run({"action": "restore", "undo": True, "yes": True})
    assert (status, "no worker" in output, "backup --full" in output) == (1, True, True), output
    assert installation.world.rows == ROWS
    state = State(configuration, "restore").read()
    assert (state.get("undoing"), state["accepted"]) == (None, True)
    assert State(configuration, "gaps").read()["gaps"]
    assert State(configuration, "ship").read()["local"] == {}
    assert not notes.has_unfinished_restore(configuration)
