"""The files of a project, as a deployment packs them."""

from __future__ import annotations

import ast
import codecs
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from hostctl.in_app.queue_calls import ASIDE

# As the action release_archive leaves them out.
EXCLUDED = {".git", ".venv", "venv", "__pycache__", "node_modules", ".env", ".pytest_cache", ".ruff_cache"}
POINTER = "version https://git-lfs.github.com/spec/"
TESTS = re.compile(r"(^|/)(tests?|testing)(/|$)", re.I)
# Larger files are data; they are not read.
LARGEST_BYTES = 5_000_000


class Tree:
    """A project's folder. Paths are relative to it, with slashes; `files` are what a deployment packs."""

    def __init__(self, folder: Path, project_dir: str = "") -> None:
        self.folder, self.project_dir = folder, project_dir.strip("/")
        self.repository = any((place / ".git").exists() for place in (folder, *folder.parents))
        self._texts: dict[str, str] = {}
        self._modules: dict[str, ast.Module | None] = {}

    @cached_property
    def files(self) -> frozenset[str]:
        listed = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard") if self.repository else None
        names = self._walk() if listed is None else (name for name in listed.split("\0") if name)
        kept = {name for name in names if not EXCLUDED & set(name.split("/"))}
        if listed is not None:
            kept = {name for name in kept if (self.folder / name).is_file()}
            kept |= {file for module in self.submodules for file in self._walk(module)}
        return frozenset(kept)

    @cached_property
    def ignored(self) -> frozenset[str]:
        """Python files that are on this machine, and that git ignores."""
        arguments = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", "*.py")
        listed = self._git(*arguments) if self.repository else None
        return frozenset(name for name in (listed or "").split("\0") if name and not EXCLUDED & set(name.split("/")))

    @cached_property
    def folders(self) -> frozenset[str]:
        parents = {file.rpartition("/")[0] for file in self.files}
        return frozenset(
            "/".join(parts[:count])
            for parts in (name.split("/") for name in parents)
            for count in range(len(parts) + 1)
        )

    @cached_property
    def python(self) -> list[str]:
        """Python files that may run in production, those nearest to the top first."""
        found = [file for file in self.files if file.endswith(".py") and not self.is_aside(file)]
        return sorted(found, key=lambda file: (file.count("/"), file))

    def is_aside(self, file: str) -> bool:
        """Return whether a file is in a folder of tests, examples or documentation, which is not the project's own."""
        folder = file.rpartition("/")[0]
        own = max((part for part in self.own if f"{folder}/".startswith(f"{part}/")), key=len, default="")
        return bool(ASIDE.search(folder.removeprefix(own)))

    @cached_property
    def own(self) -> frozenset[str]:
        """The folders that belong to the project although they have a name such as demo or docs.

        They are the one with manage.py where it has no other, the package of its settings, and applications.
        """
        manages = [file for file in self.files if file.rpartition("/")[2] == "manage.py"]
        folders = {file.rpartition("/")[0] for file in manages}
        usual = {folder for folder in folders if not ASIDE.search(folder)}
        nearest = sorted(folders, key=lambda folder: (folder.count("/"), folder))[:1]
        found = {self.project_dir} if self.project_dir else set() if usual else set(nearest)
        for folder in usual | found:
            module = re.search(
                r"""DJANGO_SETTINGS_MODULE["']\]?\s*[,=]\s*["'](\w+)""", self.read(join(folder, "manage.py"))
            )
            found |= {join(folder, module[1])} if module else set()
        for folder in self.folders:
            # An example or test project has a manage.py of its own.
            inner = any(f"{folder}/".startswith(f"{other}/") for other in folders - usual)
            is_app = join(folder, "apps.py") in self.files and join(folder, "migrations/__init__.py") in self.files
            found |= {folder} if is_app and not inner and not TESTS.search(folder) else set()
        return frozenset(found)

    @cached_property
    def submodules(self) -> list[str]:
        return re.findall(r"^\s*path\s*=\s*(.+?)\s*$", self.read(".gitmodules"), re.M)

    def named(self, *names: str) -> list[str]:
        """Return the files with one of these names, those nearest to the top first."""
        found = [file for file in self.files if file.rpartition("/")[2] in names and not self.is_aside(file)]
        return sorted(found, key=lambda file: (file.count("/"), file))

    def on_disk(self, path: str) -> bool:
        """Return whether a file exists here, also one that a deployment leaves out."""
        return (self.folder / path).is_file()

    def read(self, path: str) -> str:
        """Return the text of a file; "" where it is missing, too large or not text."""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def parse(self, path: str) -> ast.Module | None:
        """Return the syntax tree of a Python file; None where it has none."""
        if path not in self._modules:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._modules[path] = ast.parse(self.read(path)) if self.on_disk(path) else None
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                self._modules[path] = None
        return self._modules[path]

    def syntax_error(self, path: str) -> SyntaxError | None:
        """Return what is wrong with a Python file, for the version of Python that inspects it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(self.read(path))
        except SyntaxError as error:
            return error
        except (ValueError, RecursionError, MemoryError):
            return None
        return None

    def grep(self, pattern: str, files: list[str], word: str = "") -> Iterator[str]:
        """Yield the files whose text matches a pattern; `word` is a part of every match, which is faster to find."""
        expression = re.compile(pattern)
        return (file for file in files if word in self.read(file) and expression.search(self.read(file)))

    def pointers(self) -> list[str]:
        """Return the files that Git LFS has not fetched."""
        attributes = [file for file in self.files if file.rpartition("/")[2] == ".gitattributes"]
        if not any("filter=lfs" in self.read(file) for file in attributes):
            return []
        return sorted(file for file in self.files if self._is_pointer(self.folder / file))

    def _is_pointer(self, path: Path) -> bool:
        try:
            return path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER.encode())
        except OSError:
            return False

    def _read(self, path: str) -> str:
        place = self.folder / path
        try:
            return decoded(place.read_bytes()) if place.stat().st_size <= LARGEST_BYTES else ""
        except OSError:
            return ""

    def _git(self, *arguments: str) -> str | None:
        command = ["git", "-C", str(self.folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError:
            return None
        return done.stdout if done.returncode == 0 else None

    def _walk(self, below: str = "") -> Iterator[str]:
        for parent, folders, files in os.walk(self.folder / below):
            folders[:] = sorted(name for name in folders if name not in EXCLUDED)
            place = Path(parent).relative_to(self.folder).as_posix()
            yield from (name if place == "." else f"{place}/{name}" for name in files)


def decoded(content: bytes) -> str:
    """Return the text of a file; one with a byte order mark may be UTF-16, as PowerShell writes it."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def join(*parts: str) -> str:
    """Join parts of a relative path, some of which may be empty."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
