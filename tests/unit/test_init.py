"""`make init` inspects a project and writes the files of an environment; `make inspect` and site.yml read them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import init
import pytest
import yaml
from init_files import Entry, settings_text
from machine import SetupError
from project import ROOT, Run, copy_project, run_playbook, stub_ssh

PLAIN = ROOT / "tests/projects/plain"
ANSWERS = init.Answers(str(PLAIN), "staging", "notes.example.org", "debian@203.0.113.10:2222")
INVENTORY, SETTINGS = "inventory/staging.yml", "group_vars/staging/app.yml"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make init` needs of a clone of Seedbed."""
    for name in ("inventory", "group_vars"):
        (tmp_path / name).mkdir()
    return tmp_path


def settings_of(clone: Path) -> dict:
    return yaml.safe_load((clone / SETTINGS).read_text())


def files_of(clone: Path) -> list[str]:
    return sorted(str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file())


# --- Answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "name"),
    [
        ("/home/ada/Notes-2.0", "notes_2_0"),
        ("git@github.com:example/my.notes.git", "my_notes"),
        ("https://example.org/ada/notes/", "notes"),
        ("/home/ada/notes/src", "notes"),
        ("/srv/default", "default_app"),
        ("/srv/pg_notes", "notes_app"),
        ("/srv/2024", "site"),
        ("/srv/" + "long-name-" * 4, "long_name_long_name_long"),
    ],
)
def test_the_proposed_name_is_valid(project: str, name: str) -> None:
    assert init.propose_name(project) == name
    assert init.invalid_name(name) == ""


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *typed: str | type[BaseException]) -> list[str]:
    """Answer the questions with these lines, or raise these exceptions; return the list to which the questions go."""
    questions, lines = [], iter(typed)

    def answer(question: str) -> str:
        questions.append(question)
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    return questions


def test_a_wrong_answer_is_explained_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = at_a_terminal(monkeypatch, "ada@", " debian@203.0.113.10 ", "https://notes.example.org", "")
    answers, server = init.complete(replace(ANSWERS, server="", domain=""))
    assert (answers.server, server.host) == ("debian@203.0.113.10", "203.0.113.10")
    # Enter accepts the proposal.
    assert answers.domain == "203.0.113.10"
    assert [question.partition(" ")[2].split()[0] for question in questions] == [
        "server:",
        "server:",
        "domain",
        "domain",
    ]
    assert questions[-1].endswith(" [203.0.113.10]: ")
    said = capsys.readouterr().out
    assert said.count("SERVER must be an address") == 1
    assert said.count("DOMAIN must be a domain") == 1


