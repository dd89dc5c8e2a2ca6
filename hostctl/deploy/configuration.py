"""The configuration of each release in /etc/APP/releases/ID: its environment, process definitions, settings, runner.

Ansible writes that of the next release to /etc/APP/next, which nothing runs from. A deployment copies it, so that
changed settings take effect with the release that they came with: not before, and not at all if it fails. A rollback
finds the release as it was.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..host import Host
from ..settings import ASSIGNMENT, RELEASE_FILE, ReleaseError, Settings, say
from .builder import ONLY_FOR_BUILDS

# Folders and files in /etc/APP that earlier versions of this program had for all releases.
EARLIER_FILES = ("app.env", "migrate.env", "gunicorn.conf.py", "supervisor", RELEASE_FILE)
# The end of the name of a kept configuration.
KEPT = ".kept"


def keep(host: Host, release: str) -> None:
    """Keep a copy of the configuration of a release that was built before, until `restore` or `forget_kept`.

    A deployment completes a configuration after it has copied it (queues, generated settings, health page), so a failed
    one would leave a release that a rollback starts with half of it.
    """
    own = host.settings.configurations / release
    kept = own.with_name(f"{release}{KEPT}")
    # One that a killed deployment has kept is the complete one.
    if own.exists() and not kept.exists():
        copy(own, kept)


def restore(host: Host, release: str) -> None:
    """Undo: give a release the configuration back that it had before, if there is one."""
    own = host.settings.configurations / release
    kept = own.with_name(f"{release}{KEPT}")
    if kept.exists():
        shutil.rmtree(own, ignore_errors=True)
        kept.rename(own)


def forget_kept(host: Host) -> None:
    """Remove the copies that `keep` has made: their releases are live, or were restored."""
    for kept in host.settings.configurations.glob(f"*{KEPT}"):
        shutil.rmtree(kept)


def configure(host: Host, release: str) -> None:
    """Give a release the configuration that Ansible wrote for the next one.

    Raises ReleaseError when there is none, or when it lacks a process.
    """
    settings = host.settings
    if not settings.next_configuration.exists():
        raise ReleaseError(f"{settings.next_configuration} is missing: run site.yml, which writes it.")
    own = settings.configurations / release
    copy(settings.next_configuration, own)
    for name in ONLY_FOR_BUILDS:
        (own / name).unlink(missing_ok=True)
    copy_runner(own / "lib/hostctl")
    settings.record(release)
    require_units(host, release)


def copy_runner(target: Path) -> None:
    """Copy what runs in the application's interpreter, so that an upgrade of this program does not change a release.

    It is compiled already, for this host's Python, and stays so: copies keep the times of the sources.
    """
    package = Path(__file__).parents[1]
    for file in (package / "__init__.py", *package.glob("__pycache__/__init__.*.pyc")):
        copied = target / file.relative_to(package)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copied)
    shutil.copytree(package / "in_app", target / "in_app")


def require_units(host: Host, release: str) -> None:
    """Raise ReleaseError unless each process of a release has its definition on this host."""
    if missing := host.manager.missing(release):
        folder = host.settings.configuration(release)
        raise ReleaseError(f"release {release} has no definition of {', '.join(missing)} in {folder}: run site.yml.")


def copy(source: Path, target: Path) -> None:
    """Replace a folder by a copy of another one, with owners and modes."""
    new = target.with_name(f"{target.name}.new")
    for folder in (new, target):
        if folder.exists():
            shutil.rmtree(folder)
    target.parent.mkdir(mode=0o751, exist_ok=True)
    subprocess.run(["cp", "--archive", str(source), str(new)], check=True)
    new.rename(target)


# --- Passwords, and where the data is


def keep_connections(settings: Settings, release: str, live: str) -> None:
    """Rollback: give a release the passwords and addresses of the live one. Data and passwords do not roll back.

    Variables that only one of the two has stay as they are.
    """
    old, new = (settings.configuration(one) for one in (release, live))
    names = settings.of(live).connections
    if not names or old == new:
        return
    today = {found[1]: found[0] for found in ASSIGNMENT.finditer((new / "app.env").read_text()) if found[1] in names}
    before = (old / "app.env").read_text()
    after = ASSIGNMENT.sub(lambda found: today.get(found[1], found[0]), before)
    if after != before:
        replace_text(old / "app.env", after)
        say(f"Release {release} gets today's {', '.join(sorted(today))}.")
    if (new / "migrate.env").exists() and (old / "migrate.env").exists():
        replace_text(old / "migrate.env", (new / "migrate.env").read_text())


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text in one step, keeping owner and mode."""
    new = path.with_name(f"{path.name}.new")
    subprocess.run(["cp", "--archive", str(path), str(new)], check=True)
    new.write_text(text)
    new.rename(path)


# --- Releases that an earlier version of this program built


def adopt_earlier(host: Host, release: str) -> None:
    """Give releases without a configuration of their own that of a release that is live now, to roll back to them."""
    own = host.settings.configurations / release
    if not (host.settings.etc / RELEASE_FILE).exists() or not own.exists():
        return
    for other in host.built():
        if not (host.settings.configurations / other).exists():
            copy(own, host.settings.configurations / other)


def remove_earlier(host: Host) -> None:
    """Remove the files that all releases shared, once no release uses them."""
    settings = host.settings
    if not (settings.etc / RELEASE_FILE).exists():
        return
    if any(settings.configuration(release) == settings.etc for release in host.built()):
        return
    paths = [*(settings.etc / name for name in EARLIER_FILES), settings.library / "run_with_environment"]
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
