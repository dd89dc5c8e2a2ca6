"""What Ansible does not notice: names that nothing reads, specs that differ from the defaults, unused files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
GROUP_VARS = sorted((ROOT / "group_vars").glob("*/*.yml"))
DEFAULTS = ROOT / "group_vars/all/defaults.yml"
EXAMPLES = sorted((ROOT / "inventory").glob("*example.yml"))
INVENTORIES = EXAMPLES + sorted(ROOT.glob("molecule/*/inventory/hosts.yml"))
PLAYBOOKS = sorted(
    path.relative_to(ROOT)
    for pattern in ("site.yml", "playbooks/*.yml", "molecule/*/*.yml", "bench/*.yml")
    for path in ROOT.glob(pattern)
    if path.name != "molecule.yml" and isinstance(yaml.safe_load(path.read_text()), list)
)

# Ansible's own, and what only the test hosts have.
FOREIGN = re.compile(r"ansible_|testhost_(os|snapshot|upgrade_from)$")
SENTENCE_END = (".", "?", ":", ")")


@cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def spec(role: str) -> dict[str, Any]:
    return load(ROOT / f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def settings() -> dict[str, Any]:
    """Return the specs of the settings that no role has as its own."""
    return load(ROOT / "roles/preflight/meta/argument_specs.yml")["argument_specs"]["settings"]["options"]


@cache
def known_names() -> set[str]:
    """Return every documented variable."""
    own = {
        name
        for file in GROUP_VARS
        if file.name in ("secrets.yml", "wiring.yml")
        for name in load(file)
        if name.startswith(("app_", "secret_"))
    }
    return own | set(settings()) | {name for role in ROLES for name in spec(role)}


def text_files(folder: Path) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path: path.read_text() for path in sorted(files)}


def nested(value: Any, key: str) -> Iterator[Any]:
    """Yield the values under a key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from nested(inner, key)
    if isinstance(value, list):
        for inner in value:
            yield from nested(inner, key)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def without_sentence(text: str) -> list[str]:
    """Return the variables of a file without a sentence above. Lines without a blank line between them share one."""
    found, sentence = [], False
    for line in text.splitlines():
        if not line or line == "---":
            sentence = False
        elif line.startswith("# "):
            sentence = line.endswith(SENTENCE_END)
        elif re.match(r"\w+:", line) and not sentence:
            found.append(line.partition(":")[0])
    return found


# --- Specs and defaults ------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_the_spec_is_equal_to_the_defaults(role: str) -> None:
    defaults = load(ROOT / f"roles/{role}/defaults/main.yml") or {}
    specified = {name: option["default"] for name, option in spec(role).items() if "default" in option}
    assert specified == defaults
    required = {name for name, option in spec(role).items() if option.get("required")}
    assert required == set(spec(role)) - set(specified), "an option has a default, or is required"


