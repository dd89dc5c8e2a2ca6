"""Pack a release of the application into one archive on the control machine, and name it after its content."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: release_archive
short_description: Pack a release of the application into one archive, on the control machine
description:
  - The ID of the release consists of a hash of its content (or its git commit) and of the hash in O(configuration). The
    same content and configuration have the same ID, on every machine and at any time.
  - In a git work tree, files that git ignores are left out. Submodules and files of Git LFS are packed. Files named
    C(.env) are left out always.
options:
  source: {type: str, required: true, description: "A folder, relative to O(base), or the URL of a git repository."}
  git_ref: {type: str, default: "", description: "With a git URL, the branch, tag or commit. Default: the HEAD."}
  base: {type: path, required: true, description: Folder from which a relative O(source) starts.}
  cache: {type: path, required: true, description: Folder for archives and clones.}
  configuration: {type: str, required: true, description: Hash of what the processes are started with.}
author: Seedbed
"""

EXAMPLES = r"""
- name: Pack the release
  release_archive:
    source: app_src
    base: /home/me/seedbed
    cache: /home/me/seedbed/.releases
    configuration: "{{ app_environment | to_json | hash('sha256') }}"
"""

RETURN = r"""
id:
  description: ID of the release.
  type: str
path:
  description: Path of the archive, a .tar.gz.
  type: str
"""

# Files that a release does not need or that must not leave the control machine, in any folder of the project.
EXCLUDED = {".git", ".venv", "venv", "__pycache__", "node_modules", ".env", ".pytest_cache", ".ruff_cache"}

# The mode of a submodule in git's lists, and the beginning of a file that Git LFS stores elsewhere.
SUBMODULE = "160000 "
LFS_POINTER = b"version https://git-lfs"

# Where settings named in messages are edited.
FILE = "group_vars/ENV/app.yml"


class SourceError(Exception):
    """The source cannot be packed; the message says why and what to do."""


def is_git_url(source: str) -> bool:
    return "://" in source or (":" in source and "@" in source.partition(":")[0]) or source.endswith(".git")


def git(*arguments: str, folder: Path | None = None) -> str:
    """Run git and return its output. Raises SourceError with git's message."""
    quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=quiet, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceError("git is not installed on this machine: apt-get install git") from None
    if done.returncode != 0:
        raise SourceError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def fetch(url: str, git_ref: str, cache: Path) -> tuple[Path, str]:
    """Update the clone of a repository. Returns the clone and the commit of the ref."""
    clone = cache / (hashlib.sha256(url.encode()).hexdigest()[:12] + ".git")
    if not clone.exists():
        git("clone", "--quiet", "--mirror", url, str(clone))
    else:
        git("fetch", "--quiet", "--prune", "--tags", "--force", "origin", folder=clone)
    try:
        return clone, git("rev-parse", "--verify", f"{git_ref or 'HEAD'}^{{commit}}", folder=clone).strip()
    except SourceError:
        raise SourceError(f"{url} has no branch, tag or commit {git_ref!r}: set app_git_ref in {FILE}") from None


def project_files(folder: Path) -> list[Path]:
    """Return every file of the project, relative and sorted; in a git work tree without ignored files.

    Raises SourceError when git fails: an ignored file may be a secret.
    """
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return files_below(folder)
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder).split("\0")
    wanted = [Path(name) for name in listed if name and not EXCLUDED & set(Path(name).parts)]
    found = [file for file in wanted if (folder / file).is_symlink() or (folder / file).is_file()]
    for module in submodules(folder):
        if not (folder / module / ".git").exists():
            raise SourceError(
                f"the submodule {module} has no files. Type in {folder}: git submodule update --init --recursive"
            )
        found += [module / file for file in project_files(folder / module)]
    if pointer := next((file for file in found if is_lfs_pointer(folder / file)), None):
        raise SourceError(f"{pointer} is a pointer of Git LFS, not the file itself. Type in {folder}: git lfs pull")
    return sorted(found)


def submodules(folder: Path) -> list[Path]:
    """Return the submodules of a work tree below a folder, relative to it."""
    entries = git("ls-files", "-z", "--stage", folder=folder).split("\0")
    return [Path(entry.partition("\t")[2]) for entry in entries if entry.startswith(SUBMODULE)]


def is_lfs_pointer(file: Path) -> bool:
    """Return whether a file is a pointer of Git LFS; those have less than a kilobyte."""
    if file.is_symlink() or file.stat().st_size >= 1024:
        return False
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder that is not in a git work tree."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in EXCLUDED)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        kept = [name for name in [*files, *links] if name not in EXCLUDED and not name.endswith(".pyc")]
        found += [Path(parent, name).relative_to(folder) for name in kept]
    return sorted(found)


