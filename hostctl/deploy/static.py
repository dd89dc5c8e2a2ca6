"""The static files of each release: collected into its own folder, and served by the path of their URL.

releases/ID/.static         the files, and the manifest of their names. STATIC_ROOT in the release's environment is this
                            folder; where the project has another one in the release, that becomes a link to it
releases/ID/.public/static  a link to it, named after the path of STATIC_URL: nginx serves current/.public
releases/ID/.public-media/uploads  a link to shared/media, named after MEDIA_URL unless that is /media/; nginx serves it
shared/assets/static        hard links to the files of all releases: pages of another release ask for them
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..application import as_user
from ..host import Host
from ..in_app.environment import is_temporary
from ..settings import ReleaseError, say
from . import build
from .context import Context
from .safe_files import open_folder

if TYPE_CHECKING:
    from .deployment import Deployment

FILES, PUBLIC, MEDIA = ".static", ".public", ".public-media"
# Paths that nginx serves from one place for all releases, beside the status page.
TAKEN = ("/media/", "/flower/", "/_private/")
# A folder of files that the project's STATIC_ROOT had before it became a link.
SHIPPED = ".shipped"
# How long assets stay when no release on the host has them any more.
KEEP_SECONDS = 30 * 24 * 3600
# Where every process under systemd can write, in spite of ProtectSystem=strict.
WRITABLE = ("/tmp", "/var/tmp", "/dev/shm")
# Where programs of Supervisor cannot write: its service has ProtectSystem=full and ProtectHome=yes.
SUPERVISOR_PROTECTS = ("/usr", "/boot", "/efi", "/etc", "/home", "/root", "/run/user")


def collect(deployment: Deployment) -> None:
    """Collect the release's static files into its own folder, and link them where nginx finds them.

    Raises ReleaseError where the project collects them into a folder outside of the release, or has problems.
    """
    host, release = deployment.host, deployment.release
    folder, public = host.path(release) / FILES, host.path(release) / PUBLIC
    if deployment.state["was_built"] and public.exists():
        # A release does not change, and it may be running.
        return
    found = deployment.application.ask("static_files")
    if problems := found["problems"]:
        raise ReleaseError(" ".join(problems))
    if found["missing"]:
        public.mkdir(exist_ok=True)
        say(f"No static files are collected: {found['missing']}.")
        return
    if absent := found.get("absent"):
        deployment.warn(
            f"STATICFILES_DIRS has {', '.join(absent)}, which the release does not have: no file of it is served. If "
            "something builds it, write that into app_build_commands in group_vars/ENV/app.yml; else remove it."
        )
    for place in found["folders"]:
        redirect(deployment, Path(place))
    name = deployment.settings.name
    give(folder, name, name)
    answer = deployment.application.ask("collect_static", seconds=900)
    give(folder, build.builder(host), name)
    open_to_all(folder)
    link(public / found["path"], folder, host.path(release))
    publish(host, release)
    files = sum(len(names) for _, _, names in os.walk(folder))
    where = "" if found["folders"] else " to the project's storage"
    say(f"Static files collected{where}: {files}{', compressed offline' if answer['compressed'] else ''}.")


def link_media(deployment: Deployment) -> None:
    """Link the folder of uploads where nginx finds it by the path of MEDIA_URL; /media/ needs no link.

    Raises ReleaseError for a path that nginx would not look up there, and for a folder that loses uploads.
    """
    host, release = deployment.host, deployment.host.path(deployment.release)
    found = deployment.application.ask("media_files")
    check_media(deployment, found)
    check_written(deployment, found)
    path, folder = found["path"], Path(os.path.normpath(found["folder"]))
    # Uploads elsewhere are the project's to serve.
    if path in ("", "media") or not folder.is_relative_to(host.settings.home / "shared/media"):
        return
    taken = TAKEN + ((status,) if (status := deployment.settings.status_path) else ())
    if f"/{path}/".startswith(taken) or "/." in f"/{path}":
        raise ReleaseError(
            f"nginx serves no uploads at /{path}/, which is MEDIA_URL. Write this into the settings: "
            'MEDIA_URL = "/media/"'
        )
    link(release / MEDIA / path, folder, release)


def check_media(deployment: Deployment, found: dict[str, Any]) -> None:
    """Raise ReleaseError for a MEDIA_ROOT that loses uploads; warn of fields that store them in such a folder."""
    if found["folder"] and (what := loss(deployment, found["folder"])):
        raise ReleaseError(
            f"uploads would get lost: MEDIA_ROOT is {found['folder']}, {what}. Write into the settings, with the "
            'import of os: MEDIA_ROOT = os.environ["MEDIA_ROOT"], the folder that all releases share. A folder outside '
            "of the release may also be added to read_write_paths of app_sandbox in group_vars/ENV/app.yml."
        )
    for folder, field in found.get("fields", {}).items():
        if what := loss(deployment, folder):
            deployment.warn(
                f"Uploads of {field} would get lost: their folder is {folder}, {what}. Write into the settings, with "
                'the import of os: MEDIA_ROOT = os.environ["MEDIA_ROOT"] and MEDIA_URL = "/media/"; or give the '
                "field's storage a folder inside of MEDIA_ROOT, or of PRIVATE_ROOT."
            )


def check_written(deployment: Deployment, found: dict[str, Any]) -> None:
    """Warn of settings that have the processes write where they cannot: requests that do so would answer 500."""
    for name, folder in found.get("written", {}).items():
        if what := unwritable(deployment, Path(folder).resolve()):
            deployment.warn(
                f"{name} is {folder}, {what}: what writes there fails. Write a folder below "
                'os.environ["PRIVATE_ROOT"] into the settings, which all releases share, or one below /tmp for files '
                "that a restart may remove. A folder outside of the release may also be added to read_write_paths of "
                "app_sandbox in group_vars/ENV/app.yml."
            )


def loss(deployment: Deployment, folder: str) -> str:
    """Return what is wrong with a folder for uploads; "" if it keeps what the processes write."""
    place = Path(folder).resolve()
    if what := unwritable(deployment, place):
        return what
    temporary = is_temporary(str(place)) and not is_shared(deployment, place)
    return "whose files are lost at a restart" if temporary else ""


def unwritable(deployment: Deployment, place: Path) -> str:
    """Return why the processes cannot write to a folder, as a relative clause; "" if they can."""
    if is_shared(deployment, place):
        return ""
    if place.is_relative_to(deployment.host.path(deployment.release).resolve()):
        return "inside of the release, which its processes cannot write to and the next release does not have"
    if deployment.settings.manager == "systemd":
        writable = any(place.is_relative_to(folder) for folder in WRITABLE)
    else:
        writable = not any(place.is_relative_to(folder) for folder in SUPERVISOR_PROTECTS)
    return "" if writable else "which the processes cannot write to"


def is_shared(deployment: Deployment, place: Path) -> bool:
    """Return whether a folder is one that all releases may write to."""
    settings = deployment.settings
    shared = (settings.home / "shared" / name for name in ("media", "mail", "private"))
    return any(place.is_relative_to(kept.resolve()) for kept in (*shared, *map(Path, settings.read_write_paths)))


def redirect(context: Context, root: Path) -> None:
    """Make a folder that the project collects into a link to the release's own; files in it come along.

    Raises ReleaseError unless it is a folder of its own inside of the release.
    """
    host, release = context.host, context.host.path(context.release).resolve()
    folder = release / FILES
    # The last part may be the link that this function has made, in a copy of .venv.
    place = root.parent.resolve() / root.name
    if place == folder:
        return
    if root.resolve() != folder:
        place = root.resolve()
    if not place.is_relative_to(release) or folder in (place, *place.parents) or place in folder.parents:
        raise ReleaseError(
            f"the project collects its static files into {root}, which is no folder of its own inside of the release: "
            "releases would overwrite each other's files. Write this into the settings, with the import of os: "
            'STATIC_ROOT = os.environ.get("STATIC_ROOT", "staticfiles")'
        )

    def run(*command: str) -> None:
        environment, user = build.base_environment(host), build.builder(host)
        as_user(context.settings, [*command], environment, release, f"Preparing {root}", user)

    shipped = place.with_name(place.name + SHIPPED)
    if place.is_dir() and not place.is_symlink():
        with open_folder(place.parent, release) as parent:
            os.rename(place.name, shipped.name, src_dir_fd=parent, dst_dir_fd=parent)
    if shipped.is_dir():
        run("cp", "--archive", f"{shipped}/.", f"{folder}/")
    run("mkdir", "--parents", str(place.parent))
    link(place, folder, release)


def link(place: Path, target: Path, release: Path) -> None:
    """Make a relative link in a release's folder, which also holds in a copy of .venv in another release.

    It belongs to the owner of its folder: only the owner of a link may make hard links to it, as the copy does.
    """
    with open_folder(place.parent, release, make=True) as parent:
        if not place.is_symlink():
            os.symlink(os.path.relpath(target, place.parent), place.name, dir_fd=parent)
            owner = os.fstat(parent)
            os.chown(place.name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


# The application and the build user can write to the folder: by descriptors, no link in it leads root elsewhere.


def give(folder: Path, user: str, group: str) -> None:
    """Give a folder and everything in it to a user and a group."""
    ids = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    for _, folders, names, place in os.fwalk(folder):
        os.fchown(place, *ids)
        for name in [*folders, *names]:
            os.chown(name, *ids, dir_fd=place, follow_symlinks=False)


def open_to_all(folder: Path) -> None:
    """Make a folder readable for nginx and the application, whatever the project sets (FILE_UPLOAD_PERMISSIONS)."""
    for _, _, names, place in os.fwalk(folder):
        os.fchmod(place, 0o755)
        for name in names:
            make_readable(name, place)


def make_readable(name: str, place: int) -> None:
    """Set the mode of a regular file in the folder with a descriptor."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError as error:
        # A link, a socket, or it is gone.
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            raise
        return
    try:
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.fchmod(file, 0o644)
    finally:
        os.close(file)


