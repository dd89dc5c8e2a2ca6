"""Each release has its own configuration: a failed run leaves that of the live one, and a rollback finds it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hostctl import settings as settings_module
from hostctl.application import Application
from hostctl.deploy import configuration, queues
from hostctl.host import Host
from hostctl.processes import Processes, systemd
from hostctl.settings import OF_RELEASE, Process, Settings, Worker, read_environment
from tests.hostctl.fakes import NEW, OLD, Answers, Killed, Manager, deploy, failure, make_release

ROOT = Path(__file__).parents[2]
# Settings of the server: what they change does not depend on the release.
OF_SERVER = {
    "name", "bake", "keep_releases", "dump_before_migrate", "migration_block_seconds", "access_log", "login_paths",
    "status_path", "flower_path", "create_admin", "system_packages", "proxy_environment", "manage_options",
    "leader", "barriers", "root", "config",
}  # fmt: skip
# A release with other settings.
CHANGED: dict[str, Any] = {
    "domain": "new.example.org",
    "domains": ["new.example.org"],
    "workers": [Worker("renamed", ["default", "mail"])],
    "queues": ["default", "mail"],
    "web": False,
    "health_path": "/up/",
    "project_dir": "backend",
    "beat": False,
}


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of systemd's units; systemctl only remembers."""
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setattr(systemd, "UNITS", units)
    return units


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def systemctl(*arguments: str) -> str:
        found.append(arguments)
        return ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    return found


def write_next(settings: Settings, **environment: str) -> None:
    """Write what Ansible writes for the next release."""
    folder = settings.next_configuration
    (folder / "systemd").mkdir(exist_ok=True)
    lines = [f'{name}="{value}"\n' for name, value in environment.items()]
    (folder / "app.env").write_text("".join(lines))
    names = [f"{settings.name}-beat", *(f"{unit.partition('@')[0]}@" for unit in settings.units("any-1"))]
    for name in names:
        text = f"{name} of @RELEASE@ with {settings.health_check_timeout}"
        (folder / f"systemd/{name}.service").write_text(text)


def configured(live: Host) -> Host:
    """Give OLD a configuration, as its deployment did."""
    write_next(live.settings, SETTING="old", DATABASE_URL="old")
    configuration.configure(live, OLD)
    write_next(live.settings, SETTING="new", DATABASE_URL="new")
    return live


def with_settings(live: Host, **values: Any) -> Host:
    """Return the host as the next run sees it: site.yml has written other settings."""
    host = Host(dataclasses.replace(live.settings, **values))
    host.manager = live.manager
    write_next(host.settings, SETTING="new", DATABASE_URL="new")
    return host


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Every setting has a class


def test_every_setting_is_of_the_release_or_of_the_server() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names == set(OF_RELEASE) | OF_SERVER
    assert not set(OF_RELEASE) & OF_SERVER


@pytest.mark.parametrize("name", OF_RELEASE)
def test_a_release_keeps_its_settings(settings: Settings, name: str) -> None:
    (settings.configurations / OLD).mkdir(parents=True)
    settings.record(OLD)
    value = getattr(settings, name)
    other = CHANGED.get(name, not value if isinstance(value, bool) else 4242 if isinstance(value, int) else ["other"])
    changed = dataclasses.replace(settings, **{name: other})
    assert getattr(changed.of(OLD), name) == value
    assert getattr(changed.of(NEW), name) == other
    assert changed.of(OLD) == settings


def test_settings_of_the_server_are_those_of_today(settings: Settings) -> None:
    (settings.configurations / OLD).mkdir(parents=True)
    settings.record(OLD)
    today = dataclasses.replace(settings, keep_releases=9, leader=False)
    assert (today.of(OLD).keep_releases, today.of(OLD).leader) == (9, False)


def test_settings_of_another_version_are_ignored(settings: Settings) -> None:
    (settings.configurations / OLD).mkdir(parents=True)
    workers = [{"name": "io", "queues": ["io"], "colour": "blue"}]
    file = settings.configurations / OLD / settings_module.RELEASE_FILE
    file.write_text(json.dumps({"workers": workers, "colour": "blue"}))
    assert settings.of(OLD).workers == [Worker("io", ["io"])]


