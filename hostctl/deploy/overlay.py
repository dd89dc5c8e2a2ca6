"""The settings module of a release where the project hard-codes what the environment has; see in_app/overlay.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import ASSIGNMENT, ReleaseError, read_environment, say
from .configuration import replace_text

if TYPE_CHECKING:
    from .deployment import Deployment

# The name of the generated module, in the release's copy of the runner.
MODULE = "seedbed_settings"


def take_settings(deployment: Deployment) -> None:
    """Have the release's processes take from the environment what its settings hard-code.

    Raises ReleaseError, with all of them, for settings that must not go live.
    """
    settings, application = deployment.settings, deployment.application
    configuration = settings.configuration(deployment.release)
    variables = read_environment(configuration / "app.env")
    module = variables.get("DJANGO_SETTINGS_MODULE", "")
    if not module:
        return
    mode, names, folder = settings.settings_overlay, [settings.domain, *settings.domains], str(application.path)
    answer = application.ask(
        "settings_overlay",
        mode,
        module,
        settings.wsgi_app,
        settings.celery_app,
        list(dict.fromkeys(names)),
        folder,
        sorted(variables),
    )
    for warning in answer["warnings"]:
        deployment.warn(warning)
    if problems := answer["problems"]:
        raise ReleaseError("\n".join(["the settings must not go live:", *(f"- {problem}" for problem in problems)]))
    if not answer["text"]:
        return
    library = configuration / "lib"
    (library / f"{MODULE}.py").write_text(answer["text"])
    path = ":".join(filter(None, [str(library), variables.get("PYTHONPATH", "")]))
    set_variables(configuration / "app.env", {"DJANGO_SETTINGS_MODULE": MODULE, "PYTHONPATH": path})
    # It has the environment from before.
    application.close()
    deployment.overlay = answer["names"]
    say(f"Settings from the environment: {', '.join(answer['names'])}.")


def set_variables(file: Path, variables: dict[str, str]) -> None:
    """Set variables of an environment file, in place of the values that they have; keep owner and mode."""
    with file.open(newline="") as stream:
        text = stream.read()
    # Assignments, not lines: a value may have several, which may look like assignments.
    text = ASSIGNMENT.sub(lambda found: "" if found[1] in variables else found[0], text)
    lines = [f'{name}="{escaped(value)}"\n' for name, value in variables.items()]
    replace_text(file, f"{text.rstrip()}\n{''.join(lines)}")


def escaped(value: str) -> str:
    """Return a value as it is between the quotes of an environment file; see settings.read_environment."""
    return re.sub(r'(["\\$`])', r"\\\1", value)
