"""Settings from the environment, and the first administrator: what a deployment does with the answers about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hostctl.application import Application
from hostctl.deploy import build
from hostctl.deploy.overlay import MODULE
from hostctl.host import Host
from hostctl.settings import ReleaseError, read_environment
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, last_outcome

NOTHING: dict[str, Any] = {"text": "", "names": [], "problems": [], "warnings": []}
TEXT = "import config.settings as project\n"


@pytest.fixture
def module(live: Host) -> Path:
    """The generated module of the new release, whose settings are in config.settings."""
    with (live.settings.next_configuration / "app.env").open("a") as file:
        file.write('DJANGO_SETTINGS_MODULE="config.settings"\nPYTHONPATH="/opt/lib"\n')
    return live.settings.configurations / NEW / f"lib/{MODULE}.py"


def environment(host: Host, release: str = NEW) -> dict[str, str]:
    return read_environment(host.settings.configurations / release / "app.env")


def test_processes_get_the_generated_module(module: Path, live: Host, answers: Answers, capsys: Any) -> None:
    answers.override["settings_overlay"] = NOTHING | {"text": TEXT, "names": ["DATABASES", "DEBUG"]}
    assert deploy(live) == 0
    assert module.read_text() == TEXT
    assert environment(live)["DJANGO_SETTINGS_MODULE"] == MODULE
    assert environment(live)["PYTHONPATH"] == f"{module.parent}:/opt/lib"
    assert environment(live)["SETTING"] == "next"
    # At the step check, and again at the end.
    assert capsys.readouterr().out.count("Settings from the environment: DATABASES, DEBUG.\n") == 2
    asked = [question for question, *_ in answers.asked]
    assert asked.index("settings_overlay") < asked.index("check")
    [question] = [words for words in answers.asked if words[0] == "settings_overlay"]
    assert question[1:6] == ("auto", "config.settings", "core.wsgi", "core", ["shop.example.org"])


def test_values_of_several_lines_stay_as_they_are(module: Path, live: Host, answers: Answers) -> None:
    value = "-----BEGIN KEY-----\r\nPYTHONPATH=/not/a/variable\u2028\nend"
    with (live.settings.next_configuration / "app.env").open("a", newline="") as file:
        file.write(f'KEY="{value}"\nLAST="1"\n')
    answers.override["settings_overlay"] = NOTHING | {"text": TEXT, "names": ["DEBUG"]}
    assert deploy(live) == 0
    found = environment(live)
    assert (found["KEY"], found["LAST"], found["DJANGO_SETTINGS_MODULE"]) == (value, "1", MODULE)
    assert (live.settings.configurations / NEW / "app.env").read_text().count("DJANGO_SETTINGS_MODULE=") == 1


def test_a_project_that_reads_the_environment_keeps_its_module(module: Path, live: Host, answers: Answers) -> None:
    answers.override["settings_overlay"] = NOTHING
    assert deploy(live) == 0
    assert not module.exists()
    assert environment(live)["DJANGO_SETTINGS_MODULE"] == "config.settings"


def test_settings_that_must_not_go_live_are_refused_together(
    module: Path, live: Host, answers: Answers, capsys: Any
) -> None:
    answers.override["settings_overlay"] = NOTHING | {"problems": ["DEBUG is True.", "SECRET_KEY is missing."]}
    assert deploy(live) == 1
    output = capsys.readouterr().out
    assert (
        "failed at step check: the settings must not go live:\n- DEBUG is True.\n- SECRET_KEY is missing.\n" in output
    )
    assert "migrations" not in [question for question, *_ in answers.asked]
    assert live.current_release() == OLD


def test_the_module_is_decided_again_when_a_release_is_deployed_again(
    module: Path, live: Host, answers: Answers
) -> None:
    answers.override["settings_overlay"] = NOTHING | {"text": TEXT, "names": ["DEBUG"]}
    answers.override["ping"] = ReleaseError("no ping")
    assert deploy(live) == 1
    answers.override = {"settings_overlay": NOTHING}
    assert deploy(live) == 0
    assert environment(live)["DJANGO_SETTINGS_MODULE"] == "config.settings"


# --- The first administrator


@pytest.fixture
def first(live: Host, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands of manage.py that the first deployment runs."""
    live.settings.current.unlink()
    (live.settings.next_configuration / "migrate.env").write_text('DJANGO_SUPERUSER_USERNAME="ada"\n')
    monkeypatch.setattr(
        build, "make_environment", lambda host, release, *more: host.path(release).joinpath("release.env").touch()
    )
    live.settings = dataclasses.replace(live.settings, create_admin=True)
    commands: list[tuple[str, ...]] = []

    def manage(self: Application, *words: str, **options: Any) -> str:
        commands.append(words)
        if "fails" in words:
            raise ReleaseError("manage.py failed with exit status 1:\nTraceback:\nCommandError: That name is taken.")
        return "Superuser created."

    monkeypatch.setattr(Application, "manage", manage)
    return commands


@pytest.mark.parametrize("command", [["ensure_admin"], ["createsuperuser", "--noinput"]])
def test_the_first_deployment_creates_the_administrator(
    first: list[tuple[str, ...]], live: Host, answers: Answers, capsys: Any, command: list[str]
) -> None:
    answers.override["administrator"] = {"command": command, "reason": "", "line": ""}
    assert deploy(live) == 0
    assert first == [tuple(command)]
    assert "Superuser created.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ({"command": [], "reason": "", "line": "", "superusers": ["admin@localhost", "ada"]},
         "Warning: No administrator was created: there is a superuser already (admin@localhost, ada). Unless an "
         "earlier deployment or an import brought it, the project's migrations did, and its password may be public. "
         "Set another one: shopctl manage changepassword admin@localhost\n"),
        ({"command": [], "reason": "the project does not use django.contrib.auth", "line": ""},
         "Warning: No administrator was created: the project does not use django.contrib.auth."),
        ({"command": [], "reason": "User also needs DJANGO_SUPERUSER_PHONE", "line": "app_migration_environment: {X}"},
         "shopctl manage createsuperuser, or write into group_vars/ENV/app.yml before the first deployment: app_mig"),
        ({"command": ["fails"], "reason": "", "line": ""},
         "Warning: No administrator was created: CommandError: That name is taken. Create one: shopctl manage"),
    ],
)  # fmt: skip
def test_a_missing_administrator_fails_no_deployment(
    first: list[tuple[str, ...]], live: Host, answers: Answers, capsys: Any, answer: dict[str, Any], output: str
) -> None:
    answers.override["administrator"] = answer
    assert deploy(live) == 0
    assert last_outcome(live) == "succeeded"
    assert output in capsys.readouterr().out


def test_an_application_that_cannot_say_fails_no_deployment(
    first: list[tuple[str, ...]], live: Host, answers: Answers, capsys: Any
) -> None:
    answers.override["administrator"] = ReleaseError("The application's administrator failed:\nKeyError: 'x'")
    assert deploy(live) == 0
    assert "Warning: No administrator was created: KeyError: 'x' Create one: shopctl" in capsys.readouterr().out


def test_a_later_deployment_creates_none(live: Host, answers: Answers) -> None:
    live.settings = dataclasses.replace(live.settings, create_admin=True)
    assert deploy(live) == 0
    assert "administrator" not in [question for question, *_ in answers.asked]
