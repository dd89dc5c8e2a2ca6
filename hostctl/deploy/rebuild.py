"""Make the virtual environment of the live release again, when an upgrade of Debian has removed its Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from ..application import Application
from ..host import FORMER_VENV, VENV, Host
from ..settings import ReleaseError, say
from .build import compile_sources
from .builder import credentials, run_build_commands
from .environment import make_environment
from .record import Record
from .safe_files import replace_file


def rebuild(host: Host, release: str) -> None:
    """Make .venv of a release again, with its build commands, and stop the processes that use the former one.

    Before these stop, the application passes its own checks on the new Python. (They may still run, until they start
    a process or import a module.) Raises ReleaseError; the former .venv is then back. A kill at any point leaves
    FORMER_VENV, by which the next call begins again.
    """
    say(f"The Python of release {release} is gone: making its {VENV} again.")
    venv, former = host.path(release) / VENV, host.path(release) / FORMER_VENV
    if former.exists():
        shutil.rmtree(venv, ignore_errors=True)
    else:
        move(venv, former)
    try:
        with credentials(host) as secrets:
            make_environment(host, release, secrets)
            run_build_commands(host, release, secrets)
        compile_sources(host, release)
        record_versions(host, release)
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        move(former, venv)
        raise
    host.manager.stop(host.running_units(release))
    host.manager.stop_beat()
    shutil.rmtree(former)


def move(source: Path, target: Path) -> None:
    """Rename a folder; a file system in layers (overlayfs) refuses that, and mv copies it then."""
    subprocess.run(["mv", "--no-target-directory", str(source), str(target)], check=True)


def record_versions(host: Host, release: str) -> None:
    """Run the application's checks, and record the versions that it runs with now. Raises ReleaseError."""
    application = Application(host, release)
    try:
        versions = application.check()["versions"]
    finally:
        application.close()
    mark = host.path(release) / "build.json"
    built = mark.stat().st_mtime
    replace_file(mark.with_suffix(".new"), mark.parent, json.dumps(host.facts(release) | {"versions": versions}))
    # The order of releases is that of their builds.
    os.utime(mark.with_suffix(".new"), (built, built))
    mark.with_suffix(".new").rename(mark)


def rebuild_live(host: Host) -> str:
    """Rebuild the live release while no deployment runs; return a line that says so. Raises ReleaseError."""
    release, record = host.current_release(), Record(host.settings)
    record.hold()
    try:
        rebuild(host, release)
    except ReleaseError as error:
        reason = f"Release {release} is live, but its Python is gone, and its {VENV} cannot be made again: {error}"
        raise ReleaseError(reason, output=error.output, cause=error.cause) from None
    finally:
        record.release()
    return f"The Python of release {release} was gone with an upgrade of Debian: its {VENV} was made again."