@pytest.mark.parametrize("role", ROLES)
def test_every_default_has_a_sentence_above_it(role: str) -> None:
    path = ROOT / f"roles/{role}/defaults/main.yml"
    assert without_sentence(path.read_text() if path.exists() else "") == []


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_roles_name(role: str) -> None:
    assert [name for name in spec(role) if not name.startswith(f"{role}_")] == []
    internal = load(ROOT / f"roles/{role}/vars/main.yml") or {}
    assert [name for name in internal if not name.startswith(f"__{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_no_other_roles_variables(role: str) -> None:
    others = {name for other in ROLES if other != role for name in spec(other)}
    files = text_files(ROOT / "roles" / role)
    # A name after a slash is a file's, such as that of a generated password.
    words = {name_of(path): set(re.findall(r"(?<![\w/])\w+", text)) for path, text in files.items()}
    assert {path: found & others for path, found in words.items() if found & others} == {}


# --- Names that are set ------------------------------------------------------------------


@pytest.mark.parametrize("path", GROUP_VARS, ids=name_of)
def test_every_name_in_group_vars_is_documented(path: Path) -> None:
    assert [name for name in load(path) if name not in known_names() and not FOREIGN.match(name)] == []


@pytest.mark.parametrize("path", INVENTORIES, ids=name_of)
def test_every_name_in_an_inventory_is_documented(path: Path) -> None:
    inventory = load(path)
    hosts = [names for hosts in nested(inventory, "hosts") for names in hosts.values()]
    given = {name for variables in [*hosts, *nested(inventory, "vars")] for name in variables or {}}
    assert given
    assert sorted(name for name in given if name not in known_names() and not FOREIGN.match(name)) == []
    wired = {name for name in load(ROOT / "group_vars/all/wiring.yml") if not FOREIGN.match(name)}
    assert given & wired == set(), "preflight refuses these"


def test_every_setting_has_a_default_and_a_sentence() -> None:
    """So that a new version of ours never breaks a user's files."""
    assert set(load(DEFAULTS)) >= {name for name, option in settings().items() if option.get("required")}
    assert without_sentence(DEFAULTS.read_text()) == []


def test_a_role_variable_among_the_settings_is_not_wired() -> None:
    wired = set(load(ROOT / "group_vars/all/wiring.yml"))
    assert set(load(DEFAULTS)) & wired == set()
    assert set(load(ROOT / "group_vars/all/secrets.yml")) & wired == set()


@pytest.mark.parametrize(
    "path", [path for path in GROUP_VARS if path.name in ("secrets.yml", "wiring.yml")], ids=name_of
)
def test_what_joins_the_roles_is_used(path: Path) -> None:
    """Names of roles are in their specs; these must be read by other group_vars, a role or the tests' harness."""
    own = {name for name in load(path) if name.startswith(("app_", "secret_"))}
    texts = [file.read_text() for file in [*GROUP_VARS, ROOT / "tests/harness/installation.py"]]
    texts += text_files(ROOT / "roles").values()
    words = [word for text in texts for word in re.findall(r"\w+", without_comments(text))]
    assert [name for name in own if words.count(name) < 2] == []


def without_comments(text: str) -> str:
    """Return the text without comments of YAML, Python, shell and Jinja."""
    return re.sub(r"(?m)^\s*#.*$|\{#.*?#\}", "", text)


def test_a_name_in_a_comment_is_not_a_use() -> None:
    assert without_comments("# app_name\na: 1\n  # app_name\n{# app_name #}b").split() == ["a:", "1", "b"]


# --- Files that are used -----------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_every_file_of_a_role_is_used(role: str) -> None:
    folder = ROOT / "roles" / role
    texts = text_files(folder)
    choices = {f"{choice}.yml" for option in spec(role).values() for choice in option.get("choices", [])}
    choices |= set(re.findall(r"tasks_from: (\S+)", "".join(path.read_text() for path in ROOT.glob("playbooks/*.yml"))))
    parts = [path for kind in ("templates", "files", "tasks") for path in (folder / kind).rglob("*") if path in texts]
    unused = [
        name_of(path)
        for path in parts
        if path.name not in {"main.yml", *choices}
        # By its name, or with all of its folder.
        and not any(
            path.name in text or f"/{path.parent.name}/*" in text for other, text in texts.items() if other != path
        )
    ]
    assert unused == []


def test_handlers_and_notifications_meet() -> None:
    """Also across roles: a topic such as `certificate changed` has its handler in another role than its notify."""
    handlers = [handler for role in ROLES for handler in load(ROOT / f"roles/{role}/handlers/main.yml") or []]
    heard = [[handler["name"], *as_list(handler.get("listen", []))] for handler in handlers]
    loaded = [yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("roles/*/*/*.yml"))]
    called = {name for document in loaded for notify in nested(document, "notify") for name in as_list(notify)}
    assert called
    assert [names[0] for names in heard if not called & set(names)] == [], "never notified"
    assert called - {name for names in heard for name in names} == set(), "no such handler"


# --- Playbooks and inventories -----------------------------------------------------------


def test_every_playbook_and_role_can_be_read(tmp_path: Path) -> None:
    """ansible-lint does not check it (tools/ansible_lint.py)."""
    tasks = [{"name": f"Import {role}", "ansible.builtin.import_role": {"name": role}} for role in ROLES]
    (tmp_path / "roles.json").write_text(json.dumps([{"name": "Import", "hosts": "all", "tasks": tasks}]))
    assert {"site.yml", "playbooks/deploy.yml", "molecule/shared/converge.yml"} <= set(map(str, PLAYBOOKS))
    command = [TOOLS / "ansible-playbook", "--syntax-check", "-i", EXAMPLES[0], *PLAYBOOKS, tmp_path / "roles.json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=name_of)
def test_a_playbook_detects_the_connection_before_it_contacts_a_host(path: Path) -> None:
    """The inventory may name root and port 22 although only an administrator can log in, and at another port."""
    plays = load(path)
    if path.name == "inspect.yml":
        return  # contacts none
    names = [role["role"] if isinstance(role, dict) else role for role in plays[0].get("roles", [])]
    names += [task.get("ansible.builtin.import_role", {}).get("name") for task in plays[0].get("tasks", [])]
    assert next(name for name in names if name != "preflight") == "connection"
    assert [play["name"] for play in plays if play["gather_facts"] is not False] == [], "this would come first"


@pytest.mark.parametrize("name", ["site.yml", "playbooks/provision.yml", "playbooks/deploy.yml"])
def test_roles_validate_no_arguments_again(name: str) -> None:
    """Ansible does so with every tag: a run with `--tags nginx` would fail, since other roles have set no facts."""
    imports = [value for value in nested(load(ROOT / name), "ansible.builtin.import_role") if isinstance(value, dict)]
    assert len(imports) > 0
    assert list(nested(load(ROOT / name), "roles")) == []
    for role in imports:
        specs = load(ROOT / f"roles/{role['name']}/meta/argument_specs.yml")["argument_specs"]
        entry = role.get("tasks_from", "main").removesuffix(".yml")
        assert entry not in specs or role.get("rolespec_validate") is False, role


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_an_example_inventory_has_every_group_and_the_settings(path: Path, tmp_path: Path) -> None:
    """Also from another folder: Ansible finds group_vars beside the inventory."""
    command = [TOOLS / "ansible-inventory", "-i", path, "--list"]
    listed = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    for group in ("web", "worker", "scheduler", "database", "broker"):
        assert listed[group]["hosts"]
    for variables in listed["_meta"]["hostvars"].values():
        assert set(load(DEFAULTS)) <= set(variables)


def test_files_of_the_earlier_version_are_removed_by_hostctl_alone() -> None:
    """A deployment of the earlier version may still run while Ansible writes the new files."""
    old = ("sbin/{{ services_name }}-release", "sbin/{{ services_name }}-manage", "/{{ runtime_name }}/release.env")
    texts = {name_of(path): path.read_text() for path in ROOT.glob("roles/*/*/*.yml")}
    assert [(name, part) for name, text in texts.items() for part in old if part in text] == []


@pytest.mark.parametrize(
    ("setting", "variable"), {"app_web": "services_web", "app_rate_limit": "nginx_rate_limit"}.items()
)
def test_the_wiring_has_the_defaults_of_mappings(setting: str, variable: str) -> None:
    """A user may set some of the keys; the others keep their default."""
    expression = load(ROOT / "group_vars/all/wiring.yml")[variable]
    [literal] = re.findall(r"\{'.*?\}", expression)
    assert yaml.safe_load(literal) == load(DEFAULTS)[setting]


@pytest.mark.parametrize("setting", ["app_web", "app_rate_limit", "app_sandbox"])
def test_no_key_of_a_mapping_is_required(setting: str) -> None:
    """Otherwise a new key of ours would make the users' files invalid."""
    assert not [key for key, option in settings()[setting]["options"].items() if option.get("required")]


# --- Secrets -----------------------------------------------------------------------------

# Tasks that read secrets and print none: a failure of theirs must be read.
PRINT_NO_SECRET = {
    "Install the program, its modules and its settings",  # the names of variables with secrets
    "Upgrade | Log in as the application",  # in its environment, which Ansible does not print
    "Print the summary",  # whether they are the user's own
    "Site | Write the site, its error page and the sandbox",  # whether the status page has a password
}


def tasks_of(items: list[dict[str, Any]], no_log: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each task of a file, also inside blocks, with whether it has `no_log`."""
    for task in items:
        hidden = task.get("no_log", no_log)
        if "block" in task:
            for part in ("block", "rescue", "always"):
                yield from tasks_of(task.get(part, []), hidden)
        else:
            yield task, hidden


def secrets_behind(value: Any) -> set[str]:
    """Return the secrets that a value contains, also by other variables and by templates."""
    secrets = set(load(ROOT / "group_vars/all/secrets.yml")) - {"app_secrets"}
    templates = {path.name: path for path in ROOT.glob("roles/*/templates/*.j2")}
    seen: set[str] = set()
    left = [json.dumps(value)]
    while left:
        text = left.pop()
        left += [templates[name].read_text() for name in set(re.findall(r"[\w.-]+\.j2", text)) & set(templates) - seen]
        new = set(re.findall(r"[\w.-]+\.j2|\w+", text)) - seen
        seen |= new
        left += [json.dumps(one) for name in new for one in variables().get(name, [])]
    return seen & secrets


@cache
def variables() -> dict[str, list[Any]]:
    """Return what each variable of the roles and of group_vars/all is computed from."""
    found: dict[str, list[Any]] = {}
    for pattern in ("group_vars/all/*.yml", "roles/*/defaults/main.yml", "roles/*/vars/main.yml"):
        for path in ROOT.glob(pattern):
            for name, value in (load(path) or {}).items():
                found.setdefault(name, []).append(value)
    return found


def test_tasks_with_secrets_have_no_log() -> None:
    """Ansible prints arguments and results of a task, in a failure and with -v."""
    told, hidden = [], 0
    for path in sorted(path for kind in ("tasks", "handlers") for path in ROOT.glob(f"roles/*/{kind}/*.yml")):
        for task, no_log in tasks_of(load(path) or []):
            printed = {key: value for key, value in task.items() if key not in ("name", "when", "notify")}
            if secrets_behind(printed):
                hidden += no_log
                told += [] if no_log else [task["name"]]
    assert set(told) == PRINT_NO_SECRET
    assert hidden > 10
