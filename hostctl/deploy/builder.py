"""What a project needs before its checks: its own build commands, credentials for them, and files beside the code.

Ansible writes them to /etc/APP/next, readable by root only: build.env, build_ssh_key, files.json. None of them stays in
the configuration of a release; the files are copied into its folder.
"""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ..application import CommandError, as_user
from ..host import Host
from ..settings import ReleaseError, Settings, read_environment, say
from .environment import (
    BUILD_SECONDS,
    SYSTEM_CERTIFICATES,
    UV,
    base_environment,
    builder,
    install_git,
    uv_environment,
    with_hint,
)
from .safe_files import replace_file

FILES, VARIABLES, SSH_KEY = "files.json", "build.env", "build_ssh_key"
ONLY_FOR_BUILDS = (FILES, VARIABLES, SSH_KEY)
# In memory, and cleared at boot.
RUN = Path("/run")
# Shorter values are not hidden in output: they would hide ordinary words.
SHORTEST_SECRET = 6
# Takes the place of a password for build commands.
NO_SECRET = "not-available-to-build-commands"


def place_files(host: Host, release: str) -> None:
    """Copy app_files into the release's folder, readable by the application and the build user only.

    Raises ReleaseError when the project has a folder of that name.
    """
    source = host.settings.next_configuration / FILES
    for name, content in (json.loads(source.read_text()) if source.exists() else {}).items():
        target = host.path(release) / name
        if target.is_dir():
            raise ReleaseError(f"app_files in group_vars/ENV/app.yml has {name}, which is a folder of the project.")
        make_parents(host, target)
        owner = pwd.getpwnam(builder(host)).pw_uid, grp.getgrnam(host.settings.name).gr_gid
        replace_file(target, host.path(release), base64.b64decode(content), 0o640, owner)


def make_parents(host: Host, target: Path) -> None:
    release = host.settings.releases
    for folder in reversed(target.parents):
        if folder.is_relative_to(release) and not folder.exists():
            folder.mkdir(0o750)
            ids = pwd.getpwnam(builder(host)).pw_uid, grp.getgrnam(host.settings.name).gr_gid
            os.chown(folder, *ids, follow_symlinks=False)
        elif folder.is_relative_to(release) and folder.is_symlink():
            raise ReleaseError(f"app_files: {folder} is a link; name the folder that it points to.")


@contextmanager
def credentials(host: Host) -> Iterator[dict[str, str]]:
    """Give the variables of app_build_environment and app_build_ssh_key; the errors raised inside show none of them."""
    folder = host.settings.next_configuration
    variables = read_environment(folder / VARIABLES) if (folder / VARIABLES).exists() else {}
    key = folder / SSH_KEY
    place = key_folder(host)
    remove_key(host)
    ssh = {}
    try:
        if key.exists() and key.stat().st_size:
            ssh = {"GIT_SSH_COMMAND": ssh_command(host, copy_key(host, key, place))}
        yield variables | ssh
    except ReleaseError as error:
        texts = [redacted(text, variables) for text in (str(error), error.output, error.cause)]
        raise ReleaseError(texts[0], output=texts[1], cause=texts[2]) from None
    finally:
        remove_key(host)


def key_folder(host: Host) -> Path:
    return RUN / f"{host.settings.name}-build-key"


def remove_key(host: Host) -> None:
    """Remove the copy of the key, which `kill -9` of a build leaves; earlier versions had it in the home folder."""
    for place in (key_folder(host), host.settings.home / "build-key"):
        shutil.rmtree(place, ignore_errors=True)


def copy_key(host: Host, key: Path, place: Path) -> Path:
    """Copy the key to where the build user can read it, and the application cannot."""
    install_git()
    place.mkdir(0o700)
    copy = place / "key"
    copy.touch(0o600)
    copy.write_text(key.read_text().rstrip() + "\n")
    for path in (copy, place):
        shutil.chown(path, builder(host))
    return copy


def ssh_command(host: Host, key: Path) -> str:
    """Return git's command for SSH: this key only, and each server's key is accepted when it is first seen."""
    known = f"/var/cache/{host.settings.name}/known_hosts"
    options = ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={known}")
    return shlex.join(
        ["ssh", "-F", "/dev/null", "-i", str(key), *(word for option in options for word in ("-o", option))]
    )


def redacted(text: str, secrets: dict[str, str]) -> str:
    """Return a text without the values of secrets, also line by line."""
    parts = {part for value in secrets.values() for part in (value, *value.splitlines())}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            text = text.replace(part, "***")
    return text


def run_build_commands(host: Host, release: str, secrets: dict[str, str]) -> None:
    """Run app_build_commands in the folder with manage.py, as the build user and without the application's group."""
    settings, path = host.settings, host.path(release)
    variables = command_environment(host, release) | secrets
    user, folder = builder(host), path / settings.project_dir
    for command in settings.build_commands:
        started, what = time.monotonic(), f"The build command `{command}`"
        shell = ["/bin/sh", "-euc", command]
        try:
            as_user(settings, shell, variables, folder, what, user, group=user, seconds=BUILD_SECONDS)
        except CommandError as error:
            raise with_hint(error, settings) from None
        say(redacted(f"{what} took {time.monotonic() - started:.1f} s.", secrets))
    if settings.build_commands:
        give_to_application(settings, path)


def command_environment(host: Host, release: str) -> dict[str, str]:
    """Return what build commands see: the environment of the release's processes without passwords, .venv and uv."""
    path, settings = host.path(release), host.settings
    variables = uv_environment(host, release)
    for file in (settings.configuration(release) / "app.env", path / "release.env"):
        variables |= without_passwords(read_environment(file), settings.connections) if file.exists() else {}
    return variables | base_environment(host) | {
        "PATH": f"{path}/.venv/bin:{Path(UV).parent}:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": f"{path}/.venv",
        "NODE_EXTRA_CA_CERTS": SYSTEM_CERTIFICATES,
    }  # fmt: skip


def without_passwords(variables: dict[str, str], connections: list[str]) -> dict[str, str]:
    """Return variables with a placeholder for the password of each URL, and for connections that are no URL."""
    return {name: without_password(value, name in connections) for name, value in variables.items()}


def without_password(value: str, is_secret: bool) -> str:
    try:
        url = urlsplit(value)
        password = url.password
    except ValueError:
        url, password = None, None
    if url and password:
        user, host = url.netloc.rpartition("@")[0].partition(":")[0], url.netloc.rpartition("@")[2]
        return url._replace(netloc=f"{user}:{NO_SECRET}@{host}").geturl()
    return NO_SECRET if is_secret and not (url and url.netloc) else value


def give_to_application(settings: Settings, path: Path) -> None:
    """Give what build commands made to the application's group, except what has another group on purpose (run)."""
    mine, theirs = grp.getgrnam(settings.name).gr_gid, grp.getgrnam(f"{settings.name}-build").gr_gid
    # By folder descriptors: a link that a command left cannot lead elsewhere.
    for _, folders, files, place in os.fwalk(path):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=place, follow_symlinks=False).st_gid == theirs:
                os.chown(name, -1, mine, dir_fd=place, follow_symlinks=False)
