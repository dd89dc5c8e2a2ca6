"""A host whose processes, application and health checks are stand-ins."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hostctl import beat
from hostctl.application import Application
from hostctl.deploy import build, builder, drain, health, preflight
from hostctl.doctor.finding import OK, Finding
from hostctl.host import Host
from hostctl.settings import Settings, Worker
from tests.hostctl.fakes import OLD, Answers, Manager, make_release


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(builder, "RUN", tmp_path / "run")
    (tmp_path / "shop/releases").mkdir(parents=True)
    (tmp_path / "shop/incoming").mkdir()
    (tmp_path / "etc/shop/next").mkdir(parents=True)
    (tmp_path / "etc/shop/next/app.env").write_text('SETTING="next"\nDATABASE_URL="next"\n')
    return Settings(
        name="shop", domain="shop.example.org", wsgi_app="core.wsgi", celery_app="core",
        workers=[Worker("default", ["default"])], queues=["default"], bake=0, keep_releases=2, health_check_timeout=1,
        root=tmp_path, config=tmp_path / "etc",
    )  # fmt: skip


@pytest.fixture
def manager(settings: Settings) -> Manager:
    return Manager(beat.state_file(settings))


@pytest.fixture
def host(settings: Settings, manager: Manager) -> Host:
    host = Host(settings)
    host.manager = manager
    return host


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(Application, "ask", lambda self, *arguments, **options: answers.ask(*arguments, **options))
    monkeypatch.setattr(Application, "hook", lambda self, name: [])
    return answers


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restore the handlers that a failing deployment sets."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def live(host: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which OLD is live, and where builds and health checks succeed."""
    make_release(host, OLD, age=60)
    host.switch(OLD)
    manager.start(host.units(OLD))
    monkeypatch.setattr(build, "unpack", lambda host, release, archive: host.path(release).mkdir(exist_ok=True))
    monkeypatch.setattr(build, "make_environment", lambda host, release, secrets: None)
    monkeypatch.setattr(build, "compile_sources", lambda host, release: None)
    monkeypatch.setattr(build, "check_disk_space", lambda host, **sizes: None)
    monkeypatch.setattr(build, "SYNC", "true")
    monkeypatch.setattr(health, "problem", lambda *arguments: "")
    monkeypatch.setattr(
        health, "answers", lambda settings, path: host.web_units(path.parents[1].name)[0] in manager.running
    )
    monkeypatch.setattr(health, "wait_until_idle", lambda *arguments, **options: None)
    monkeypatch.setattr(preflight, "beat_processes", lambda user: ["1"])
    for name in ("remove_old_files", "remove_unlisted_modules"):
        monkeypatch.setattr(drain, name, lambda settings: None)
    return host


# Programs of remedies, on a server and where Ansible runs.
REMEDY_PROGRAMS = {
    "ansible-playbook", "apt-get", "certbot", "df", "docker", "du", "head", "journalctl", "kill", "needrestart",
    "nginx", "ps", "rm", "runuser", "sed", "shopctl", "sort", "supervisorctl", "systemctl", "tail", "top",
    "ufw", "unattended-upgrade",
}  # fmt: skip


@pytest.fixture
def remedies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check every remedy of the doctor that a test meets: each line can be typed as it is, or begins with `# `."""
    found: list[str] = []
    init = Finding.__init__

    def note(self: Finding, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        is_ours = sys._getframe(1).f_globals["__name__"].startswith("hostctl.doctor.")
        found.extend([self.remedy] if is_ours and self.state != OK else [])

    monkeypatch.setattr(Finding, "__init__", note)
    yield
    for line in dict.fromkeys("\n".join(found).splitlines()):
        if line.startswith("# "):
            continue
        assert subprocess.run(["bash", "-n"], input=line, text=True, capture_output=True).stderr == "", line
        assert set(programs_of(line)) <= REMEDY_PROGRAMS, line


def programs_of(line: str) -> list[str]:
    """Return the program of each command in a line of a shell."""
    words = ["; ", *shlex.shlex(line, posix=True, punctuation_chars=";|&")]
    return [word for before, word in pairwise(words) if before.strip() in (";", "|", "&&", "||")]
