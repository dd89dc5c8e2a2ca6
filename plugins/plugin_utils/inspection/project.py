"""A project as its inspection sees it: files, layout, requirements, and settings in the environment of a release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .evaluate import Evaluator
from .expressions import Class, Scope
from .known import Environment
from .layout import Layout
from .report import Report
from .requirements import Requirements
from .tree import Tree
from .values import UNKNOWN, Call, names_of, plain, possibilities

# What Seedbed sets in the environment of a release, with values of the same form (group_vars/all/wiring.yml).
DATABASE_URL = "postgresql://inspected:secret@127.0.0.1:5432/inspected"
BROKER_URL = "redis://inspected:secret@127.0.0.1:6379/0"
CACHE_URL = "redis://inspected:secret@127.0.0.1:6380/0"
PROVIDED: dict[str, Any] = {
    "SECRET_KEY": "inspected-" * 6,
    "ALLOWED_HOSTS": "inspected.example.org",
    "CSRF_TRUSTED_ORIGINS": "https://inspected.example.org",
    "SECURE_HSTS_SECONDS": "86400",
    "DATABASE_URL": DATABASE_URL,
    "CELERY_BROKER_URL": BROKER_URL,
    "CACHE_URL": CACHE_URL,
    "EMAIL_URL": "file:///srv/inspected/shared/mail",
    "DEFAULT_FROM_EMAIL": "inspected@inspected.example.org",
    "STATIC_ROOT": "/srv/inspected/shared/static",
    "MEDIA_ROOT": "/srv/inspected/shared/media",
    "PRIVATE_ROOT": "/srv/inspected/shared/private",
    "STATIC_MANIFEST_ROOT": "/srv/inspected/static",
    "TIME_ZONE": "UTC",
    "RELEASE_ID": "inspected",
    "HOME": "/srv/inspected",
    "PATH": "/usr/bin:/bin",
    "USER": "inspected",
    "LANG": "C.UTF-8",
}


@dataclass
class Project:
    """A project, and the report about it."""

    tree: Tree
    layout: Layout
    requirements: Requirements
    report: Report
    # Variables that the report proposes; they are given in the environment, too.
    proposed: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> Mapping[str, Any]:
        return self.report.given

    @property
    def variables(self) -> dict[str, Any]:
        """The environment of a release: what Seedbed sets, and app_environment."""
        own = self.given.get("app_environment") or {}
        own = {name: UNKNOWN if "{{" in str(value) else str(value) for name, value in own.items()}
        module = {"DJANGO_SETTINGS_MODULE": self.layout.settings_module}
        databases = {one.get("environment", ""): DATABASE_URL for one in self.given.get("app_databases") or []}
        return PROVIDED | module | databases | self.proposed | own

    def evaluate(self, **more: Any) -> Evaluated:
        """Evaluate the settings, with further variables."""
        evaluator = Evaluator(self.tree, self.layout.importable, Environment(self.variables | more))
        scope = evaluator.module(self.layout.settings_file) if self.layout.settings_file else Scope("")
        holder = scope.names.get(self.layout.configuration)
        if self.layout.configuration and isinstance(holder, Class):
            return Evaluated(evaluator, scope.names | holder.members(), scope.places | holder.scope.places)
        return Evaluated(evaluator, scope.names, scope.places)

    def configuration_classes(self) -> list[str]:
        """Return the class of django-configurations that is used, and its bases."""
        evaluator = self.settings.evaluator
        scope = evaluator.module(self.layout.settings_file) if self.layout.settings_file else Scope("")
        found, waiting = [], [scope.names.get(self.layout.configuration)]
        while waiting:
            made = waiting.pop()
            if isinstance(made, Class):
                found.append(made.name)
                waiting += made.bases
        return found

    @cached_property
    def settings(self) -> Evaluated:
        return self.evaluate()

    def forget(self) -> None:
        """Evaluate the settings again at the next use, with the variables that were proposed since."""
        self.__dict__.pop("settings", None)

    def add_variable(self, subject: str, name: str, value: str, reason: str, example: Any = UNKNOWN) -> None:
        """Propose a variable of app_environment; `example` is what the settings see."""
        self.proposed[name] = example
        # Other settings may depend on it, such as the database on DEBUG.
        self.forget()
        self.report.require(subject, reason, "app_environment", {name: value})

    @property
    def apps(self) -> list[str]:
        return [app for app in self.settings.items("INSTALLED_APPS") if isinstance(app, str)]

    def has_app(self, *names: str) -> bool:
        return any(app == name or app.startswith(f"{name}.") for app in self.apps for name in names)


@dataclass
class Evaluated:
    """The settings by name; see values.py for what a value may be."""

    evaluator: Evaluator
    names: dict[str, Any]
    places: dict[str, tuple[str, int]]

    @property
    def is_readable(self) -> bool:
        """Whether the settings are assignments that can be followed, rather than computed."""
        own = "INSTALLED_APPS" in self.names or "ROOT_URLCONF" in self.names
        # dynaconf replaces any of them, from other files and variables.
        made = [value.name for value in self.names.values() if isinstance(value, Call)]
        return own and not any(name.endswith("DjangoDynaconf") for name in made)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def get(self, name: str) -> Any:
        return self.names.get(name, UNKNOWN)

    def plain(self, name: str) -> Any:
        """Return the one value of a setting in the environment of a release, or Unknown."""
        return plain(self.get(name))

    def possible(self, name: str) -> list[Any]:
        return possibilities(self.get(name))

    def items(self, name: str) -> list[Any]:
        """Return the items of a list, of all values that it may have."""
        found: list[Any] = []
        for value in self.possible(name):
            if isinstance(value, list | tuple | set):
                found += [item for part in value for item in possibilities(part)]
        return found

    def variables(self, name: str) -> frozenset[str]:
        """Return the environment variables that a setting depends on."""
        return names_of(self.get(name))

    def is_fixed(self, name: str) -> bool:
        """Return whether a setting is there and does not depend on the environment."""
        return name in self.names and not self.variables(name)

    def where(self, name: str) -> str:
        """Return FILE:LINE of a setting."""
        file, line = self.places.get(name, ("", 0))
        return f"{file}:{line}" if file else "the settings"


def django_version(requirements: Requirements) -> tuple[int, ...]:
    """Return the version of Django as far as the requirements tell it: the first number in it; () if none."""
    package = requirements.packages.get("django")
    match = re.search(r"(\d+(?:\.\d+)*)", package.version) if package else None
    return tuple(int(part) for part in match[1].split(".")) if match else ()
