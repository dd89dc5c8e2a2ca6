"""What the documentation says exists: links, files, commands, settings, steps, versions."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import hostctl
from hostctl.cli import COMMANDS
from hostctl.deploy.steps import BARRIERS, DEPLOY, ROLLBACK
from hostctl.doctor.checks import CHECKS
from hostctl.in_app import compat

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "plugins")]
import settings_docs  # noqa: E402
from plugin_utils.preflight import names  # noqa: E402

README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("roles/*/README.md"))]
PAGES += [ROOT / "plugins/README.md"]
# It names what no longer exists, too.
CURRENT = [page for page in PAGES if page != CHANGELOG]
FOLDERS = "roles|plugins|tools|tests|hostctl|molecule|bench|playbooks|app_src|docs|group_vars/all|[.]config|[.]github"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def read(path: Path) -> str:
    return path.read_text()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> list[str]:
    """Return a page's commands and names: inline code, indented blocks, fenced blocks."""
    text = read(page)
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^ {4,}(.+)$", text, re.MULTILINE), *fenced]


def words_in_code(page: Path, pattern: str) -> set[str]:
    return {word for text in code(page) for word in re.findall(pattern, text, re.MULTILINE)}


# --- Pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_merge_conflict_is_left(page: Path) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", read(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_resolves(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


def test_the_readme_is_one_page() -> None:
    assert len(re.findall(r"\S*\w\S*", read(README))) <= 600


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", read(README)))
    assert {name_of(page) for page in PAGES if page.parent in (ROOT, ROOT / "docs")} - linked == {"README.md"}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=name_of)
def test_a_page_begins_with_what_people_look_up(page: Path) -> None:
    title = re.search(r"^# (.+)$", read(page), re.MULTILINE)
    assert title
    assert ":" in title[1], "TOPIC: the question it answers, or what it has"


# --- What pages name ---------------------------------------------------------------------


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_make_target_exists(page: Path) -> None:
    makefile = read(ROOT / "Makefile")
    named = words_in_code(page, r"(?:^|&& |[(])make ([a-z.][a-z.-]*)") - {"test-"}
    scenarios = {f"test-{path.parent.name}" for path in ROOT.glob("molecule/*/molecule.yml")}
    known = (
        set(re.findall(r"^([a-z.-]+):", makefile, re.MULTILINE)) | scenarios | {"test-app", "test-lint", "test-unit"}
    )
    assert named - known == set()


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_playbook_exists(page: Path) -> None:
    named = words_in_code(page, r"(?<!tasks_from: )(?<![\w./-])(?:playbooks/)?([a-z-]+\.yml)(?![\w./])")
    known = {path.name for pattern in ("*.yml", "playbooks/*.yml") for path in ROOT.glob(pattern)}
    # Also files of Ansible's and of ours that are named without their folder.
    others = {
        "app.yml",
        "vault.yml",
        "defaults.yml",
        "secrets.yml",
        "wiring.yml",
        "molecule.yml",
        "hosts.yml",
        "main.yml",
    }
    others |= {"production.yml", "staging.yml", "check.yml", "test.yml", "argument_specs.yml"}
    assert named - known - others == set()


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_command_of_the_host_program_exists(page: Path) -> None:
    named = words_in_code(page, r"(?:\bshop|APP|NAME)ctl ([a-z_][a-z_-]*)")
    assert named - set(COMMANDS) == set()


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_file_of_the_repository_exists(page: Path) -> None:
    named = words_in_code(page, rf"(?<![\w./~-])((?:{FOLDERS})/[\w./-]*)(?![\w*{{])")
    examples = {
        name for name in named if re.search(r"[A-Z]{3,}", name) and not name.endswith(("README.md", "CHANGELOG.md"))
    }
    assert [name for name in sorted(named - examples) if not (ROOT / name.rstrip(".")).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_test_exists(page: Path) -> None:
    """FILE.py::NAME, with as much of the path as tells files apart; ::NAME is in the file before it."""
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("app_src/tests/*.py")]
    missing, file = [], ""
    for given, name in re.findall(r"`([\w/.-]*)::(\w+)`", read(page)):
        file = given or file
        found = [path for path in files if path.as_posix().endswith(f"/{file}")]
        if not any(re.search(rf"^ *def {name}\(", read(path), re.MULTILINE) for path in found):
            missing.append(f"{file}::{name}")
    assert missing == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_setting_exists(page: Path) -> None:
    files = sorted(ROOT.glob("group_vars/all/*.yml"))
    known = {name for file in files for name in yaml.safe_load(read(file))}
    spec = yaml.safe_load(read(settings_docs.SPEC))["argument_specs"]["settings"]["options"]
    known |= set(spec) | {name for name in spec if name.startswith("app_")}
    named = words_in_code(page, r"(?<![\w/.])(app_[a-z_]+)(?![\w/])") - {"app_src"}
    assert named - known == set()


