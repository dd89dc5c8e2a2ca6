"""Releases on the host: the switch, and which ones are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostctl.host import Host
from hostctl.settings import Settings, read_environment
from tests.hostctl.fakes import Manager, make_release


def test_environment_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "env").write_text('# comment\nPLAIN="a b"\nODD="\\"\\\\ \\$HOME \\` \' # %"\nEMPTY=""\n')
    assert read_environment(tmp_path / "env") == {"PLAIN": "a b", "ODD": "\"\\ $HOME ` ' # %", "EMPTY": ""}


def test_the_switch_is_one_rename(settings: Settings, host: Host) -> None:
    assert host.current_release() == ""
    for release in ("abcd-1", "efgh-2"):
        make_release(host, release)
        host.switch(release)
        assert host.current_release() == release
    assert settings.current.resolve() == settings.releases / "efgh-2"
    assert not (settings.home / "current.new").exists()


def test_old_releases_are_removed_but_not_the_current_one(settings: Settings, host: Host) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "older-2", "oldest-1")):
        make_release(host, release, age=age * 60)
    (settings.releases / "half-built").mkdir()
    host.switch("oldest-1")
    host.prune()
    assert {path.name for path in settings.releases.iterdir()} == {"newest-4", "newer-3", "oldest-1"}


def test_configurations_without_a_release_are_removed(settings: Settings, host: Host) -> None:
    make_release(host, "newest-4")
    host.switch("newest-4")
    for name in ("newest-4", "newest-4.new", "removed-1"):
        (settings.configurations / name).mkdir(parents=True)
    assert host.prune() == ["newest-4.new", "removed-1"]
    assert {path.name for path in settings.configurations.iterdir()} == {"newest-4"}


def test_a_release_with_a_running_process_stays(settings: Settings, host: Host, manager: Manager) -> None:
    for age, release in enumerate(("newest-4", "newer-3", "draining-2")):
        make_release(host, release, age=age * 60)
    host.switch("newest-4")
    manager.start(["shop-worker-default@draining-2"])
    host.prune()
    assert (settings.releases / "draining-2").exists()


def test_settings_of_another_version_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "hostctl.json"
    file.write_text('{"name": "shop", "domain": "shop.example.org", "from_a_later_version": true}')
    assert Settings.load(file) == Settings(name="shop", domain="shop.example.org")


def test_all_processes_stop_workers_first(host: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages stay until the slowest worker has finished."""
    stopped: list[list[str]] = []
    monkeypatch.setattr(manager, "stop", lambda units: stopped.append(sorted(units)))
    manager.start(["shop-web@abcd-1", "shop-worker-default@abcd-1", "shop-worker-io@abcd-1"])
    host.halt()
    assert manager.beat == ["stop"]
    assert stopped == [["shop-worker-default@abcd-1", "shop-worker-io@abcd-1"], ["shop-web@abcd-1"]]
