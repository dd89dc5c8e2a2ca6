"""Pack a release of the application into one archive, on the control machine, and name it after its content.

    - release_archive:
        source: app_src
        base: /home/me/seedbed
        cache: /home/me/seedbed/.releases
        configuration: "{{ app_environment | to_json | hash('sha256') }}"

`source` is a folder (a relative one starts from `base`) or the URL of a git repository, of which `git_ref` names a
branch, tag or commit; `cache` is a folder for archives and clones; `configuration` is a hash of what the processes are
started with. Returns `path`, the archive, and `id`, the name of the release: of its content's hash or its commit, and
of the configuration's hash. The same content and configuration give the same name, on every machine and at any time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# What no release needs, and what must not leave the control machine, wherever it lies in the project.
LEFT_OUT = {".git", ".venv", "venv", "__pycache__", "node_modules", ".env", ".pytest_cache", ".ruff_cache"}

# Where the settings in a message are edited.
FILE = "group_vars/ENV/app.yml"


class SourceError(Exception):
    """The source cannot be packed; the message says why and what to do."""


def is_git_url(source: str) -> bool:
    return "://" in source or (":" in source and "@" in source.partition(":")[0]) or source.endswith(".git")


def git(*arguments: str, folder: Path | None = None) -> str:
    """Run git and return its output. Raises SourceError with git's own words."""
    quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=quiet, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceError("git is not installed on this machine: apt-get install git") from None
    if done.returncode != 0:
        raise SourceError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def fetch(url: str, version: str, cache: Path) -> tuple[Path, str]:
    """Bring a clone up to date. Returns the clone and the commit that the version names."""
    clone = cache / (hashlib.sha256(url.encode()).hexdigest()[:12] + ".git")
    if not clone.exists():
        git("clone", "--quiet", "--mirror", url, str(clone))
    else:
        git("fetch", "--quiet", "--prune", "--tags", "--force", "origin", folder=clone)
    try:
        return clone, git("rev-parse", "--verify", f"{version or 'HEAD'}^{{commit}}", folder=clone).strip()
    except SourceError:
        raise SourceError(f"{url} has no branch, tag or commit {version!r}: set app_git_ref in {FILE}") from None


def project_files(folder: Path) -> list[Path]:
    """Every file of the project, relative to its folder and sorted: in a git work tree without what git ignores.

    Raises SourceError where git cannot say, since what it ignores may be a secret.
    """
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return files_below(folder)
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder).split("\0")
    wanted = [Path(name) for name in listed if name and not LEFT_OUT & set(Path(name).parts)]
    return sorted(file for file in wanted if (folder / file).is_symlink() or (folder / file).is_file())


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder that no git knows, without what LEFT_OUT names."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        kept = [name for name in [*files, *links] if name not in LEFT_OUT and not name.endswith(".pyc")]
        found += [Path(parent, name).relative_to(folder) for name in kept]
    return sorted(found)


def archive_folder(folder: Path, files: list[Path]) -> bytes:
    """The files as a tar archive whose bytes depend on nothing but their names, modes and content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            member = archive.gettarinfo(folder / file, arcname=str(file))
            member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            if member.isreg():
                with (folder / file).open("rb") as content:
                    archive.addfile(member, content)
            elif member.issym():
                archive.addfile(member)
    return packed.getvalue()


def pack(source: str, version: str, base: Path, cache: Path, configuration: str) -> tuple[str, Path]:
    """Pack the release. Returns its name and the archive.

    Raises SourceError when there is nothing to pack.
    """
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if is_git_url(source):
        clone, commit = fetch(source, version, cache)
        content, name = None, commit[:12]
    else:
        folder = base / source
        if not folder.is_dir():
            raise SourceError(f"there is no folder {folder}: set app_source in {FILE}")
        if version:
            raise SourceError(
                f"app_source is a folder, which has no versions: empty app_git_ref ({version!r}) in {FILE}"
            )
        files = project_files(folder)
        if not files:
            raise SourceError(f"{folder} holds no file that git does not ignore: set app_source in {FILE}")
        content = archive_folder(folder, files)
        name = hashlib.sha256(content).hexdigest()[:12]
    path = cache / f"{name}.tar.gz"
    if not path.exists():
        if content is None:
            archive = ["git", "archive", "--format=tar", commit]
            content = subprocess.run(archive, cwd=clone, capture_output=True, check=True).stdout
        # Two installations may be packing the same content just now.
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
        partial.rename(path)
    return f"{name}-{configuration[:6]}", path


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        given = self._task.args
        base, cache = Path(given["base"]), Path(given["cache"]).expanduser()
        try:
            name, path = pack(given["source"], given.get("git_ref", ""), base, cache, given["configuration"])
        except SourceError as error:
            raise AnsibleActionFail(f"The application's source cannot be packed: {error}") from None
        return {"changed": False, "id": name, "path": str(path)}