@pytest.fixture
def package(tmp_path: Path) -> init.Answers:
    """A project whose code is a package from PyPI."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "requirements.txt").write_text("notes==1.0\ngunicorn\n")
    return replace(ANSWERS, project=str(folder))


MODULES = {
    "app_settings_module": "notes.settings",
    "app_wsgi_app": "notes.wsgi:application",
    "app_celery_app": "notes.jobs",
}


def test_a_package_has_its_modules_asked_for(
    clone: Path, package: init.Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = at_a_terminal(monkeypatch, "notes/settings.py", "notes.settings", "", "notes.jobs")
    init.init(package, clone)
    assert MODULES.items() <= settings_of(clone).items()
    assert questions[2].endswith(" [notes.wsgi:application]: ")
    said = capsys.readouterr().out
    assert said.count("SETTINGS must match") == 1
    assert "Needs you" not in said


def test_a_package_may_have_its_modules_given(clone: Path, package: init.Answers) -> None:
    given = {"settings": "notes.settings", "wsgi": "notes.wsgi:application", "celery": "notes.jobs"}
    init.init(replace(package, **given), clone)
    assert MODULES.items() <= settings_of(clone).items()


def test_a_project_without_modules_can_be_completed_by_hand(
    clone: Path, package: init.Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_a_terminal(monkeypatch, "")
    init.init(package, clone)
    assert "set app_settings_module" in " ".join(capsys.readouterr().out.split())
    assert not MODULES.keys() & settings_of(clone).keys()


@pytest.mark.parametrize("key", [EOFError, KeyboardInterrupt])
def test_the_questions_can_be_left(monkeypatch: pytest.MonkeyPatch, key: type[BaseException]) -> None:
    at_a_terminal(monkeypatch, key)
    with pytest.raises(SetupError, match=r"^Nothing was written\.$"):
        init.complete(replace(ANSWERS, server=""))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"env": "Staging"}, "ENV must match"),
        ({"env": "../x"}, "ENV must match"),
        ({"env": "web"}, 'ENV must not be "web"'),
        ({"env": "demo"}, 'ENV must not be "demo"'),
        ({"env": "localhost"}, 'ENV must not be "localhost"'),
        ({"domain": "https://notes.example.org"}, "DOMAIN must be a domain"),
        ({"server": "ada@"}, "SERVER must be an address"),
        ({"server": "203.0.113.10:70000"}, "SERVER must be an address"),
        ({"name": "postgres"}, 'NAME must not be "postgres"'),
        ({"name": "My"}, "NAME must match"),
        ({"project": ""}, "PROJECT is missing"),
        ({"project": "/nowhere"}, "there is no folder /nowhere"),
        ({"project": "/usr/../nowhere"}, "there is no folder /nowhere"),
        ({"ref": "main"}, "REF is for a git URL"),
        ({"project": "file:///nowhere/x.git"}, "cannot be fetched"),
        ({"settings": "notes/settings.py"}, "SETTINGS must match"),
        ({"wsgi": "notes.wsgi"}, "WSGI must match"),
        ({"celery": "notes celery"}, "CELERY must match"),
        ({"server": ""}, "SERVER is missing"),
        ({"domain": ""}, "DOMAIN is missing"),
    ],
    ids=str,
)
def test_an_invalid_answer_is_refused_and_nothing_is_written(clone: Path, wrong: dict[str, str], says: str) -> None:
    with pytest.raises(SetupError) as error:
        init.init(replace(ANSWERS, **wrong), clone)
    assert says in str(error.value)
    assert str(error.value).endswith("Nothing was written.") or "Type for example" in str(error.value)
    assert files_of(clone) == []


@pytest.mark.parametrize("user", ["ada:secret-token@", "secret-token@", ":secret-token@", "x-token:secret-token@"])
def test_a_token_in_the_url_is_refused_and_not_shown(
    clone: Path, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SetupError, match="PROJECT must not contain") as error:
        init.init(replace(ANSWERS, project=f"https://{user}git.example.org:8443/ada/notes.git", ref="main"), clone)
    assert "PROJECT=https://git.example.org:8443/ada/notes.git " in str(error.value)
    assert "secret-token" not in str(error.value) + str(capsys.readouterr())
    assert files_of(clone) == []


@pytest.mark.parametrize(
    "url", ["ssh://git@example.org/ada/notes.git", "git@example.org:ada/notes.git", "https://example.org/a@b", "../a@b"]
)
def test_other_urls_are_not_refused(url: str) -> None:
    assert init.invalid_project(url) == ""


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("203.0.113.10", ("203.0.113.10", "root", 0)),
        ("debian@vps.example.org:2222", ("vps.example.org", "debian", 2222)),
        ("2001:db8::7", ("2001:db8::7", "root", 0)),
        ("[2001:db8::7]:22", ("2001:db8::7", "root", 22)),
    ],
)
def test_a_server_may_have_a_user_and_a_port(text: str, server: tuple[str, str, int]) -> None:
    assert init.invalid_server(text) == ""
    found = init.parse_server(text)
    assert (found.host, found.user, found.port) == server


# --- Files -------------------------------------------------------------------------------


def test_the_files_have_the_answers_and_what_was_found(clone: Path, capsys: pytest.CaptureFixture) -> None:
    init.init(ANSWERS, clone)
    inventory = yaml.safe_load((clone / INVENTORY).read_text())["staging"]
    assert inventory["hosts"]["server1"] == {
        "ansible_host": "203.0.113.10",
        "ansible_user": "debian",
        "ansible_port": 2222,
    }
    assert set(inventory["children"]) == {"web", "worker", "scheduler", "database", "broker"}
    settings = settings_of(clone)
    assert settings["app_name"] == "plain"
    assert settings["app_domain"] == "notes.example.org"
    assert settings["app_source"] == str(PLAIN)
    assert settings["app_settings_module"] == "config.settings"
    assert settings["app_celery_app"] == "config"
    printed = capsys.readouterr().out
    assert f"Written: {INVENTORY}, {SETTINGS}" in printed
    assert "ssh -p 2222 debian@203.0.113.10" in printed
    assert f"ansible-playbook -i {INVENTORY} site.yml" in printed


@pytest.mark.parametrize("env", ["on", "no", "null", "y"])
def test_an_environment_may_have_a_name_that_yaml_reads_as_another_value(clone: Path, env: str) -> None:
    init.init(replace(ANSWERS, env=env), clone)
    assert list(yaml.safe_load((clone / f"inventory/{env}.yml").read_text())) == [env]


def test_every_setting_has_its_reason_above_it(clone: Path) -> None:
    init.init(ANSWERS, clone)
    lines = (clone / SETTINGS).read_text().splitlines()
    bare = [line for above, line in pairwise(lines) if line.startswith("app_") and not above.startswith("# ")]
    assert bare == []


def test_a_relative_project_is_relative_to_this_clone(clone: Path) -> None:
    shutil.copytree(PLAIN, clone.parent / "notes")
    init.init(replace(ANSWERS, project="../notes/"), clone)
    assert settings_of(clone)["app_source"] == "../notes"
    assert settings_of(clone)["app_name"] == "notes"


def repository(folder: Path, branch: str) -> str:
    """Return the URL of a git repository with `plain` on a branch that is not its HEAD."""
    folder.mkdir()
    commands = (
        "init --quiet --initial-branch=trunk",
        "commit --quiet --allow-empty -m empty",
        f"checkout -q -b {branch}",
    )
    identity = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in commands:
        subprocess.run([*identity, *command.split()], cwd=folder, check=True)
    shutil.copytree(PLAIN, folder, dirs_exist_ok=True)
    (folder / ".gitmodules").write_text('[submodule "vendor"]\n\tpath = vendor\n\turl = ../vendor\n')
    for command in ("add --all", "commit --quiet -m project", "checkout -q trunk"):
        subprocess.run([*identity, *command.split()], cwd=folder, check=True)
    return f"file://{folder}"


def test_a_git_url_is_fetched_at_its_ref(
    clone: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture
) -> None:
    url = repository(tmp_path_factory.mktemp("git") / "notes", "release")
    capsys.readouterr()
    init.init(replace(ANSWERS, project=url, ref="release"), clone)
    assert "submodule" not in capsys.readouterr().out, "the deployment fetches them"
    settings = settings_of(clone)
    assert (settings["app_source"], settings["app_git_ref"], settings["app_name"]) == (url, "release", "notes")
    assert settings["app_settings_module"] == "config.settings"


@pytest.mark.parametrize("existing", [INVENTORY, SETTINGS])
def test_an_existing_file_stays(clone: Path, existing: str, capsys: pytest.CaptureFixture) -> None:
    (clone / existing).parent.mkdir(exist_ok=True)
    (clone / existing).write_text("mine")
    init.init(ANSWERS, clone)
    assert (clone / existing).read_text() == "mine"
    assert files_of(clone) == sorted([INVENTORY, SETTINGS])
    printed = capsys.readouterr().out
    assert f"{existing} exists and stays as it is." in printed
    # The list is that of new settings, which were not written then.
    stays = existing == SETTINGS
    assert (f"{SETTINGS} was there before" in printed) == stays
    assert ("make inspect ENV=staging" in printed) == stays


def test_what_cannot_be_written_leaves_nothing_half_written(clone: Path) -> None:
    (clone / "group_vars/staging").write_text("a file where the folder belongs")
    with pytest.raises(SetupError, match=r"group_vars/staging.*\nNothing was written\."):
        init.init(ANSWERS, clone)
    assert files_of(clone) == ["group_vars/staging"]


@pytest.mark.parametrize(
    "value",
    [
        *(
            "text",
            "",
            "yes",
            "3.12",
            "{{ app_database_url_owner }}",
            "a: b # c",
            "one\ntwo\n",
            "one\n\n  two",
            " one\ntwo",
        ),
        *(
            "\ttab\nx",
            3,
            True,
            [],
            {},
            ["npm ci", 'python -c "x: 1"'],
            [{"name": "io", "queues": ["io"], "concurrency": 8}],
        ),
        *(
            {"worker": "asgi"},
            {"KEY": "-----BEGIN\nabc\n-----END\n", "{{ odd }}": "#"},
            {"deep": {"list": [1, {"a": "b"}]}},
        ),
    ],
    ids=repr,
)
def test_a_value_survives_the_file(value: object) -> None:
    text = settings_text("staging", {"The project": [Entry("app_x", value, "Why.\nA second line: {{ x }}")]})
    assert yaml.safe_load(text) == {"app_x": value}


def test_a_failure_of_the_inspection_is_a_sentence(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(init, "inspect_project", fail)
    with pytest.raises(SetupError, match=r"please report it: KeyError: 'x' \(test_init.py:\d+\)"):
        init.init(ANSWERS, clone)
    assert files_of(clone) == []


# --- Playbooks ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project with an environment by `make init`, whose server is never reached."""
    project = copy_project(tmp_path_factory.mktemp("init") / "project")
    source = project.parent / "notes"
    shutil.copytree(PLAIN, source)
    init.init(replace(ANSWERS, project=str(source)), project)
    ssh, _ = stub_ssh(project / "inventory")
    inventory = yaml.safe_load((project / INVENTORY).read_text())
    inventory["staging"]["hosts"]["server1"]["ansible_ssh_executable"] = str(ssh)
    (project / INVENTORY).write_text(yaml.safe_dump(inventory))
    return project


