"""Build a release: its folder and its Python environment; check the disk space for it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..application import as_user
from ..host import Host
from ..settings import ReleaseError, Settings, say
from .configuration import configure
from .context import Context

if TYPE_CHECKING:
    from .deployment import Deployment

UV = "/opt/uv/bin/uv"
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Holds the hash of what a release's environment was made from.
MADE_FROM = "environment.sha256"
# A requirement that is a folder or a file, in a requirements file or in uv.lock (where "." is the project, left out).
LOCAL = re.compile(r"""^\s*(-e|--editable|[./])|file:|(editable|directory|path) = "(?!\."\s)""", re.M)
# Assumed size of a first release.
FIRST_BYTES, FIRST_FILES = 300 * 2**20, 20_000
# The program that writes a file system to disk, and the seconds that it gets after the other steps.
SYNC, SYNC_SECONDS = "sync", 60


def build(deployment: Deployment) -> None:
    """Unpack the archive, copy the configuration and make the environment; or only configure a release built before."""
    host, release = deployment.host, deployment.release
    if release in host.built():
        configure(host, release)
        say(f"Release {release} is already built.")
        return
    if deployment.request.archive is None:
        raise ReleaseError("it is not built on this host, and there is no archive to build it from.")
    unpack(host, release, deployment.request.archive)
    configure(host, release)
    make_environment(host, release)
    say(f"Release {release} built in {host.path(release)}.")


def remove_release(context: Context) -> None:
    """Undo: remove the folder, unless the release was there before."""
    if not context.state.get("was_built"):
        context.application.close()
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
    (path / "release.env").write_text(f'RELEASE_ID="{release}"\nSTATIC_MANIFEST_ROOT="{path}/run"\n')


def make_environment(host: Host, release: str) -> None:
    """Make .venv from the requirements file or uv.lock, as the build user, and compile the sources."""
    path, settings = host.path(release), host.settings
    requirements = path / settings.requirements
    if not requirements.is_file():
        raise ReleaseError(
            f"the project has no {settings.requirements}. Set app_requirements in group_vars/ENV/app.yml to its "
            "requirements file or uv.lock."
        )
    environment = base_environment(host) | {
        "UV_CACHE_DIR": f"/var/cache/{settings.name}/uv",
        "UV_PYTHON_INSTALL_DIR": f"/var/cache/{settings.name}/python",
        "UV_PROJECT_ENVIRONMENT": f"{path}/.venv",
        "UV_SYSTEM_CERTS": "true",
        "SSL_CERT_FILE": SYSTEM_CERTIFICATES,
        "UV_NO_PROGRESS": "true",
    }
    venv = path / ".venv"

    def run(command: list[str], folder: Path, what: str) -> None:
        as_user(settings, command, environment, folder, what, builder(host))

    made_from = fingerprint(settings, requirements)
    twin = find_twin(host, made_from)
    if twin:
        # The same packages: hard links take a tenth of the time, and no space.
        run(["cp", "--archive", "--link", str(twin), str(venv)], path, "Copying .venv")
    else:
        python = ["--python", settings.python]
        if settings.python == "python3":
            python = ["--python", "/usr/bin/python3", "--no-python-downloads"]
        run([UV, "venv", "--quiet", "--relocatable", *python, str(venv)], path, "Making .venv")
        if requirements.name == "uv.lock":
            install = ["sync", "--frozen", "--no-dev", "--no-install-project", *python]
        else:
            install = ["pip", "install", "--python", f"{venv}/bin/python", "--requirements", str(requirements)]
        run([UV, *install, "--compile-bytecode"], requirements.parent, f"Installing {settings.requirements}")
    (path / MADE_FROM).write_text(made_from)
    pools = {worker.pool for worker in settings.workers}
    needed = {"gunicorn": settings.web, "celery": settings.workers or settings.beat}
    missing = [program for program, wanted in needed.items() if wanted and not (venv / "bin" / program).exists()]
    missing += ["gevent"] if "gevent" in pools and not list(venv.glob("lib/python3*/site-packages/gevent")) else []
    for package in missing:
        raise ReleaseError(f"{settings.requirements} does not install {package}: add a pinned {package}.")
    run([f"{venv}/bin/python", "-m", "compileall", "-q", "-x", "/[.]venv/", "."], path, "Compiling the application")


def fingerprint(settings: Settings, requirements: Path) -> str:
    """Hash everything that decides the content of .venv; "" when the project's own files are installed into it."""
    texts, seen, waiting = [], set(), [requirements, requirements.with_name("pyproject.toml")]
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        texts.append(file.read_text())
        waiting += [
            file.parent / name
            for name in re.findall(r"^\s*-(?:r|c|-requirement|-constraint)[ =]*(\S+)", texts[-1], re.M)
        ]
    if any(LOCAL.search(text) for text in texts):
        return ""
    return hashlib.sha256("\0".join([settings.python, sys.version, requirements.name, *texts]).encode()).hexdigest()


def find_twin(host: Host, made_from: str) -> Path | None:
    """Return the environment of a release that was made from the same requirements."""
    for release in host.built() if made_from else []:
        mark = host.path(release) / MADE_FROM
        if mark.is_file() and mark.read_text() == made_from:
            return host.path(release) / ".venv"
    return None


def builder(host: Host) -> str:
    """Return the build user. It owns the releases, so that the application cannot change its own code."""
    return f"{host.settings.name}-build"


def base_environment(host: Host) -> dict[str, str]:
    return {"HOME": f"/var/cache/{host.settings.name}", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def make_folder(path: Path, mode: int, user: str, group: str) -> None:
    path.mkdir(exist_ok=True)
    shutil.chown(path, user, group)
    path.chmod(mode)


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