def test_a_release_of_an_earlier_version_has_nothing_of_the_next_one(live: Host, answers: Answers) -> None:
    """Its settings lack what that version did not know. A reboot starts it, and a rollback brings it back."""
    configured(live)
    file = live.settings.configurations / OLD / settings_module.RELEASE_FILE
    values = json.loads(file.read_text())
    for name in ("processes", "cron", "asgi_app", "health_status"):
        del values[name]
    file.write_text(json.dumps(values))
    next_run = with_settings(
        live, processes=[Process("bot")], cron=["clear"], asgi_app="config.asgi", health_status=404
    )
    assert next_run.units(OLD) == [f"shop-web@{OLD}", f"shop-worker-default@{OLD}"]
    assert next_run.settings.of(OLD).cron == []
    assert next_run.settings.of(OLD).asgi_app == ""
    assert next_run.settings.of(OLD).health_status == 200


# --- A deployment that fails


@pytest.mark.parametrize("question", ["check", "ping", "smoke_test"])
@pytest.mark.parametrize("change", [*CHANGED, "manager"])
def test_a_failed_release_leaves_the_configuration_of_the_live_one(
    live: Host, manager: Manager, answers: Answers, change: str, question: str
) -> None:
    """What a restart, or a reboot, starts afterwards."""
    configured(live)
    before, wanted = files(live.settings.configurations), set(live.units(OLD))
    next_run = with_settings(live, **{change: CHANGED.get(change, "supervisor")})
    answers.override[question] = failure(question)
    assert deploy(next_run) == 1
    assert files(live.settings.configurations) == before
    assert manager.running == wanted
    manager.running.clear()
    next_run.boot()
    assert manager.running == wanted
    assert next_run.settings.of(OLD) == live.settings
    assert not (live.settings.configurations / NEW).exists()


@pytest.mark.parametrize("question", ["check", "smoke_test"])
def test_the_environment_of_the_live_release_stays(live: Host, answers: Answers, question: str) -> None:
    configured(live)
    for release in (OLD, NEW):
        live.path(release).mkdir(exist_ok=True)
        (live.path(release) / "release.env").write_text("")
    seen: list[str] = []
    answers.override[question] = failure(question)
    assert deploy(live) == 1
    seen.append(Application(live, OLD).environment()["SETTING"])
    answers.override.clear()
    assert deploy(live) == 0
    (live.path(NEW) / "release.env").write_text("")
    seen += [Application(live, release).environment()["SETTING"] for release in (OLD, NEW)]
    assert seen == ["old", "old", "new"]


def test_a_killed_deployment_leaves_it_too(live: Host, answers: Answers) -> None:
    configured(live)
    before = files(live.settings.configurations / OLD)
    answers.override["ping"] = Killed()
    with pytest.raises(Killed):
        deploy(with_settings(live, workers=CHANGED["workers"]))
    assert files(live.settings.configurations / OLD) == before
    answers.override.clear()
    assert deploy(live, "other-3") == 0
    assert not (live.settings.configurations / NEW).exists()


@pytest.fixture
def built_twice(live: Host, answers: Answers) -> Host:
    """OLD, whose deployment has found the queues of its worker, is built; NEW is live; OLD is deployed again."""
    host = with_settings(configured(live), workers=[Worker("main")], queues=[], keep_releases=3)
    worker = host.settings.next_configuration / "systemd/shop-worker-main@.service"
    worker.write_text(f"--queues {queues.PLACEHOLDER}")
    configuration.configure(host, OLD)
    queues.resolve(host.settings, OLD, ["celery"])
    make_release(host, NEW)
    configuration.configure(host, NEW)
    host.switch(NEW)
    return host


def test_a_built_release_whose_deployment_fails_keeps_its_configuration(built_twice: Host, answers: Answers) -> None:
    """Or a rollback to it would start a worker without queues."""
    before = files(built_twice.settings.configurations)
    answers.override["check"] = failure("check")
    assert deploy(built_twice, OLD) == 1
    assert files(built_twice.settings.configurations) == before
    assert built_twice.queues(f"shop-worker-main@{OLD}") == ["celery"]