def play(project: Path, name: str, *options: str) -> Run:
    (project / "inventory/reached").unlink(missing_ok=True)
    configuration = str(project / "ansible.cfg")
    return run_playbook(project / name, project / INVENTORY, *options, one_process=True, ANSIBLE_CONFIG=configuration)


def test_what_init_wrote_is_accepted(project: Path) -> None:
    found = play(project, "site.yml")
    assert found.reached, found.output


@pytest.fixture
def broken(project: Path) -> Path:
    """The project with an invalid setting, and a finding that needs the user."""
    path = project / SETTINGS
    kept = path.read_text()
    path.write_text(kept.replace("config.settings", "config.nothing") + "app_max_upload: lots\n")
    yield project
    path.write_text(kept)


@pytest.mark.parametrize("name", ["site.yml", "playbooks/deploy.yml"])
def test_findings_stop_a_deployment_with_the_invalid_settings(broken: Path, name: str) -> None:
    found = play(broken, name)
    assert not found.reached
    lines = found.messages()["server1"].splitlines()
    assert lines[0] == "Invalid settings (1); the project needs you (1). No host was contacted."
    assert lines[1].startswith(f"  {SETTINGS}:")
    assert "app_max_upload must be megabytes" in lines[1]
    assert "config.nothing" in lines[2]
    assert f"app_settings_module in {SETTINGS}" in lines[2]
    assert lines[3].endswith("All findings: make inspect ENV=staging")