class Digest:
    """A file for tarfile that only hashes what is written to it; `size` is in bytes."""

    def __init__(self) -> None:
        self.size = 0
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.hash.update(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def write_tar(folder: Path, files: list[Path], target: Any) -> None:
    """Write the files as a tar archive whose bytes depend only on their names, modes and content."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            member = archive.gettarinfo(folder / file, arcname=str(file))
            member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            if member.isreg():
                with (folder / file).open("rb") as content:
                    archive.addfile(member, content)
            elif member.issym():
                archive.addfile(member)


def write_commit(clone: Path, commit: str, target: BinaryIO) -> None:
    """Write the files of a commit as a tar archive, without any .env. Raises SourceError when git fails."""
    command = ["git", "archive", "--format=tar", commit, "--", ".", ":(exclude,glob)**/.env"]
    with subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE) as process:
        shutil.copyfileobj(process.stdout, target)
    if process.returncode != 0:
        raise SourceError(f"git archive {commit} failed with exit status {process.returncode}")


def commit_size(clone: Path, commit: str) -> int:
    """Return the bytes of all files of a commit."""
    lines = git("ls-tree", "-r", "--long", commit, folder=clone).splitlines()
    sizes = [line.partition("\t")[0].split()[-1] for line in lines]
    return sum(int(size) for size in sizes if size.isdigit())


def needs_checkout(clone: Path, commit: str) -> bool:
    """Return whether `git archive` would leave out files of a commit: those of submodules and of Git LFS."""
    entries = git("ls-tree", "-r", commit, folder=clone).splitlines()
    if any(entry.startswith(SUBMODULE) for entry in entries):
        return True
    attributes = [entry.partition("\t")[2] for entry in entries if entry.endswith(".gitattributes")]
    return any("filter=lfs" in git("show", f"{commit}:{name}", folder=clone) for name in attributes)


def check_out(clone: Path, url: str, commit: str, folder: Path) -> None:
    """Check a commit out into a new folder, with its submodules and the files of Git LFS.

    Raises SourceError when git fails, or where git-lfs is needed and missing.
    """
    git("clone", "--quiet", "--shared", "--no-checkout", str(clone), str(folder))
    # Relative addresses of submodules, and the files of Git LFS, belong to the repository itself.
    git("remote", "set-url", "origin", url, folder=folder)
    git("-c", "advice.detachedHead=false", "checkout", "--quiet", commit, folder=folder)
    git("submodule", "--quiet", "update", "--init", "--recursive", folder=folder)
    if shutil.which("git-lfs"):
        git("lfs", "pull", folder=folder)
    elif "filter=lfs" in "".join(path.read_text() for path in folder.rglob(".gitattributes")):
        raise SourceError("the repository has files in Git LFS. Type on this machine: apt-get install git-lfs")


def pack_checkout(clone: Path, url: str, commit: str, path: Path) -> None:
    """Pack a commit that `git archive` cannot pack, by way of a folder that is removed again."""
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        folder = Path(place) / "source"
        check_out(clone, url, commit, folder)
        files, size = project_files(folder), Digest()
        write_tar(folder, files, size)
        compress(path, size.size, lambda target: write_tar(folder, files, target))


def compress(path: Path, size: int, write: Callable[[BinaryIO], None]) -> None:
    """Create a .tar.gz, never in memory as a whole; `size` is that of the tar archive.

    Raises SourceError when the disk has no room for it.
    """
    free = shutil.disk_usage(path.parent).free
    full = f"the folder {path.parent} has no room for the archive: {free >> 20} MiB are free, up to {size >> 20} MiB"
    if free < size:
        raise SourceError(f"{full} are needed. Delete old archives there")
    # Another run may pack the same content at the same time.
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        with (
            partial.open("wb") as file,
            gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
        ):
            write(packed)
        partial.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(f"{full} are needed. Delete old archives there") from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def pack(source: str, git_ref: str, base: Path, cache: Path, configuration: str) -> tuple[str, Path]:
    """Pack the release. Returns its ID and the archive.

    Raises SourceError when there is nothing to pack, or no room for the archive.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SourceError(f"the folder {cache} cannot be made: {error.strerror}. Set release_cache in {FILE}") from None
    if is_git_url(source):
        clone, commit = fetch(source, git_ref, cache)
        path = cache / f"{commit[:12]}.tar.gz"
        if not path.exists() and needs_checkout(clone, commit):
            pack_checkout(clone, source, commit, path)
        elif not path.exists():
            compress(path, commit_size(clone, commit), lambda target: write_commit(clone, commit, target))
    else:
        path = pack_folder(base / source, git_ref, cache)
    return f"{path.name.removesuffix('.tar.gz')}-{configuration[:6]}", path


def pack_folder(folder: Path, git_ref: str, cache: Path) -> Path:
    """Pack a folder, unless the cache has an archive of the same content."""
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}: set app_source in {FILE}")
    if git_ref:
        raise SourceError(f'app_source is a folder, which has no refs: set app_git_ref to "" ({git_ref!r}) in {FILE}')
    files = project_files(folder)
    if not files:
        raise SourceError(f"{folder} has no files, or git ignores all of them: set app_source in {FILE}")
    digest = Digest()
    write_tar(folder, files, digest)
    path = cache / f"{digest.hash.hexdigest()[:12]}.tar.gz"
    if not path.exists():

        def write(target: BinaryIO) -> None:
            again = Digest()
            write_tar(folder, files, Both(target, again))
            if again.hash.digest() != digest.hash.digest():
                raise SourceError(f"a file in {folder} was changed meanwhile: run the same command again")

        compress(path, digest.size, write)
    return path


class Both:
    """A file for tarfile that writes to a file and to a digest."""

    def __init__(self, target: BinaryIO, digest: Digest) -> None:
        self.target, self.digest = target, digest
        self.tell = digest.tell

    def write(self, data: bytes) -> int:
        self.target.write(data)
        return self.digest.write(data)


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = documented_arguments(self, DOCUMENTATION)
        base, cache = Path(arguments["base"]), Path(arguments["cache"])
        try:
            release, path = pack(arguments["source"], arguments["git_ref"], base, cache, arguments["configuration"])
        except SourceError as error:
            raise AnsibleActionFail(f"Cannot pack the application's source: {error}") from None
        return {"changed": False, "id": release, "path": str(path)}
