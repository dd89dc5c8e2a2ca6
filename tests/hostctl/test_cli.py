"""Commands, their options, and their answers as JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostctl import __version__, application, cli, upgrade
from hostctl.deploy import record
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import Settings
from hostctl.watch import alerts
from tests.hostctl.fakes import NEW, OLD, Answers, Manager, deploy, make_release

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def program(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as root, as shopctl, on the host of the tests."""
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: host.settings)
    monkeypatch.setattr(cli, "Host", lambda settings: host)
    monkeypatch.setattr(upgrade, "upgrade", lambda settings: None)


def answer(capsys: Any, *words: str, status: int = 0) -> Any:
    assert cli.main([*words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


# --- Queries


def test_status_answers_everything_at_once(
    live: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = live.settings.etc / "configuration"
    folder.mkdir(parents=True)
    (folder / "environment").write_text("abc\n")
    web, worker = f"shop-web@{OLD}", f"shop-worker-default@{OLD}"
    states = [ProcessState(web, "active", 0), ProcessState(worker, "activating", 2, 9, 1)]
    monkeypatch.setattr(manager, "states", lambda: states)
    assert answer(capsys, "status") == {
        "current": OLD,
        "releases": [OLD],
        "running": [
            {
                "unit": web, "process": "web", "release": OLD,
                "state": "active", "restarts": 0, "since": "", "memory_kills": 0,
            },
            {
                "unit": worker, "process": "worker-default", "release": OLD,
                "state": "activating", "restarts": 2, "since": "1970-01-01T00:00:09Z", "memory_kills": 1,
            },
        ],
        "beat": True,
        "cron": [],
        "problems": [],
        "domain": "shop.example.org",
        "health_path": "/healthz/",
        "health_status": 200,
        "warnings": [],
        "backup": [],
        "alerts": [],
        "versions": {},
        "admin_page": "/admin/",
        "parked": None,
        "deployment": None,
        "configuration": {"environment": "abc", "processes": ""},
        "version": __version__,
    }  # fmt: skip
    assert cli.main(["status"]) == 0
    since = "activating since 1970-01-01T00:00:09Z, 2 restarts, 1 killed at the memory limit"
    assert f"running     {worker} ({since})" in capsys.readouterr().out


def test_status_says_that_no_one_is_told(
    live: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As the summary of every run does; not where monitoring is off or not set up yet."""
    monkeypatch.setattr(alerts, "UNITS", tmp_path)
    live.settings.etc.mkdir(parents=True, exist_ok=True)
    (live.settings.etc / "monitoring.json").write_text('{"name": "shop"}')
    assert answer(capsys, "status")["alerts"] == []
    (tmp_path / "shop-watch.timer").touch()
    [note] = answer(capsys, "status")["alerts"]
    assert note.startswith("no one is told when something breaks: set app_alert_emails")
    (live.settings.etc / "monitoring.json").unlink()
    assert answer(capsys, "status")["alerts"] == []


def test_status_before_the_first_release(host: Host, capsys: Any) -> None:
    found = answer(capsys, "status")
    assert (found["current"], found["releases"], found["deployment"]) == ("", [], None)


def test_status_shows_an_unfinished_deployment(live: Host, capsys: Any) -> None:
    book = record.Record(live.settings)
    book.begin("deploy", NEW, "anna", log="log")
    book.step("migrate")
    found = answer(capsys, "status")["deployment"]
    assert (found["action"], found["release"], found["by"], found["step"]) == ("deploy", NEW, "anna", "migrate")
    assert cli.main(["status"]) == 0
    assert re.search(rf"deployment  deploy {NEW} by anna since \S+, at step migrate", capsys.readouterr().out)


def test_releases_answers_the_history(live: Host, answers: Answers, capsys: Any) -> None:
    deploy(live)
    capsys.readouterr()
    [entry] = answer(capsys, "releases")
    assert (entry["release"], entry["by"], entry["outcome"]) == (NEW, "anna", "succeeded")
    assert cli.main(["releases"]) == 0
    assert re.search(rf"deploy +{NEW} +anna +[\d.]+ +succeeded", capsys.readouterr().out)


def test_previous_answers_a_release_or_an_error(host: Host, capsys: Any) -> None:
    error = answer(capsys, "previous", status=1)
    assert error["status"] == 1
    assert "There is no release before the first" in error["error"]
    for age, release in enumerate(("second-2", "first-1")):
        make_release(host, release, age=60 * age)
    host.switch("second-2")
    assert answer(capsys, "previous") == {"release": "first-1"}
    assert cli.main(["previous"]) == 0
    assert capsys.readouterr().out == "first-1\n"


# --- Errors


def test_an_error_is_text_on_stderr_without_json(host: Host, capsys: Any) -> None:
    assert cli.main(["follow"]) == 1
    assert capsys.readouterr() == ("", "There has been no deployment on this host.\n")


@pytest.mark.parametrize(
    "words",
    [
        *(["deploy", "../etc", "archive"], ["deploy", "x" * 65, "-"], ["rollback", "with space"], ["dance"], []),
        ["follow", "--until", "dance"],
    ],
    ids=["path", "long", "space", "command", "nothing", "barrier"],
)
def test_wrong_usage_is_answered_as_json_too(host: Host, capsys: Any, words: list[str]) -> None:
    assert answer(capsys, *words, status=2)["status"] == 2


def test_a_running_deployment_is_answered_with_status_3(live: Host, capsys: Any, monkeypatch: Any) -> None:
    book = record.Record(live.settings)
    book.hold()
    book.begin("deploy", NEW, "anna")
    error = answer(capsys, "rollback", "other-3", status=3)
    assert (error["status"], "Another deployment is running: deploy" in error["error"]) == (3, True)


def test_another_user_is_told_to_use_sudo(host: Host, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["status"]) == 2
    assert capsys.readouterr().err == "run it as root: sudo shopctl status\n"
    cli.main(["manage", "shell", "-c", "print('$x')"])
    assert capsys.readouterr().err == """run it as root: sudo shopctl manage shell -c 'print('"'"'$x'"'"')'\n"""


def test_missing_settings_are_one_sentence(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main(["--settings", str(tmp_path / "gone.json"), "status"]) == 1
    assert f"{tmp_path}/gone.json is missing: run site.yml" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and those of its commands."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for found in choices for command in found.values() for one in parsers(command))]


def test_no_command_replaces_the_path_of_the_settings() -> None:
    """argparse keeps an option of a command and one of the program in one attribute if they have the same name."""
    _, *commands = parsers(cli.make_parser())
    assert len(commands) > 20
    assert not [one.prog for one in commands for action in one._actions if action.dest == "settings"]


# --- The application's own commands


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["manage", "migrate", "--plan"], ["manage.py", "migrate", "--plan"]),
        (["manage", "--help"], ["manage.py", "--help"]),
        (["--settings", "x", "manage", "shell", "--json"], ["manage.py", "shell", "--json"]),
        (["manage", "shell", "--owner"], ["manage.py", "shell", "--owner"]),
        (
            ["manage", "shell", "-c", "print('ä $x `y` \n')", ""],
            ["manage.py", "shell", "-c", "print('ä $x `y` \n')", ""],
        ),
        (["celery", "-q", "inspect", "ping"], ["-m", "celery", "-A", "core", "-q", "inspect", "ping"]),
    ],
)
def test_arguments_are_passed_on_as_they_are(
    live: Host, monkeypatch: pytest.MonkeyPatch, words: list[str], command: list[str]
) -> None:
    (live.path(OLD) / "manage.py").touch()
    called: list[tuple[str, tuple[str, ...], bool]] = []
    monkeypatch.setattr(
        application.Application,
        "replace_process",
        lambda self, *arguments, owner=False: called.append((self.release, arguments, owner)),
    )
    cli.main(words)
    assert called == [(OLD, tuple(command), False)]
    if words[0] == "manage":
        cli.main(["manage", "--owner", *words[1:]])
        assert called[1:] == [(OLD, tuple(command), True)]


@pytest.mark.parametrize(
    ("variable", "module"), [("", "django"), ('DJANGO_CONFIGURATION="Production"', "configurations")]
)
def test_without_manage_a_module_runs_djangos_commands(
    live: Host, settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, module: str
) -> None:
    (settings.configurations / OLD).mkdir(parents=True)
    (settings.configurations / OLD / "app.env").write_text(f'DJANGO_SETTINGS_MODULE="notes.settings"\n{variable}\n')
    for file in (live.path(OLD) / "release.env", settings.configurations / OLD / "migrate.env"):
        file.touch()
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(application.Application, "replace_process", lambda self, *words, owner: called.append(words))
    cli.main(["manage", "migrate", "--plan"])
    assert called == [("-m", module, "migrate", "--plan")]
    commands: list[Any] = []
    monkeypatch.setattr(application, "as_user", lambda *arguments, **options: commands.append(arguments[1:5]) or "")
    application.Application(live, OLD).manage("check")
    [(command, variables, folder, what)] = commands
    assert command[1:] == ["-m", module, "check"]
    assert (variables["DJANGO_SETTINGS_MODULE"], folder) == ("notes.settings", live.path(OLD))
    assert what == f"python -m {module} check"


def test_without_a_release_there_is_nothing_to_run(host: Host, capsys: Any) -> None:
    assert cli.main(["manage", "check"]) == 1
    assert "No release is live" in capsys.readouterr().err


def test_a_command_runs_in_the_applications_environment(
    live: Host, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.configurations / OLD).mkdir(parents=True)
    (settings.configurations / OLD / "app.env").write_text('SECRET_KEY="s3cret"\nDATABASE_URL="application"\n')
    (live.path(OLD) / "release.env").write_text(f'RELEASE_ID="{OLD}"\n')
    steps: list[Any] = []
    monkeypatch.setattr(application.os, "chdir", lambda folder: steps.append(("chdir", folder)))
    monkeypatch.setattr(application.os, "umask", lambda mask: steps.append(("umask", mask)))
    monkeypatch.setattr(application, "become", lambda account: steps.append(("become", account)))
    monkeypatch.setattr(application.os, "execve", lambda *arguments: steps.append(arguments))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("HOME", "/root")
    live.settings = replace(live.settings, manage_options="-c lock_timeout=0")
    application.Application(live, OLD).replace_process("manage.py", "shell")
    (settings.configurations / OLD / "migrate.env").write_text('DATABASE_URL="owner"\n')
    application.Application(live, OLD).replace_process("manage.py", "shell", owner=True)
    owner = steps.pop()[2]
    assert owner["DATABASE_URL"] == "owner"
    assert "PGOPTIONS" not in owner
    del steps[4:]
    *before, (program, words, environment) = steps
    assert before == [("chdir", live.path(OLD)), ("umask", 0o027), ("become", "shop")]
    assert words == [program, "manage.py", "shell"]
    assert environment["PGOPTIONS"] == "-c lock_timeout=0"
    assert program == f"{live.path(OLD)}/.venv/bin/python"
    wanted = {
        "SECRET_KEY": "s3cret",
        "DATABASE_URL": "application",
        "RELEASE_ID": OLD,
        "TERM": "xterm",
        "HOME": f"{settings.home}/shared",
    }
    assert wanted | {"USER": "shop"} == {name: environment[name] for name in (*wanted, "USER")}


def test_the_owner_is_refused_on_a_host_without_its_credentials(live: Host, settings: Settings, capsys: Any) -> None:
    (live.path(OLD) / "manage.py").touch()
    assert cli.main(["manage", "--owner", "dbshell"]) == 1
    file = settings.configurations / OLD / "migrate.env"
    error = f"This host has no credentials of the database's owner: {file} is missing. Run site.yml."
    assert capsys.readouterr().err == f"{error}\n"


# --- The program as the role installs it


def test_the_role_installs_every_module() -> None:
    variables = yaml.safe_load((ROOT / "roles/hostctl/vars/main.yml").read_text())
    folders = {folder.rstrip("/") for folder in variables["__hostctl_folders"]}
    found = {str(path.parent.relative_to(ROOT / "hostctl")).removeprefix(".") for path in ROOT.glob("hostctl/**/*.py")}
    assert found == folders


def test_the_action_of_backup_is_optional_in_its_usage(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["backup", "--help"])
    assert "[--full] [ACTION] ..." in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_the_program_needs_only_the_standard_library(words: list[str]) -> None:
    """Isolated from site-packages, as under Debian's Python."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['shopctl']; from hostctl.cli import main"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"{code}; main({words!r})"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout if words == ["--version"] else "celery ARGS..." in done.stdout


def test_what_timers_start_often_imports_little() -> None:
    """`backup ship` runs every few seconds: what it does not need costs each idle server a part of a core."""
    run = "from hostctl import cli; cli.parse(['backup', 'ship']); import hostctl.backup.ship"
    look = f"{run}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True, capture_output=True, text=True)
    unneeded = {"hostctl.deploy.steps", "hostctl.doctor.checks", "hostctl.backup.restore"}
    unneeded |= {"hashlib", "ssl", "sqlite3", "xmlrpc"}
    assert not unneeded & {*done.stdout.split()}