@pytest.mark.parametrize("then", ["another release", "the same release"])
def test_a_built_release_whose_deployment_is_killed_keeps_it_too(
    built_twice: Host, answers: Answers, then: str
) -> None:
    settings = built_twice.settings
    before = files(settings.configurations / OLD)
    for _ in range(2):
        answers.override["check"] = Killed()
        with pytest.raises(Killed):
            deploy(fresh(built_twice, settings), OLD)
    answers.override.clear()
    if then == "another release":
        assert deploy(fresh(built_twice, settings), "other-3") == 0
    else:
        configuration.restore(built_twice, OLD)
    assert files(settings.configurations / OLD) == before
    assert not list(settings.configurations.glob("*.kept"))


def test_a_deployment_that_succeeds_keeps_no_copy(built_twice: Host, answers: Answers) -> None:
    assert deploy(built_twice, OLD) == 0
    assert not list(built_twice.settings.configurations.glob("*.kept"))
    assert built_twice.queues(f"shop-worker-main@{OLD}") == ["default"]


def fresh(host: Host, settings: Settings) -> Host:
    """Return the host as another process sees it."""
    other = Host(settings)
    other.manager = host.manager
    return other


def test_a_release_has_its_own_copy_of_what_runs_in_its_interpreter(live: Host, answers: Answers) -> None:
    """An upgrade of this program replaces only that of the next release."""
    configured(live)
    lib = live.settings.configurations / OLD / "lib"
    command = [sys.executable, str(lib / "hostctl/in_app/celery_runner.py"), "worker", "--help"]
    done = subprocess.run(command, cwd=lib, capture_output=True, text=True, check=True)
    assert "--concurrency" in done.stdout
    (lib / "hostctl/in_app/celery_runner.py").write_text("# of an earlier version")
    assert deploy(live) == 0
    assert (lib / "hostctl/in_app/celery_runner.py").read_text() == "# of an earlier version"
    new = live.settings.configurations / NEW / "lib/hostctl/in_app/celery_runner.py"
    assert new.read_text() == (ROOT / "hostctl/in_app/celery_runner.py").read_text()


def test_without_settings_for_the_next_release_nothing_is_deployed(
    live: Host, manager: Manager, answers: Answers, capsys: Any
) -> None:
    configured(live)
    for file in live.settings.next_configuration.rglob("*"):
        file.unlink() if file.is_file() else None
    (live.settings.next_configuration / "systemd").rmdir()
    live.settings.next_configuration.rmdir()
    assert deploy(live) == 1
    assert "next is missing: run site.yml" in capsys.readouterr().out
    assert manager.running == set(live.units(OLD))


# --- A rollback


WORKERS = {
    "added": [Worker("default", ["default"]), Worker("more", ["more"])],
    "removed": [],
    "renamed": [Worker("renamed", ["default"])],
    "other-queues": [Worker("default", ["default", "mail"])],
}


@pytest.mark.parametrize("change", [{"workers": workers} for workers in WORKERS.values()] + [
    {"web": False}, {"manager": "supervisor"}, {"beat": False},
], ids=[*WORKERS, "web", "manager", "beat"])  # fmt: skip
def test_a_rollback_brings_a_release_back_as_it_was(
    live: Host, manager: Manager, answers: Answers, change: dict[str, Any]
) -> None:
    """Its units, its settings and its environment, whatever the newer release has changed."""
    configured(live)
    wanted, before = set(live.units(OLD)), files(live.settings.configurations / OLD)
    newer = with_settings(live, **change)
    assert deploy(newer) == 0
    assert manager.running == set(newer.units(NEW)) != wanted or "workers" not in change
    back = newer.about(OLD)
    back.manager = manager
    assert deploy(back, OLD, "rollback") == 0
    assert live.current_release() == OLD
    assert manager.running == wanted
    assert files(live.settings.configurations / OLD) == before


