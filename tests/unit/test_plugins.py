"""Every plugin is documented; the documentation of an action is also the spec of its options."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[2] / "plugins"))

from plugin_utils.documented import argument_spec

PLUGINS = Path(__file__).parents[2] / "plugins"
FILES = [*PLUGINS.glob("action/*.py"), *PLUGINS.glob("modules/*.py"), *PLUGINS.glob("filter/*.py")]
FILES += PLUGINS.glob("lookup/*.py")


def constants(file: Path) -> dict[str, str]:
    """Return the string constants of a module, without importing it."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_plugin_is_documented(file: Path) -> None:
    documentation = yaml.safe_load(constants(file)["DOCUMENTATION"])
    assert documentation.get("module", documentation.get("name")) == file.stem
    assert documentation["short_description"]
    assert all(option["description"] for option in documentation["options"].values())
    assert yaml.safe_load(constants(file)["EXAMPLES"])
    assert yaml.safe_load(constants(file)["RETURN"])


def test_module_options_match_their_documentation() -> None:
    """ansible-doc reads the documentation; AnsibleModule reads the spec."""
    text = (PLUGINS / "modules/certificate.py").read_text()
    documented = yaml.safe_load(constants(PLUGINS / "modules/certificate.py")["DOCUMENTATION"])["options"]
    [spec] = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.keyword) and node.arg == "argument_spec"
    ]
    assert [key.value for key in spec.keys] == list(documented)


def test_roles_contain_no_plugins() -> None:
    roles = PLUGINS.parent / "roles"
    assert [str(path) for name in ("library", "*_plugins", "module_utils") for path in roles.glob(f"*/{name}")] == []


def test_argument_spec_includes_suboptions() -> None:
    options = {"files": {"type": "list", "description": "x", "suboptions": {"dest": {"type": "str", "required": True}}}}
    expected = {"files": {"type": "list", "options": {"dest": {"type": "str", "required": True}}}}
    assert argument_spec(options) == expected


@pytest.mark.parametrize("program", [*PLUGINS.glob("host/*.py")], ids=lambda program: program.stem)
def test_host_program_needs_only_the_standard_library(program: Path) -> None:
    """Isolated and without site-packages, as on the host."""
    done = subprocess.run([sys.executable, "-IS", "-c", program.read_text()], input="{", capture_output=True, text=True)
    assert "JSONDecodeError" in done.stderr
