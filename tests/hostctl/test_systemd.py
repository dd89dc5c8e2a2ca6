"""Units of systemd: state, and which ones have failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostctl.processes import systemd
from hostctl.processes.state import ProcessState
from hostctl.settings import Settings


def test_a_unit_that_was_restarted_before_has_not_failed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = {"shop-web@abcd-1": "2", "shop-worker-default@abcd-1": "0"}

    def systemctl(action: str, *arguments: str) -> str:
        blocks = [
            f"Id={unit}.service\nActiveState=active\nNRestarts={number}\nStateChangeTimestamp=\n"
            for unit, number in restarts.items()
        ]
        return "\n".join(blocks) if action == "show" else ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    manager = systemd.Systemd(settings)
    manager.start(list(restarts))
    assert manager.failed(list(restarts)) == []
    restarts["shop-web@abcd-1"] = "3"
    assert manager.failed(list(restarts)) == ["shop-web@abcd-1"]


def test_a_beat_that_was_restarted_since_has_failed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = "2"

    def systemctl(action: str, *arguments: str) -> str:
        return f"Id=shop-beat.service\nActiveState=active\nNRestarts={restarts}\n" if action == "show" else ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    manager = systemd.Systemd(settings)
    manager.restart_beat("abcd-1")
    assert manager.failed(["shop-beat"]) == []
    restarts = "3"
    assert manager.failed(["shop-beat"]) == ["shop-beat"]


def test_the_state_of_every_process_is_known(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def systemctl(action: str, *arguments: str) -> str:
        if action == "show":
            state = "ActiveState=deactivating\nNRestarts=3\nStateChangeTimestamp=@1764381600\n"
            other = "Id=shop-beat.service\nActiveState=inactive\nNRestarts=0\nStateChangeTimestamp=\n"
            return f"Id=shop-web@abcd-1.service\n{state}\n{other}"
        return ""

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    assert systemd.Systemd(settings).process_states(["shop-web@abcd-1", "shop-beat"]) == [
        ProcessState("shop-web@abcd-1", "deactivating", 3, 1764381600),
        ProcessState("shop-beat", "inactive", 0, 0),
    ]


def test_processes_killed_at_the_memory_limit_are_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the kernel, in the unit's control group; a container with version 1 has no such file."""
    group = "/system.slice/shop-worker-heavy@abcd-1.service"

    def systemctl(action: str, *arguments: str) -> str:
        if action == "show":
            state = f"ActiveState=active\nNRestarts=0\nStateChangeTimestamp=\nControlGroup={group}\n"
            return f"Id=shop-worker-heavy@abcd-1.service\n{state}"
        return "shop-worker-heavy@abcd-1.service loaded active running shop: worker\n"

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    monkeypatch.setattr(systemd, "CGROUPS", tmp_path)
    assert systemd.Systemd(settings).process_states(["shop-worker-heavy@abcd-1"])[0].memory_kills == 0
    (tmp_path / group[1:]).mkdir(parents=True)
    (tmp_path / group[1:] / "memory.events").write_text("low 0\nhigh 0\nmax 812\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert systemd.Systemd(settings).process_states(["shop-worker-heavy@abcd-1"])[0].memory_kills == 2


def test_only_units_of_this_host_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And none once the other manager has taken over."""
    monkeypatch.setattr(systemd, "systemctl", lambda *_: "")
    monkeypatch.setattr(systemd, "UNITS", tmp_path)
    settings.current.symlink_to("releases/abcd-1")
    names = {"shop-web@abcd-1.service", "shop-worker-default@abcd-1.service"}
    names |= {"shop-beat.service", "shop-stop-order.target"}
    for name in (*names, "shop-worker-gone@abcd-1.service", "shop-web@gone-0.service", "other-web@.service"):
        (tmp_path / name).touch()
    manager = systemd.Systemd(settings)
    manager.remove_stale()
    assert {path.name for path in tmp_path.glob("*-*")} == names | {"other-web@.service"}
    manager.uninstall()
    assert {path.name for path in tmp_path.glob("*-*")} == {"other-web@.service"}
