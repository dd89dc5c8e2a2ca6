"""The Python packages that a project requires, and the file that a deployment installs them from."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..preflight.application import EXPORTS
from .layout import Layout, kind_of
from .report import FILE, Report, bare
from .tree import Tree, join

LINE = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(.*)$")
# The name of a requirement whose name only its URL tells.
EGG = re.compile(r"[#&]egg=([\w.-]+)|/([\w.-]+?)(?:\.git)?(?:@[^/]*)?(?:[#&].*)?$")
# 3.11, of Debian 12.
OLDEST_PYTHON = 11
PREFERRED = (
    "requirements/production.txt",
    "requirements/prod.txt",
    "requirements/deploy.txt",
    "requirements-prod.txt",
    "requirements-production.txt",
    "requirements_prod.txt",
    "requirements.txt",
    "uv.lock",
    "requirements/requirements.txt",
    "requirements/main.txt",
    "requirements/default.txt",
    "requirements/base.txt",
)


@dataclass
class Package:
    """A required package: its normalized name, extras, the version as the file has it, and where it comes from."""

    name: str
    extras: frozenset[str] = frozenset()
    version: str = ""
    url: str = ""


@dataclass
class Requirements:
    """The file of the requirements ("" for none), its packages by name, and what pip is told beside them."""

    file: str = ""
    packages: dict[str, Package] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    python: str = ""
    # How many packages the file has: `packages` also holds app_extra_requirements.
    count: int = 0
    # Is the project itself a package that uv.lock installs?
    installs_project: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.packages

    def has_extra(self, name: str, extra: str) -> bool:
        return name in self.packages and extra in self.packages[name].extras


def find_requirements(tree: Tree, layout: Layout, given: Mapping[str, Any]) -> Requirements:
    """Return the requirements of a project, and its version of Python."""
    found = Requirements(file=str(given.get("app_requirements") or "") or find_file(tree, layout))
    if found.file.endswith("uv.lock"):
        read_uv_lock(tree, found)
    elif found.file.endswith("pyproject.toml"):
        read_pyproject(tree, found.file, found)
    elif found.file:
        read_lines(tree, found.file, found, set())
    elif locks := locks_of_others(tree, layout):
        read_other_lock(tree, locks[0], found)
    else:
        for place in dict.fromkeys(["", layout.project_dir]):
            read_pyproject(tree, join(place, "pyproject.toml"), found)
    found.python = find_python(tree, layout, found)
    found.count = len(found.packages)
    for line in given.get("app_extra_requirements") or []:
        add_line(str(line), found)
    return found


def find_file(tree: Tree, layout: Layout) -> str:
    places = list(dict.fromkeys(["", layout.project_dir]))
    for name in PREFERRED:
        for place in places:
            if join(place, name) in tree.files and tree.read(join(place, name)).strip():
                return join(place, name)
    pattern = r"(.*/)?(requirements[^/]*|requirements/[^/]+|(.*/)?reqs?/[^/]+)\.txt"
    others = [file for file in sorted(tree.files) if re.fullmatch(pattern, file)]
    others = [file for file in others if tree.read(file).strip()]
    others = [file for file in others if not re.search(r"dev|test|doc|local|lint|ci\b|constraint", file)]
    return min(
        others, key=lambda file: (file.count("/"), kind_of(file.removesuffix(".txt").replace("/", "."))), default=""
    )


def locks_of_others(tree: Tree, layout: Layout) -> list[str]:
    places = dict.fromkeys(["", layout.project_dir])
    names = [join(place, name) for name in ("poetry.lock", "pdm.lock", "Pipfile.lock") for place in places]
    return [name for name in names if name in tree.files]


def read_lines(tree: Tree, file: str, found: Requirements, seen: set[str]) -> None:
    """Read a requirements file and those that it includes."""
    if file in seen:
        return
    seen.add(file)
    text = re.sub(r"\\\n", " ", tree.read(file))
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if include := re.match(r"(?:-r|--requirement)[\s=]*(\S+)", line):
            read_lines(tree, resolve(file, include[1]), found, seen)
        elif own := re.fullmatch(r"(?:(?:-e|--editable)[\s=]*)?\./?\s*(?:\[([^\]]*)\])?", line):
            read_pyproject(tree, resolve(file, "pyproject.toml"), found, own[1] or "")
        elif re.match(r"-(?!e|-editable)", line):
            found.options.append(line)
        elif line:
            add_line(line, found)


def resolve(file: str, other: str) -> str:
    """Return a path that a file names relative to its own folder."""
    parts: list[str] = file.split("/")[:-1]
    for part in other.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", "..", ""):
            parts.append(part)
    return "/".join(parts)


def add_line(line: str, found: Requirements) -> None:
    line = re.sub(r"\s--hash=\S+", "", line)
    line = re.sub(r"^(-e|--editable)[\s=]*", "", line).strip()
    url = line.partition(" @ ")[2].strip() or (line if re.match(r"\w+(\+\w+)?:|\.{0,2}/", line) else "")
    if url == line:
        match = EGG.search(line)
        name = (match[1] or match[2]) if match else line
        found.packages[bare(name)] = Package(bare(name), url=url)
        return
    match = LINE.match(line)
    if not match:
        return
    extras = frozenset(extra.strip().lower() for extra in (match[2] or "[]")[1:-1].split(",") if extra.strip())
    known = found.packages.get(bare(match[1]))
    version = match[3].partition(";")[0].strip()
    found.packages[bare(match[1])] = Package(
        bare(match[1]), extras | (known.extras if known else frozenset()), "" if url else version, url
    )


def read_toml(tree: Tree, file: str) -> dict[str, Any]:
    return parse_toml(tree.read(file))


@functools.lru_cache(maxsize=8)
def parse_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError:
        return {}


def read_uv_lock(tree: Tree, found: Requirements) -> None:
    packages = [item for item in read_toml(tree, found.file).get("package", []) if isinstance(item, dict)]
    reached = reachable(packages)
    for package in packages:
        name = bare(str(package.get("name", "")))
        source = package.get("source", {})
        if source.get("editable") == "." or source.get("virtual") == ".":
            found.installs_project = source.get("editable") == "."
        elif not reached or name in reached:
            version = f"=={package['version']}" if "version" in package else ""
            url = f"git+{source['git']}" if "git" in source else ""
            found.packages[name] = Package(name, frozenset(reached.get(name, ())), version, url)


def reachable(packages: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the packages that the project needs without groups, with the extras asked of them."""
    by_name = {bare(str(package.get("name", ""))): package for package in packages}
    roots = [package for package in packages if set(package.get("source", {})) & {"editable", "virtual"}]
    extras: dict[str, set[str]] = {}
    waiting = [dependency for root in roots for dependency in root.get("dependencies", [])]
    done: set[tuple[str, str]] = set()
    while waiting:
        dependency = waiting.pop()
        name = bare(str(dependency.get("name", "")))
        wanted = dependency.get("extra", [])
        extras.setdefault(name, set()).update(wanted)
        for extra in ["", *wanted]:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            package = by_name.get(name, {})
            more = package.get("optional-dependencies", {}).get(extra, []) if extra else package.get("dependencies", [])
            waiting += more
    return extras


