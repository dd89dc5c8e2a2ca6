"""Build a release: its folder and its Python environment; check the disk space for it."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ..application import as_user
from ..host import Host
from ..settings import ReleaseError, say
from .builder import credentials, place_files, run_build_commands
from .configuration import configure, keep, restore
from .context import Context
from .environment import base_environment, builder, make_environment
from .safe_files import open_folder, replace_file

if TYPE_CHECKING:
    from .deployment import Deployment

# Assumed size of a first release.
FIRST_BYTES, FIRST_FILES = 300 * 2**20, 20_000
# The program that writes a file system to disk, and the seconds that it gets after the other steps.
SYNC, SYNC_SECONDS = "sync", 60


def build(deployment: Deployment) -> None:
    """Make a release: its files, configuration, environment and build commands; or only configure one built before."""
    host, release = deployment.host, deployment.release
    if release in host.built():
        keep(host, release)
        configure(host, release)
        say(f"Release {release} is already built.")
        return
    if deployment.request.archive is None:
        raise ReleaseError("it is not built on this host, and there is no archive to build it from.")
    unpack(host, release, deployment.request.archive)
    configure(host, release)
    place_files(host, release)
    with credentials(host) as secrets:
        make_environment(host, release, secrets)
        run_build_commands(host, release, secrets)
    compile_sources(host, release)
    say(f"Release {release} built in {host.path(release)}.")


def remove_release(context: Context) -> None:
    """Undo: remove the folder; a release that was there before gets its configuration back."""
    context.application.close()
    if context.state.get("was_built"):
        restore(context.host, context.release)
    else:
        context.host.remove(context.release)


def check_disk_space(host: Host, *, stored: int = 0, unpacked: int = 0) -> None:
    """Raise ReleaseError unless another release fits, in bytes and in files.

    It is assumed to need twice the current release, or its own sources (`unpacked` bytes) and the current release;
    `stored` bytes are those of an archive that comes on top.
    """
    facts = host.facts(host.current_release())
    size, files = facts.get("bytes", FIRST_BYTES // 2), 2 * facts.get("files", FIRST_FILES // 2)
    needed = stored + size + max(size, unpacked)
    place = os.statvfs(host.settings.home)
    free = place.f_bavail * place.f_frsize
    if free < needed:
        what = "twice the current release is" if not stored and unpacked <= size else "its archive and its files need"
        missing = f"{free // 2**20} MiB are free, and {what} {needed // 2**20} MiB"
    # A file system without a table of inodes (btrfs) reports 0.
    elif place.f_files and place.f_favail < files:
        missing = f"{place.f_favail} more files (inodes) fit, and twice the current release has {files}"
    else:
        return
    raise ReleaseError(
        f"{host.settings.home} has no space for another release: {missing}. Free some (`du -xh --max-depth=3 / | "
        "sort -h | tail`), or keep fewer releases (app_keep_releases in group_vars/ENV/app.yml)."
    )


def measure(folder: Path) -> dict[str, int]:
    """Return bytes on disk and number of files of a folder; hard links count in full."""
    size = files = 0
    for place, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        size += sum((Path(place) / name).lstat().st_blocks for name in names) * 512
    return {"bytes": size, "files": files}


def unpack(host: Host, release: str, archive: Path) -> None:
    """Make the release's folder from its archive."""
    path, settings = host.path(release), host.settings
    host.remove(release)
    make_folder(path, 0o751, builder(host), settings.name)
    command = ["tar", "--extract", "--gzip", f"--file={archive}"]
    as_user(settings, command, base_environment(host), path, "Unpacking the archive", builder(host))
    make_folder(path / "run", 0o2750, settings.name, "www-data")
    make_folder(path / ".static", 0o755, builder(host), settings.name)
    variables = {"RELEASE_ID": release, "STATIC_ROOT": f"{path}/.static", "STATIC_MANIFEST_ROOT": f"{path}/run"}
    replace_file(path / "release.env", path, "".join(f'{name}="{value}"\n' for name, value in variables.items()))


def compile_sources(host: Host, release: str) -> None:
    """Compile the application; sources of another language's packages may be for another Python."""
    command = [
        f"{host.path(release)}/.venv/bin/python",
        "-m",
        "compileall",
        "-q",
        "-x",
        "/([.]venv|node_modules)/",
        ".",
    ]
    variables, user = base_environment(host), builder(host)
    as_user(host.settings, command, variables, host.path(release), "Compiling the application", user)


def make_folder(path: Path, mode: int, user: str, group: str) -> None:
    """Make a folder, or set owner and mode of one. Raises ReleaseError where a link of the project has its name."""
    with open_folder(path, path.parent, make=True) as folder:
        os.fchown(folder, pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
        os.fchmod(folder, mode)


def start_sync(*folders: Path) -> subprocess.Popen[bytes] | None:
    """Start to write the file systems of folders to disk; None when that fails."""
    try:
        return subprocess.Popen([SYNC, "--file-system", *map(str, folders)], stdin=subprocess.DEVNULL)
    except OSError:
        return None


def is_synced(sync: subprocess.Popen[bytes]) -> bool:
    """Wait a minute at most for `start_sync`; return whether it succeeded."""
    try:
        return sync.wait(SYNC_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
