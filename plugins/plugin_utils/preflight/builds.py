"""What builds a release: system packages, requirements, build commands, and files beside the source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .application import VARIABLE, is_inside, unwritable_character
from .problems import Installation, Problem, quoted
from .ssh_keys import key_file_problem

PACKAGE = "[a-z0-9][a-z0-9+.-]+"
REQUIREMENT = r"([A-Za-z0-9][\w.-]*(\[[\w., -]*\])?.*|git\+\S+)"
# The names that a release's folder has for itself.
TAKEN = (".venv", "run", "release.env", "build.json")


def check_packages(here: Installation) -> Iterator[Problem]:
    for name in here.values["app_system_packages"]:
        if not re.fullmatch(PACKAGE, name):
            yield Problem("app_system_packages", f"contains {quoted(name)}; a Debian package must match ^{PACKAGE}$.")


def check_requirements(here: Installation) -> Iterator[Problem]:
    for line in here.values["app_extra_requirements"]:
        if not re.fullmatch(REQUIREMENT, line):
            yield Problem(
                "app_extra_requirements", f'contains {quoted(line)}; write one requirement, such as "psycopg[binary]".'
            )


def check_commands(here: Installation) -> Iterator[Problem]:
    for command in here.values["app_build_commands"]:
        if not command.strip():
            yield Problem("app_build_commands", "contains an empty command.")


def check_build_environment(here: Installation) -> Iterator[Problem]:
    for key, value in here.values["app_build_environment"].items():
        if not re.fullmatch(VARIABLE, str(key)):
            yield Problem("app_build_environment", f"must match ^{VARIABLE}$.", part=f".{key}")
        elif isinstance(value, bool) or not isinstance(value, str | int | float) or unwritable_character(str(value)):
            yield Problem("app_build_environment", "must be text or a number, in quotes.", part=f".{key}")


def check_ssh_key(here: Installation) -> Iterator[Problem]:
    name = here.values["app_build_ssh_key"]
    if name and (sentence := key_file_problem(here, name)):
        yield Problem("app_build_ssh_key", sentence)


def check_files(here: Installation) -> Iterator[Problem]:
    for name, file in here.values["app_files"].items():
        if sentence := file_problem(here, str(name), file):
            yield Problem("app_files", sentence, part=f".{name}")


def file_problem(here: Installation, name: str, file: Any) -> str:
    """Return what is wrong with an entry of app_files; "" if nothing is. Never repeat its content."""
    if not name or not is_inside(name) or name.endswith("/"):
        return "must be a relative path of a file inside the project."
    if name.split("/")[0] in TAKEN:
        return f"is a name that Seedbed uses in a release: {', '.join(TAKEN)}."
    if not isinstance(file, Mapping) or set(file) not in ({"src"}, {"content"}):
        return "must have either src, a file on this machine, or content, its text."
    if not isinstance(next(iter(file.values())), str):
        return "must be text."
    if "src" in file and not (path := here.project / Path(file["src"]).expanduser()).is_file():
        return f"names the file {path}, which does not exist on this machine."
    return ""


def check_databases(here: Installation) -> Iterator[Problem]:
    """Further databases: their names, their variables, and where they are."""
    seen = {"default"}
    variables = {"DATABASE_URL"}
    for one in here.values["app_databases"]:
        name, variable = one["name"], one["environment"]
        if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
            yield Problem("app_databases", f"must match ^[a-z][a-z0-9_]{{0,31}}$; it is {quoted(name)}.", part=".name")
        elif name in seen:
            what = "`default`, which needs no entry here" if name == "default" else f"{name} twice"
            yield Problem("app_databases", f"names {what}.")
        elif name == "import" or name.startswith("before_"):
            sentence = f"must not be import or begin with before_, as databases of import-database do: {quoted(name)}."
            yield Problem("app_databases", sentence, part=".name")
        if not re.fullmatch(VARIABLE, variable) or variable in variables:
            yield Problem(
                "app_databases",
                f"must be a variable of its own, such as {name.upper()}_URL; it is {quoted(variable)}.",
                part=f".{name}.environment",
            )
        if here.values["app_database_url"] and not one.get("url"):
            yield Problem("app_databases", "is missing, since app_database_url is set.", part=f".{name}.url")
        if one.get("owner_url") and not one.get("url"):
            yield Problem("app_databases", "is set, but url is not. Set both, or neither.", part=f".{name}.owner_url")
        yield from extension_problems("app_databases", one.get("extensions") or [], f".{name}.extensions")
        if one.get("extensions") and one.get("url"):
            sentence = "cannot be created in a managed database: create them there, and remove this."
            yield Problem("app_databases", sentence, part=f".{name}.extensions")
        seen.add(name)
        variables.add(variable)


def extension_problems(setting: str, names: list[str], part: str = "") -> Iterator[Problem]:
    pattern = "[a-z][a-z0-9_-]*"
    for name in names:
        if not re.fullmatch(pattern, name):
            yield Problem(setting, f"contains {quoted(name)}; an extension must match ^{pattern}$.", part=part)


def check_extensions(here: Installation) -> Iterator[Problem]:
    yield from extension_problems("app_database_extensions", here.values["app_database_extensions"])
    if here.values["app_database_extensions"] and here.values["app_database_url"]:
        wanted = "; ".join(
            f'CREATE EXTENSION IF NOT EXISTS "{name}"' for name in here.values["app_database_extensions"]
        )
        yield Problem(
            "app_database_extensions",
            f"cannot be created in a managed database (app_database_url). Run there, as its administrator: {wanted}; "
            "then set app_database_extensions to [].",
        )