def read_other_lock(tree: Tree, file: str, found: Requirements) -> None:
    """Read the names and versions of a lock that a deployment does not install from."""
    if file.endswith("Pipfile.lock"):
        try:
            packages = json.loads(tree.read(file)).get("default", {})
        except ValueError:
            packages = {}
        for name, package in packages.items():
            extras = frozenset(package.get("extras", []))
            found.packages[bare(name)] = Package(
                bare(name), extras, str(package.get("version", "")), str(package.get("git", ""))
            )
        return
    for package in read_toml(tree, file).get("package", []):
        name = bare(str(package.get("name", "")))
        found.packages[name] = Package(name, frozenset(package.get("extras", {})), f"=={package.get('version', '')}")
    declared = read_toml(tree, join(file.rpartition("/")[0], "pyproject.toml")).get("tool", {}).get("poetry", {})
    for name, wanted in declared.get("dependencies", {}).items():
        extras = frozenset(wanted.get("extras", [])) if isinstance(wanted, dict) else frozenset()
        if bare(name) != "python":
            known = found.packages.get(bare(name), Package(bare(name)))
            found.packages[bare(name)] = Package(bare(name), extras or known.extras, known.version)


def read_pyproject(tree: Tree, file: str, found: Requirements, extras: str = "") -> None:
    """Read what the project itself requires, with its own extras (separated by commas)."""
    project = read_toml(tree, file).get("project", {})
    optional = project.get("optional-dependencies", {})
    more = [line for extra in extras.split(",") for line in optional.get(extra.strip(), [])]
    for line in [*project.get("dependencies", []), *more]:
        add_line(str(line), found)


