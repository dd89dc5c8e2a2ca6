"""Inspect a Django and Celery project on the control machine, without running its code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of hostctl, whose module for the queues in the code is used here, too.
sys.path.append(str(Path(__file__).resolve().parents[3]))

from .celery import Configuration, report_celery
from .layout import find_layout, report_layout
from .packages import report_build, report_packages, report_python
from .processes import report_processes
from .project import Project
from .report import FILE, Finding, Proposal, Report
from .requirements import find_requirements, report_requirements
from .security import report_overlay, report_security
from .services import report_broker, report_cache, report_channels, report_database, report_mail, report_results
from .source import report_source
from .tree import Tree
from .values import plain
from .variables import report_variables
from .web import report_servers, report_web

__all__ = ["Finding", "Proposal", "Report", "inspect_project"]


def inspect_project(folder: Path, settings: Mapping[str, Any], *, writes: bool = False) -> Report:
    """Return what a deployment of the project in a folder would meet.

    `settings` are the app_* settings that the user has set; what they answer is no longer a need. With `writes` the
    caller writes the proposals to the user's file, so that they answer needs, too.
    """
    report = Report(given=settings, writes=writes)
    tree = Tree(folder, str(settings.get("app_project_dir") or ""))
    layout = find_layout(tree, settings)
    if layout is None:
        text = (
            f"No manage.py of Django was found in {folder}. Set app_project_dir in {FILE} to the folder that holds it; "
            "for a project without one, such as a package from PyPI, set app_settings_module."
        )
        report.needs("project", text, "app_project_dir")
        return report
    project = Project(tree, layout, find_requirements(tree, layout, settings), report)
    report_layout(tree, layout, project.requirements.packages, report)
    if layout.configuration:
        project.proposed["DJANGO_CONFIGURATION"] = layout.configuration
    report_servers(project)
    report_requirements(tree, layout, project.requirements, report)
    report_python(project)
    report_security(project)
    report_database(project)
    celery = Configuration(project)
    report_broker(project, celery.setting("broker_url"))
    report_results(project, celery.setting("result_backend"), plain(celery.get("result_backend")))
    report_cache(project)
    report_channels(project)
    report_mail(project)
    report_overlay(project)
    report_celery(project)
    report_web(project)
    report_processes(project)
    report_packages(project)
    report_build(project)
    report_source(project)
    report_variables(project)
    return report
