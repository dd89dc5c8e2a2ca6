"""Checks before anything changes for visitors: the host, the application, and its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import ReleaseError, say
from . import archive, build
from .configuration import require_units

if TYPE_CHECKING:
    from .deployment import Deployment


def preflight(deployment: Deployment) -> None:
    """Check the disk space, that a release to roll back to exists, and that no second beat runs."""
    host, release, settings = deployment.host, deployment.release, deployment.settings
    if deployment.request.action == "rollback" and release not in host.built():
        available = ", ".join(host.built()) or "none"
        raise ReleaseError(f"release {release} is not on this host; available: {available}.")
    if deployment.pages_first:
        require_units(host, release)
    if release not in host.built():
        packed = deployment.request.archive
        build.check_disk_space(host, unpacked=archive.unpacked_size(packed) if packed else 0)
    beats = beat_processes(settings.name)
    if len(beats) > 1:
        raise ReleaseError(
            f"{len(beats)} beat processes run on this host, so every periodic task is sent {len(beats)} times: "
            f"processes {', '.join(beats)}. Only {settings.name}-beat may run: kill the others, then run again."
        )
    if beats and not settings.beat and not deployment.manager.beat_runs():
        raise ReleaseError(
            "a beat process runs on this host, which is not the scheduler, so every periodic task is sent twice: "
            f"process {beats[0]}. Kill it, then run again."
        )


def beat_processes(user: str) -> list[str]:
    """Return the process IDs of every Celery beat that a user runs."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            owner = folder.owner()
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue
        if owner == user and "beat" in words and any("celery" in Path(word).name for word in words[:3]):
            found.append(folder.name)
    return sorted(found)


def check(deployment: Deployment) -> None:
    """Run the application's own checks, collect its static files, and compare its migrations with the database."""
    settings = deployment.settings
    beat = bool(settings.celery_app) and settings.beat
    found = deployment.application.ask("check", settings.wsgi_app, settings.celery_app, beat, seconds=300)
    for warning in found.get("warnings", []):
        deployment.warn(warning)
    for page in unlimited(found.get("login_pages", []), settings.login_paths) if settings.web else []:
        deployment.warn(
            f"Attempts to log in at {page} are not limited: add it to app_login_paths in group_vars/ENV/app.yml."
        )
    deployment.migrations = deployment.application.ask("migrations")
    refuse_newer_schema(deployment, deployment.migrations)
    if not deployment.state["was_built"]:
        write_facts(deployment, found)
    # Also for a release that was built before: a killed run may not have got this far.
    release = deployment.release
    deployment.sync = build.start_sync(deployment.host.path(release), settings.configuration(release))
    say("Application checks passed, static files collected.")


def unlimited(pages: list[str], limited: list[str]) -> list[str]:
    """Return the login pages that no pattern of app_login_paths covers; none where the list is empty on purpose."""
    patterns = [path.rstrip("/") for path in limited]
    ends = tuple(path[1:] for path in patterns if path.startswith("*"))
    plain = [page.rstrip("/") for page in pages]
    return [
        page
        for page, path in zip(pages, plain, strict=True)
        if limited and path not in patterns and not path.endswith(ends)
    ]


def write_facts(deployment: Deployment, found: dict[str, Any]) -> None:
    """Write build.json, which marks the release as completely built."""
    facts = {"id": deployment.release, "versions": found["versions"], "known": deployment.migrations["known"]}
    facts["workers"] = {worker.name: worker.queues for worker in deployment.settings.workers}
    # Such workers run as plain `celery worker` and leave no summary of their tasks.
    facts["plain_workers"] = bool(found.get("warnings"))
    facts["key_prefix"] = found.get("key_prefix", "")
    mark = deployment.host.path(deployment.release) / "build.json"
    mark.with_suffix(".new").write_text(json.dumps(facts | build.measure(mark.parent)))
    mark.with_suffix(".new").rename(mark)


def check_schema(deployment: Deployment) -> None:
    """Rollback: compare the schema. `start` asked in the background, since both take a second or two."""
    refuse_newer_schema(deployment, deployment.schema_check.result())


def refuse_newer_schema(deployment: Deployment, state: dict[str, Any]) -> None:
    """Raise ReleaseError when the database has migrations that the release lacks, unless forced."""
    if not state["unknown"]:
        return
    newer = f"the database is ahead of release {deployment.release}: it has applied {', '.join(state['unknown'])}"
    if not deployment.request.force:
        raise ReleaseError(
            f"{newer}, which this release does not have. Deploy a release that has them or, if the older code can work "
            "with the newer tables, run again with -e release_force=true."
        )
    deployment.warn(f"{newer}. Continuing because of release_force.")