def find_python(tree: Tree, layout: Layout, found: Requirements) -> str:
    """Return the version of Python that the project asks for, as it writes it; "" for none."""
    for place in dict.fromkeys(["", layout.project_dir]):
        for name in (".python-version", "runtime.txt"):
            match = re.search(r"\b(3\.\d+)", tree.read(join(place, name)))
            if match:
                return match[1]
        if match := re.search(r"^python\s+(3\.\d+)", tree.read(join(place, ".tool-versions")), re.M):
            return match[1]
        project = read_toml(tree, join(place, "pyproject.toml"))
        wanted = project.get("project", {}).get("requires-python")
        wanted = wanted or project.get("tool", {}).get("poetry", {}).get("dependencies", {}).get("python")
        if isinstance(wanted, str):
            return wanted
    locked = str(read_toml(tree, found.file).get("requires-python", "")) if found.file.endswith("uv.lock") else ""
    return locked or python_of_image(tree)


def dockerfiles(tree: Tree) -> list[str]:
    """Return the project's Dockerfiles, those nearest to the top first, those of development last."""
    files = [file for file in tree.files if re.fullmatch(r"(.*/)?[Dd]ockerfile([.-]\w+)?", file)]
    return sorted(files, key=lambda file: (bool(re.search(r"dev|local|test", file)), file.count("/"), file))


def python_of_image(tree: Tree) -> str:
    """Return the version of Python of the project's Dockerfile, where it is older than Debian's; else "".

    Old requirements may not build with a newer Python. A version as new as Debian's is ignored: newer ones work, too.
    """
    for file in dockerfiles(tree):
        match = re.search(r"^FROM\s+(?:--\S+\s+)*(?:\S+/)?python:3\.(\d+)", tree.read(file), re.M | re.I)
        if match:
            return f"3.{match[1]}" if int(match[1]) < OLDEST_PYTHON else ""
    return ""


def report_requirements(tree: Tree, layout: Layout, found: Requirements, report: Report) -> None:
    """Add the file of the requirements, or the command that makes one."""
    if found.file:
        report.propose("app_requirements", found.file, "The file that the deployment installs from.")
        if found.file not in tree.files:
            text = f"app_requirements names {found.file}, which the project does not have. Correct it in {FILE}."
            report.needs("requirements", text, "app_requirements")
            return
        report.fine("requirements", f"{found.count} packages from {found.file}.", "app_requirements")
        return
    command = export_command(tree, layout)
    report.needs(
        "requirements",
        f"{command[0]} Type in the project: {command[1]}; commit the file, and set app_requirements to it in {FILE}.",
        "app_requirements",
    )


def export_command(tree: Tree, layout: Layout) -> tuple[str, str]:
    """Return what the project has instead of a requirements file, and the command that makes one."""
    locks = locks_of_others(tree, layout)
    for lock in locks:
        return f"{lock} is not installed from.", EXPORTS[lock.rpartition("/")[2]]
    places = dict.fromkeys(["", layout.project_dir])
    declared = [read_toml(tree, join(place, "pyproject.toml")) for place in places]
    if any("project" in one for one in declared):
        return "The project has a pyproject.toml, and no uv.lock.", "uv lock"
    if any("poetry" in one.get("tool", {}) for one in declared):
        return "The project uses Poetry, and has no poetry.lock.", f"poetry lock && {EXPORTS['poetry.lock']}"
    if any(join(place, "Pipfile") in tree.files for place in places):
        return "The project has a Pipfile, and no Pipfile.lock.", f"pipenv lock && {EXPORTS['Pipfile.lock']}"
    source = next((name for place in places if (name := join(place, "requirements.in")) in tree.files), "")
    if source:
        command = f"uv pip compile {source} --output-file {source.removesuffix('.in')}.txt"
        return f"{source} is not compiled.", command
    return "The project has no requirements file.", "pip freeze > requirements.txt"
