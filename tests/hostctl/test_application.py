"""Commands of a release: their time limits."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hostctl import application
from hostctl.deploy import builder
from hostctl.host import Host
from hostctl.settings import ReleaseError
from tests.hostctl.fakes import NEW, make_release


@pytest.fixture
def any_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run as the user of this test."""
    popen = subprocess.Popen

    def as_this_user(command: Any, **options: Any) -> subprocess.Popen[str]:
        return popen(
            command, **{name: options[name] for name in options if name not in ("user", "group", "extra_groups")}
        )

    monkeypatch.setattr(application.subprocess, "Popen", as_this_user)


@pytest.mark.usefixtures("any_user")
@pytest.mark.parametrize("hangs", ["sleep 60", "sleep 60 & wait", "setsid sleep 9 & exit"])
def test_a_hanging_build_command_is_killed_with_its_children(
    host: Host, monkeypatch: pytest.MonkeyPatch, hangs: str, tmp_path: Path
) -> None:
    make_release(host, NEW)
    monkeypatch.setattr(builder, "BUILD_SECONDS", 1)
    monkeypatch.setattr(builder, "command_environment", lambda host, release: dict(os.environ))
    command = f"echo $$ >{tmp_path}/pid; echo installing; {hangs}"
    host.settings = dataclasses.replace(host.settings, build_commands=[command])
    began = time.monotonic()
    with pytest.raises(ReleaseError) as error:
        builder.run_build_commands(host, NEW, {})
    assert time.monotonic() - began < 8
    assert "did not end within 1 s" in str(error.value)
    assert command in str(error.value)
    assert "installing" in error.value.output
    assert "did not end within 1 s" in error.value.cause


@pytest.mark.parametrize(("kills", "words"), [(3, "because the host has no free memory"), (2, "(SIGKILL)")])
def test_a_killed_command_is_out_of_memory_only_if_the_kernel_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kills: int, words: str
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text(f"nr_free_pages 1\noom_kill {kills}\n")
    monkeypatch.setattr(application, "MEMORY_COUNTERS", counters)
    for status in (-9, 137):
        error = application.failure("The command", status, "output", 2)
        assert words in str(error)
        assert words in error.cause
