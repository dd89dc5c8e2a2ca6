"""Checks before anything changes for visitors: the host, the application, and its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import ReleaseError, say
from . import archive, build, overlay, queues, static
from .configuration import require_units
from .rebuild import rebuild
from .safe_files import replace_file

if TYPE_CHECKING:
    from .deployment import Deployment


def preflight(deployment: Deployment) -> None:
    """Check the disk space, that a release to roll back to exists, and that no second beat runs.

    A release that is live already, whose deployment was killed, gets its Python back.
    """
    host, release, settings = deployment.host, deployment.release, deployment.settings
    if deployment.request.action == "rollback" and release not in host.built():
        available = ", ".join(host.built()) or "none"
        raise ReleaseError(f"release {release} is not on this host; available: {available}.")
    if deployment.is_current and host.lacks_python(release):
        rebuild(host, release)
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
            "a beat process runs on this host, where none should (the group scheduler, app_beat), so every periodic "
            f"task is sent twice: process {beats[0]}. Kill it, then run again."
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


def expect_no_page(deployment: Deployment, found: dict[str, Any]) -> None:
    """Where the project has no URL at all, Django's 404 shows that a process can serve."""
    settings = deployment.settings
    if settings.web and not settings.health_path and not found.get("has_pages", True):
        deployment.use(replace(settings, health_path="/", health_status=404, health_names_release=False))
        deployment.settings.record(deployment.release)
        say("The project has no URL: Django's answer 404 to / is its health check.")


def check(deployment: Deployment) -> None:
    """Run the application's own checks, collect its static files, and compare its migrations with the database."""
    settings = deployment.settings
    overlay.take_settings(deployment)
    # Before the checks, since code that is imported may ask for the URL of a file, whose name is in the manifest.
    static.collect(deployment)
    static.link_media(deployment)
    found = deployment.application.check()
    for warning in [*found.get("warnings", []), *found.get("beat", []), *found.get("databases", [])]:
        deployment.warn(warning)
    deployment.login_pages = found.get("login_pages", [])
    expect_no_page(deployment, found)
    for page in unlimited(found.get("login_pages", []), settings.login_paths) if settings.web else []:
        deployment.warn(
            f"Attempts to log in at {page} are not limited: add it to app_login_paths in group_vars/ENV/app.yml."
        )
    warn_of_hidden_pages(deployment)
    queues.check_queues(deployment)
    deployment.migrations = deployment.application.ask("migrations", list(settings.databases))
    refuse_newer_schema(deployment, deployment.migrations)
    if not deployment.state["was_built"]:
        write_facts(deployment, found)
    # Also for a release that was built before: a killed run may not have got this far.
    release = deployment.release
    deployment.sync = build.start_sync(deployment.host.path(release), settings.configuration(release))
    say("Application checks passed.")


def warn_of_hidden_pages(deployment: Deployment) -> None:
    """Warn of pages of the project that no visitor reaches, since nginx serves something else at their path."""
    settings = deployment.settings
    remedies = {
        settings.status_path: "the status page at: set app_status_path in group_vars/ENV/app.yml to another path.",
        settings.flower_path: "Flower at, so visitors do not reach them: give them another path.",
    }
    paths = [path for path in remedies if path]
    if not settings.web or not paths:
        return
    for path in deployment.application.ask("pages_below", *paths).get("paths", []):
        deployment.warn(f"The project has pages under {path}, which nginx serves {remedies[path]}")


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
    facts = {
        "id": deployment.release,
        "versions": found["versions"],
        "known": deployment.migrations["default"]["known"],
    }
    facts["workers"] = {worker.name: worker.queues for worker in deployment.settings.workers}
    # Such workers run as plain `celery worker` and leave no summary of their tasks.
    facts["plain_workers"] = bool(found.get("warnings"))
    facts["key_prefix"] = found.get("key_prefix", "")
    facts["admin_page"] = found.get("admin_page", "")
    mark = deployment.host.path(deployment.release) / "build.json"
    replace_file(mark.with_suffix(".new"), mark.parent, json.dumps(facts | build.measure(mark.parent)))
    mark.with_suffix(".new").rename(mark)


def check_schema(deployment: Deployment) -> None:
    """Rollback: compare the schema. `start` asked in the background, since both take a second or two."""
    refuse_newer_schema(deployment, deployment.schema_check.result())


def refuse_newer_schema(deployment: Deployment, states: dict[str, Any]) -> None:
    """Raise ReleaseError when a database has migrations that the release lacks, unless forced."""
    for name, state in states.items():
        if not state["unknown"]:
            continue
        which = "the database" if name == "default" else f"the database {name}"
        newer = f"{which} is ahead of release {deployment.release}: it has applied {', '.join(state['unknown'])}"
        if not deployment.request.force:
            raise ReleaseError(
                f"{newer}, which this release does not have. Deploy a release that has them or, if the older code can "
                "work with the newer tables, run again with -e release_force=true."
            )
        deployment.warn(f"{newer}. Continuing because of release_force.")