# --- Assets that all releases share


def assets(host: Host) -> Path:
    return host.settings.home / "shared/assets"


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file in a folder, with its path from there; names that begin with a dot are not served."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(place, name) for name in names if not name.startswith(".")):
            yield str(file.relative_to(folder)), file


def publish(host: Host, release: str) -> None:
    """Link the files of a release into shared/assets, except where a name is taken: old pages keep what they know.

    A link to a file outside of the release is left out, and so is what is no file.
    """
    release_folder = host.path(release).resolve()
    for name, file in files(host.path(release) / PUBLIC):
        asset = assets(host) / name
        if not file.resolve().is_relative_to(release_folder) or not file.is_file():
            continue
        # Where another release has a file, this one may have a folder.
        with suppress(FileExistsError, NotADirectoryError):
            asset.parent.mkdir(parents=True, exist_ok=True)
            if not asset.exists():
                hard_link(file.resolve(), asset)


def hard_link(file: Path, asset: Path) -> None:
    try:
        asset.hardlink_to(file)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK):
            raise
        # Another file system, or too many links.
        shutil.copy2(file, asset)


def withdraw(context: Context) -> None:
    """Undo: remove from shared/assets what this release has brought there: what is the same file as its own."""
    if context.state.get("was_built"):
        return
    for name, file in files(context.host.path(context.release) / PUBLIC):
        asset = assets(context.host) / name
        if asset.exists() and asset.samefile(file):
            asset.unlink()
    remove_empty_folders(assets(context.host))


def prune(host: Host) -> None:
    """Remove assets that no release on the host has, a month after the last one went."""
    releases = [host.path(release) / PUBLIC for release in host.built()]
    if not all(public.exists() for public in releases):
        # A release of an earlier version has all its files in shared/assets.
        return
    wanted = {name for public in releases for name, _ in files(public)}
    for name, asset in list(files(assets(host))):
        # When a release is removed, its files lose a hard link: this sets the time of change of those that stay here.
        if name not in wanted and time.time() - asset.stat().st_ctime > KEEP_SECONDS:
            asset.unlink()
    remove_empty_folders(assets(host))


def remove_empty_folders(folder: Path) -> None:
    for place, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            with suppress(OSError):
                Path(place, name).rmdir()
