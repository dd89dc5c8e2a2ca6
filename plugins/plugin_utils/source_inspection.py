"""Inspect the project that app_source names: a folder, or a git repository that is fetched first."""

from __future__ import annotations

import os
import subprocess
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from action.release_archive import SourceError, fetch

from .inspection import Report, inspect_project
from .preflight.application import is_git_url

# Settings that are part of the question, whether the user has set them or not: where the project's parts are.
IDENTITY = {"app_project_dir", "app_settings_module", "app_wsgi_app", "app_celery_app", "app_requirements"}


class NotInspectedError(Exception):
    """The project cannot be inspected. `setting` names the one to correct, if the user can."""

    def __init__(self, reason: str, setting: str = "") -> None:
        super().__init__(reason)
        self.setting = setting


def inspect_source(base: Path, cache: Path, values: Mapping[str, Any], given: Mapping[str, Any]) -> Report:
    """Inspect the project. `values` are all settings, `given` those that the inspection is to respect.

    Raises NotInspectedError.
    """
    source, git_ref = values.get("app_source"), values.get("app_git_ref", "")
    if not isinstance(source, str) or not source or not isinstance(git_ref, str):
        raise NotInspectedError("app_source is not valid.")
    with project_tree(source, git_ref, base, cache) as folder:
        try:
            return inspect_project(folder, given)
        except Exception as error:
            # An error of the inspection is not one of the project: it must not keep a release from being deployed.
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
            raise NotInspectedError(f"the inspection itself failed, please report it: {reason}") from error


@contextmanager
def project_tree(source: str, git_ref: str, base: Path, cache: Path) -> Iterator[Path]:
    """Give the project's folder; that of a git URL holds the commit of `git_ref`, and is removed at the end."""
    if not is_git_url(source):
        folder = base / source
        if not folder.is_dir():
            raise NotInspectedError(f"there is no folder {folder}.")
        yield folder
        return
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        clone, commit = fetch(source, git_ref, cache)
    except SourceError as error:
        raise NotInspectedError(f"cannot be fetched: {error}", "app_source") from None
    with tempfile.TemporaryDirectory(prefix="seedbed-inspect-") as folder:
        command = ["git", f"--work-tree={folder}", "checkout", "--quiet", "--force", commit, "--", "."]
        # An index of its own, since a mirror has none.
        environment = os.environ | {"GIT_INDEX_FILE": f"{folder}/.git-index", "GIT_LFS_SKIP_SMUDGE": "1"}
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotInspectedError(f"git checkout {commit} failed: {done.stderr.strip()}")
        Path(folder, ".git-index").unlink(missing_ok=True)
        yield Path(folder)