def test_a_rollback_keeps_todays_passwords_and_places_of_data(live: Host, answers: Answers, capsys: Any) -> None:
    """The older ones may be rejected by now, or lead to data that nothing writes any more."""
    settings = dataclasses.replace(live.settings, connections=["DATABASE_URL", "CACHE_URL", "GONE"])
    write_next(settings, SETTING="old", DATABASE_URL="old", PLACE="old")
    live.settings = settings
    configuration.configure(live, OLD)
    (settings.configurations / OLD / "migrate.env").write_text('DATABASE_URL="old owner"\n')
    write_next(settings, SETTING="new", DATABASE_URL='new\\"', CACHE_URL="new")
    (settings.next_configuration / "migrate.env").write_text('DATABASE_URL="new owner"\n')
    assert deploy(live) == 0
    capsys.readouterr()
    assert deploy(live, OLD, "rollback") == 0
    found = read_environment(settings.configuration(OLD) / "app.env")
    assert found == {"SETTING": "old", "DATABASE_URL": 'new"', "PLACE": "old"}
    assert read_environment(settings.configuration(OLD) / "migrate.env") == {"DATABASE_URL": "new owner"}
    assert f"Release {OLD} gets today's CACHE_URL, DATABASE_URL." in capsys.readouterr().out


def test_a_rollback_without_all_units_is_refused_before_anything_changes(
    live: Host, manager: Manager, answers: Answers, units: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    configured(live)
    assert deploy(live) == 0
    before = set(manager.running)
    (live.settings.configurations / OLD / "systemd/shop-worker-default@.service").unlink()
    monkeypatch.setattr(manager, "missing", Processes(live.settings).missing)
    assert deploy(live, OLD, "rollback") == 1
    assert f"has no definition of shop-worker-default@{OLD}" in capsys.readouterr().out
    assert (live.current_release(), manager.running) == (NEW, before)


def test_names_of_the_current_release_come_first(live: Host, answers: Answers) -> None:
    configured(live)
    newer = with_settings(live, domain="10.0.0.9", domains=["10.0.0.9", "a.example.org"])
    assert deploy(newer) == 0
    assert newer.domains() == ["10.0.0.9", "a.example.org", "shop.example.org"]
    newer.switch(OLD)
    assert newer.domains() == ["shop.example.org", "10.0.0.9", "a.example.org"]


# --- Units of systemd


def test_each_release_has_its_own_unit_files(live: Host, units: Path, calls: list[tuple[str, ...]]) -> None:
    configured(live)
    manager = systemd.Systemd(live.settings)
    manager.prepare(OLD)
    manager.prepare(OLD)
    assert calls == [("daemon-reload",)], "once is enough"
    newer = with_settings(live, workers=[Worker("renamed", ["default"])], health_check_timeout=7)
    configuration.configure(newer, NEW)
    systemd.Systemd(newer.settings).prepare(NEW)
    assert {file.name: file.read_text() for file in units.iterdir()} == {
        f"shop-web@{OLD}.service": f"shop-web@ of {OLD} with 1",
        f"shop-worker-default@{OLD}.service": f"shop-worker-default@ of {OLD} with 1",
        f"shop-web@{NEW}.service": f"shop-web@ of {NEW} with 7",
        f"shop-worker-renamed@{NEW}.service": f"shop-worker-renamed@ of {NEW} with 7",
    }
    manager.forget(OLD)
    assert {file.name for file in units.iterdir()} == {f"shop-web@{NEW}.service", f"shop-worker-renamed@{NEW}.service"}


def test_beat_has_the_unit_of_the_release_that_started_it(
    live: Host, units: Path, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(live)
    monkeypatch.setattr(systemd.Systemd, "start", lambda *_, **options: None)
    manager = systemd.Systemd(live.settings)
    manager.start_beat(OLD)
    assert (units / "shop-beat.service").read_text() == f"shop-beat of {OLD} with 1"
    newer = with_settings(live, health_check_timeout=7)
    configuration.configure(newer, NEW)
    systemd.Systemd(newer.settings).prepare(NEW)
    assert (units / "shop-beat.service").read_text() == f"shop-beat of {OLD} with 1"
    systemd.Systemd(newer.settings).start_beat(NEW)
    assert (units / "shop-beat.service").read_text() == f"shop-beat of {NEW} with 7"


def test_unit_files_of_the_current_release_and_of_running_units_stay(
    live: Host, units: Path, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(live)
    manager = systemd.Systemd(live.settings)
    monkeypatch.setattr(systemd.Systemd, "alive", lambda self: {"shop-worker-old@gone-0": "gone-0"})
    manager.prepare(OLD)
    make_release(live, NEW)
    kept = {file.name for file in units.iterdir()} | {"shop-worker-old@gone-0.service", "shop-flower.service"}
    for name in [
        *kept,
        "shop-web@.service",
        "shop-worker-old@.service",
        "shop-worker-default@gone-0.service",
        f"shop-web@{NEW}.service",
    ]:
        (units / name).write_text("")
    manager.remove_stale()
    assert {file.name for file in units.iterdir()} == kept


# --- Releases that an earlier version of this program built: they share files in /etc/APP


@pytest.fixture
def earlier(live: Host, units: Path, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which only site.yml of this version has run: OLD is live with the files of that version."""
    settings = live.settings
    monkeypatch.setattr(Settings, "library", property(lambda self: settings.root / "lib"))
    (settings.root / "lib").mkdir()
    (settings.root / "lib/run_with_environment").write_text("")
    (settings.etc / "app.env").write_text('SETTING="earlier"\nALLOWED_HOSTS="shop.example.org,www.example.org"\n')
    (settings.etc / "gunicorn.conf.py").write_text("")
    values = {"domain": "shop.example.org", "directory": "src", "celery": "earlier",
              "workers": [{"name": "earlier", "queues": ["default"]}]}  # fmt: skip
    (settings.etc / settings_module.RELEASE_FILE).write_text(json.dumps(values))
    for name in ("shop-web@", "shop-worker-earlier@"):
        (units / f"{name}.service").write_text(name)
    (live.path(OLD) / "release.env").write_text("")
    (live.path(OLD) / "build.json").write_text(json.dumps({"workers": {"earlier": ["default"]}}))
    write_next(settings, SETTING="new")
    live.manager.running = {f"shop-web@{OLD}", f"shop-worker-earlier@{OLD}"}
    return live


def test_a_release_of_an_earlier_version_runs_with_its_files(earlier: Host, manager: Manager, answers: Answers) -> None:
    """Until the first release of this version is live."""
    before = set(manager.running)
    assert set(earlier.units(OLD)) == before
    assert Processes(earlier.settings).missing(OLD) == []
    assert Application(earlier, OLD).environment()["SETTING"] == "earlier"
    assert Application(earlier, OLD).folder == earlier.path(OLD) / "src"
    names = ["shop.example.org", "www.example.org"]
    assert earlier.domains() == with_settings(earlier, domains=["new.example.org"]).domains() == names
    answers.override["smoke_test"] = failure("smoke test")
    assert deploy(earlier) == 1
    assert manager.running == before
    assert ("consumers", "earlier", "add", "default", f"earlier.{OLD}@{os.uname().nodename}") in answers.asked
    assert set(earlier.units(OLD)) == before


def test_a_release_of_an_earlier_version_gets_the_configuration_of_the_first_that_has_one(
    earlier: Host, manager: Manager, answers: Answers, units: Path
) -> None:
    """Its own is not complete: a rollback runs its code with the settings of that release."""
    assert deploy(earlier) == 0
    settings = earlier.settings
    assert files(settings.configurations / OLD) == files(settings.configurations / NEW)
    assert {path.name for path in settings.etc.iterdir()} == {"next", "releases"}
    assert not (settings.library / "run_with_environment").exists()
    assert deploy(earlier, OLD, "rollback") == 0
    assert manager.running == {f"shop-web@{OLD}", f"shop-worker-default@{OLD}"}
    assert earlier.current_release() == OLD


def test_a_first_deployment_that_was_killed_is_reverted_with_the_earlier_files(
    earlier: Host, manager: Manager, answers: Answers
) -> None:
    before = set(manager.running)
    answers.override["smoke_test"] = Killed()
    with pytest.raises(Killed):
        deploy(earlier)
    assert earlier.current_release() == NEW
    answers.override.clear()
    assert deploy(earlier, OLD, "rollback") == 0
    assert (earlier.current_release(), manager.running) == (OLD, before)
    assert earlier.settings.configuration(OLD) == earlier.settings.etc