def test_the_changelog_has_every_renamed_setting() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| `(\w+)`", read(CHANGELOG), re.MULTILINE))
    assert {old: new for old, new in names.RENAMED.items() if rows.get(old) != new} == {}


def test_every_environment_variable_is_documented() -> None:
    wiring = read(ROOT / "group_vars/all/wiring.yml").partition("runtime_environment: >-")[2].partition("\n\n")[0]
    given = set(re.findall(r"'([A-Z_]+)':", wiring.partition("runtime_migration_environment")[0]))
    assert given
    assert given - words_in_code(settings_docs.PAGE, r"^([A-Z_]+)$") == set()


def test_the_page_of_settings_is_current() -> None:
    assert settings_docs.PAGE.read_text() == settings_docs.page(), "make docs writes it"


def test_the_table_of_steps_is_the_list_of_the_program() -> None:
    section = read(ROOT / "docs/deploy.md").partition("## The steps of a deployment")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \|(.*)$", section, re.MULTILINE)
    assert [name for name, _ in rows] == [step.name for step in DEPLOY]
    assert [name for name, text in rows if "*barrier*" in text] == list(BARRIERS)


def test_every_step_of_a_rollback_is_documented() -> None:
    assert {step.name for step in ROLLBACK} - words_in_code(ROOT / "docs/deploy.md", r"^([a-z_]+)$") == set()


def test_every_line_of_the_doctor_is_documented() -> None:
    """In the table, and on the screen above it, in the order of the program."""
    page = read(ROOT / "docs/monitoring.md")
    names = [check.name for check in CHECKS]
    table = page.partition("| line | what is looked at |")[2].partition("\n\n")[0]
    documented = [name for row in re.findall(r"^\| ([a-z, ]+) \|", table, re.MULTILINE) for name in row.split(", ")]
    assert sorted(documented) == sorted(names)
    screen = re.findall(r"^    (?:ok|!|x) +(\w+) ", page.partition("## Alerts")[0], re.MULTILINE)
    assert screen == names


def test_every_scenario_is_documented() -> None:
    section = read(ROOT / "docs/testing.md").partition("## Scenarios")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
    assert {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")} - rows == set()


def test_the_tested_versions_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) to ([\d.]+) \|", read(ROOT / "docs/testing.md"), re.MULTILINE)
    assert {name.lower(): (low, high) for name, low, high in rows} == compat.TESTED


# --- Versions and workflows --------------------------------------------------------------


def test_the_newest_release_in_the_changelog_is_the_version() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", read(CHANGELOG), re.MULTILINE)
    assert releases[0] == hostctl.__version__
    assert "## [Unreleased]" in read(CHANGELOG)


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/workflows/*.yml")), ids=name_of)
def test_a_workflow_runs_what_make_runs_and_pins_its_actions(path: Path) -> None:
    steps = [step for job in yaml.safe_load(read(path))["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    assert [command for command in commands if command.removeprefix("make ") not in targets] == []
    uses = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []
