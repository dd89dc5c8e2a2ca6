"""What a release's environment is made from, and what its build commands see."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
from plugin_utils.preflight.application import EXPORTS

from hostctl.deploy import builder, configuration, environment, system_packages
from hostctl.deploy.safe_files import replace_file
from hostctl.host import Host
from hostctl.settings import ReleaseError, Settings, read_environment
from tests.hostctl.fakes import NEW


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment with everything that the processes need."""
    venv = tmp_path / "release/.venv"
    for name in ("bin", *(f"lib/python3.13/site-packages/{name}" for name in ("psycopg", "redis"))):
        (venv / name).mkdir(parents=True)
    for name in ("gunicorn", "celery"):
        (venv / "bin" / name).touch()
    return venv


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("bin/gunicorn", '["gunicorn"]'),
        ("bin/celery", '["celery[redis]"]'),
        ("lib/python3.13/site-packages/redis", '["celery[redis]"]'),
        ("lib/python3.13/site-packages/psycopg", '["psycopg[binary]"]'),
    ],
)
def test_a_missing_package_is_named_with_the_line_to_write(
    settings: Settings, venv: Path, missing: str, line: str
) -> None:
    environment.require_packages(settings, venv)
    path = venv / missing
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(ReleaseError) as error:
        environment.require_packages(settings, venv)
    assert str(error.value).endswith(f"app_extra_requirements: {line}")


@pytest.mark.parametrize("commands", [[], ["python manage.py compilemessages"]])
def test_build_commands_cannot_change_the_packages_of_another_release(
    settings: Settings, venv: Path, tmp_path: Path, commands: list[str]
) -> None:
    copy = environment.copy_command(dataclasses.replace(settings, build_commands=commands))
    subprocess.run([*copy, str(venv), str(tmp_path / "new")], check=True)
    assert (tmp_path / "new/bin/celery").samefile(venv / "bin/celery") is not bool(commands)


def test_extra_requirements_that_are_set_stay_in_the_line(settings: Settings, venv: Path) -> None:
    (venv / "bin/gunicorn").unlink()
    with pytest.raises(ReleaseError, match=r'app_extra_requirements: \["uvicorn", "gunicorn"\]'):
        environment.require_packages(dataclasses.replace(settings, extra_requirements=["uvicorn"]), venv)


@pytest.mark.parametrize("layout", ["src/core/__init__.py", "src/core.py"])
def test_packages_in_src_can_be_imported(settings: Settings, venv: Path, layout: str) -> None:
    module = venv.parent / layout
    module.parent.mkdir(parents=True)
    module.touch()
    environment.add_source_folders(settings, venv.parent, venv.parent, venv)
    added = venv / "lib/python3.13/site-packages/release_source.pth"
    assert added.read_text() == f"{venv.parent}/src\n"
    module.unlink()
    if layout.endswith("__init__.py"):
        module.parent.rmdir()
    environment.add_source_folders(settings, venv.parent, venv.parent, venv)
    assert not added.exists()


@pytest.mark.parametrize("lock", environment.EXPORTS)
def test_lock_files_of_other_tools_are_named_with_their_export(settings: Settings, tmp_path: Path, lock: str) -> None:
    (tmp_path / lock).touch()
    for name in (lock, "requirements.txt"):
        with pytest.raises(ReleaseError, match=environment.EXPORTS[lock].split()[0]):
            environment.requirements_file(tmp_path, dataclasses.replace(settings, requirements=name))
    (tmp_path / "requirements.txt").touch()
    assert environment.requirements_file(tmp_path, settings)


def test_the_control_machine_knows_the_same_lock_files() -> None:
    assert EXPORTS == environment.EXPORTS


def test_git_sources_are_not_editable(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("-e git+https://example.org/a@v1#egg=a\n--editable=git+ssh://example.org/b\n-e ./own\ndjango\n")
    environment.install_git_sources_plainly(file, tmp_path)
    assert file.read_text() == "git+https://example.org/a@v1#egg=a\ngit+ssh://example.org/b\n-e ./own\ndjango\n"


def test_links_of_a_project_are_not_written_through(tmp_path: Path) -> None:
    release, outside = tmp_path / "release", tmp_path / "outside"
    (release / "requirements").mkdir(parents=True)
    outside.write_text("-e git+https://example.org/a\n")
    for name in ("requirements.txt", environment.EXTRA_FILE):
        (release / name).symlink_to(outside)
    environment.install_git_sources_plainly(release / "requirements.txt", release)
    replace_file(release / environment.EXTRA_FILE, release, "gunicorn\n")
    assert outside.read_text().startswith("-e ")
    assert (release / environment.EXTRA_FILE).read_text() == "gunicorn\n"
    assert not (release / environment.EXTRA_FILE).is_symlink()
    (release / "base.txt").symlink_to("requirements/base.txt")
    (release / "requirements/base.txt").write_text("-e git+https://example.org/a\n")
    environment.install_git_sources_plainly(release / "base.txt", release)
    assert (release / "requirements/base.txt").read_text() == "git+https://example.org/a\n"
    (release / ".made").mkdir()
    with pytest.raises(ReleaseError, match="must not be in the project"):
        replace_file(release / ".made", release, "")


@pytest.mark.parametrize(
    ("change", "value"),
    [("extra_requirements", ["gunicorn"]), ("build_commands", ["pip install x"]), ("python", "3.12")],
)
def test_another_build_does_not_share_its_environment(
    settings: Settings, tmp_path: Path, change: str, value: object
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("django==5.2\n")
    other = dataclasses.replace(settings, **{change: value})
    assert environment.fingerprint(settings, requirements) != environment.fingerprint(other, requirements)
    assert environment.fingerprint(settings, requirements) != environment.fingerprint(
        settings, requirements, {"A": "b"}
    )


def test_versions_of_a_lock_file_become_constraints(venv: Path) -> None:
    for name in ("django-5.2.1", "dj_database_url-3.0"):
        (venv / f"lib/python3.13/site-packages/{name}.dist-info").mkdir()
    assert environment.installed(venv) == "dj_database_url==3.0\ndjango==5.2.1\n"


# The end of real outputs.
OUTPUTS = {
    "Error: pg_config executable not found.\n\npg_config is required to build psycopg2 from source.": "libpq-dev",
    "Exception: Can not find valid pkg-config name.\nSpecify MYSQLCLIENT_CFLAGS": "default-libmysqlclient-dev",
    "src/x.c:1:10: fatal error: Python.h: No such file or directory": "python3-dev",
    "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory": "build-essential",
    "error: [Errno 2] No such file or directory: 'gcc'": "build-essential",
    "ImportError: failed to find libmagic.  Check your installation": "libmagic1",
    "xmlsec1 is not installed or not in path": "libxmlsec1-dev",
    "Modules/LDAPObject.c:18:10: fatal error: lber.h: No such file or directory": "libldap2-dev",
    'OSError: no library called "cairo-2" was found': "libcairo2",
    "CommandError: Can't find msgfmt. Make sure you have GNU gettext tools 0.19 or newer installed.": "gettext",
    "/bin/sh: 1: npm: not found": "npm",
    "/bin/sh: 1: msgfmt: not found": "gettext",
    "error: Git executable not found. Ensure that Git is installed and available.": "git",
    "django.core.exceptions.ImproperlyConfigured: Could not find the GDAL library (tried gdal)": "gdal-bin",
    "OSError: cannot load library 'libgobject-2.0-0': libgobject": "libpango-1.0-0",
}


@pytest.mark.parametrize(("output", "package"), OUTPUTS.items(), ids=OUTPUTS.values())
def test_a_failed_build_names_the_debian_packages(output: str, package: str) -> None:
    assert package in system_packages.packages_for(f"lines before\n{output}\nlines after")


def test_other_errors_name_no_package() -> None:
    assert system_packages.packages_for("error: No solution found when resolving dependencies: gcc and cc: x") == []


def test_the_line_to_write_keeps_what_is_set() -> None:
    text = system_packages.hint("pg_config executable not found", ["gettext", "build-essential"], "3.12")
    assert text.endswith("app_system_packages: [gettext, build-essential, libpq-dev]")
    assert system_packages.hint("/bin/sh: 1: npm: not found", ["npm", "nodejs"], "python3") == ""


def test_build_commands_see_no_passwords() -> None:
    given = {
        "SECRET_KEY": "secret-key", "DATABASE_URL": "postgresql://shop:se%2Fcret@10.0.0.1:5432/shop", "DEBUG": "",
        "EMAIL_URL": "smtp://ada:secret@mail.example.org", "SITE": "https://shop.example.org", "BAD": "http://[",
        "CACHE_URL": "redis://127.0.0.1/0",
    }  # fmt: skip
    seen = builder.without_passwords(given, ["SECRET_KEY", "DATABASE_URL", "CACHE_URL"])
    assert "cret" not in json.dumps(seen)
    assert seen["DATABASE_URL"] == f"postgresql://shop:{builder.NO_SECRET}@10.0.0.1:5432/shop"
    assert {name for name in given if given[name] == seen[name]} == {"DEBUG", "SITE", "BAD", "CACHE_URL"}


def test_secrets_of_a_build_are_hidden_line_by_line() -> None:
    text = builder.redacted("one: line-one, all: line-one\nline-two, a", {"KEY": "line-one\nline-two", "SHORT": "a"})
    assert text == "one: ***, all: ***, a"


def test_what_only_builds_see_is_not_kept_with_a_release(host: Host) -> None:
    for name in builder.ONLY_FOR_BUILDS:
        (host.settings.next_configuration / name).write_text("secret")
    configuration.configure(host, NEW)
    assert not {path.name for path in host.settings.configuration(NEW).iterdir()} & set(builder.ONLY_FOR_BUILDS)


# As in that template.
ESCAPED, BACKSLASHED = r'([\\"$`])', r"\\\1"
VALUES = ["two\nlines", 'a "quoted" $HOME `id` \\n', "", "end\n", '\n\nX="y"\n', "tab\t#'%", "-----BEGIN-----\nAb+/=\n"]


def test_values_of_several_lines_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    """As roles/runtime/templates/environment.j2 writes them. (The scenario projects does it with systemd.)"""
    given = {f"V{number}": value for number, value in enumerate(VALUES)}
    lines = [f'{name}="{re.sub(ESCAPED, BACKSLASHED, value)}"\n' for name, value in given.items()]
    file = tmp_path / "app.env"
    file.write_text("# comment\n" + "".join(lines))
    assert read_environment(file) == given
    shell = [
        "/bin/sh",
        "-euac",
        '. "$1"; exec python3 -c "import json, os; print(json.dumps(dict(os.environ)))"',
        "-",
        file,
    ]
    found = json.loads(subprocess.run(shell, check=True, capture_output=True, text=True).stdout)
    assert {name: found[name] for name in given} == given