def test_the_list_has_everything_and_contacts_no_host(broken: Path) -> None:
    found = run_playbook(
        broken / "playbooks/inspect.yml",
        broken / INVENTORY,
        one_process=True,
        ANSIBLE_CONFIG=str(broken / "ansible.cfg"),
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
    )
    assert found.status != 0
    assert not found.reached
    assert "Fine (" in found.output
    assert "Needs you (1)" in found.output
    assert "Invalid settings (1)" in found.output
    assert "Invalid settings (1); the project needs you (1). No host was contacted." in found.output


def test_a_list_without_needs_succeeds(project: Path) -> None:
    assert play(project, "playbooks/inspect.yml").status == 0


def test_the_server_alone_needs_no_inspection(project: Path) -> None:
    assert play(project, "playbooks/provision.yml", "-e", "app_settings_module=config.nothing").reached


def test_the_inspection_can_be_skipped(project: Path) -> None:
    skipped = ("-e", '{"preflight_inspect": false}')
    assert play(project, "site.yml", "-e", "app_settings_module=config.nothing", *skipped).reached


def test_the_settings_of_a_package_are_accepted(project: Path, package: init.Answers) -> None:
    source = ("-e", f"app_source={package.project}")
    assert play(project, "playbooks/deploy.yml", *source, "-e", "app_settings_module=notes.settings").reached
    found = play(project, "playbooks/deploy.yml", *source, "-e", "app_settings_module=config.settings")
    assert not found.reached
    assert "config.settings is neither a module of the project nor of a package" in found.messages()["server1"]


def test_the_project_of_a_git_url_is_inspected(project: Path, tmp_path: Path) -> None:
    url = repository(tmp_path / "notes", "release")
    source = ("-e", f"app_source={url}", "-e", "app_git_ref=release")
    assert play(project, "playbooks/deploy.yml", *source).reached
    found = play(project, "playbooks/deploy.yml", *source, "-e", "app_settings_module=config.nothing")
    assert not found.reached
    assert "config.nothing" in found.messages()["server1"]
    found = play(project, "playbooks/deploy.yml", "-e", f"app_source={url}", "-e", "app_git_ref=nowhere")
    assert not found.reached
    assert "no branch, tag or commit 'nowhere'" in found.messages()["server1"]
