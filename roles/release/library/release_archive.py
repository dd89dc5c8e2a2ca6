#!/usr/bin/python
"""Pack a release of the application into one archive on the control machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_archive
short_description: Pack a release of the application into one archive
description:
  - Runs on the control machine, packs a folder or a version of a git repository, names the release after its content.
  - The same content and configuration give the same name, on every machine and at any time.
options:
  source:
    description: A folder, or the URL of a git repository.
    type: str
    required: true
  version:
    description: The branch, tag or commit of a git repository.
    type: str
    default: ""
  base:
    description: The folder that a relative O(source) starts from.
    type: path
    required: true
  cache:
    description: A folder for the archives and for clones of git repositories.
    type: path
    required: true
  configuration:
    description: A hash of what the processes are started with. Its beginning is part of the name.
    type: str
    required: true
author: Seedbed
"""

EXAMPLES = r"""
- release_archive:
    source: app_src
    base: /home/me/seedbed
    cache: /home/me/seedbed/.releases
    configuration: "{{ app_environment | to_json | hash('sha256') }}"
"""

RETURN = r"""
id:
  description: The name of the release, of its content's hash or its commit, and of its configuration's hash.
  type: str
path:
  description: The archive.
  type: str
"""

# What no release needs, and what must not leave the control machine, wherever it lies in the project.
LEFT_OUT = {".git", ".venv", "venv", "__pycache__", "node_modules", ".env", ".pytest_cache", ".ruff_cache"}

# Where the settings in a message are edited.
FILE = "group_vars/all/app.yml"


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
        raise SourceError(f"{url} has no branch, tag or commit {version!r}: set app_version in {FILE}") from None


def project_files(folder: Path) -> list[Path]:
    """Every file of the project, relative to its folder and sorted: in a git work tree without what git ignores."""
    try:
        listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder).split("\0")
    except SourceError:
        return files_below(folder)
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
                f"app_source is a folder, which has no versions: empty app_version ({version!r}) in {FILE}"
            )
        content = archive_folder(folder, project_files(folder))
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


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "base": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "configuration": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    source, version, configuration = (module.params[name] for name in ("source", "version", "configuration"))
    try:
        name, path = pack(source, version, Path(module.params["base"]), Path(module.params["cache"]), configuration)
    except SourceError as error:
        module.fail_json(msg=f"The application's source cannot be packed: {error}")
    module.exit_json(changed=False, id=name, path=str(path))


if __name__ == "__main__":
    main()
