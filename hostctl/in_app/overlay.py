"""Decide which settings a project hard-codes, and generate a module that takes them from the environment.

The module imports the project's settings and is DJANGO_SETTINGS_MODULE of every process of the release. It holds no
values: it reads the environment, with environment.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import environment
from .settings_probe import CELERY_NAME, probe

MODULE = "seedbed_settings"
# Django marks its generated keys so.
INSECURE_KEY = "django-insecure-"
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
# What django-configurations raises where none of its starters was used, and what that needs.
NO_CONFIGURATION = "django-configurations settings importer wasn't correctly installed"
CHOOSE_CONFIGURATION = (
    "{module} has classes of django-configurations, and none is chosen. Write the name of that for production into "
    "group_vars/ENV/app.yml: app_environment: {{DJANGO_CONFIGURATION: Production}}"
)
# Backends of a project that has no mail server.
OWN_MAIL = "django.core.mail.backends."

HEADER = '''"""{settings}, and from the environment what it hard-codes. Generated: see app_settings_overlay."""

import os

import {settings} as project
from hostctl.in_app import environment

'''
# Code that imports the project's module instead of django.conf.settings gets the same values.
MODULE_TEXT = """vars().update({{name: getattr(project, name) for name in dir(project) if name.isupper()}})

{body}

for _name in {names}:
    setattr(project, _name, vars()[_name])
"""
# With django-configurations, the settings are a class of that name in the module.
CLASS_TEXT = """
class {name}(project.{name}):
{body}
"""
# An assignment in manage.py, wsgi.py or celery.py, where Django's own files have os.environ.setdefault.
ASSIGNMENT = re.compile(r"""^[ \t]*[\w.]*environ\[["']DJANGO_SETTINGS_MODULE["']\]\s*=[^=]""", re.M)


@dataclass(frozen=True)
class Project:
    """The project's settings as settings_probe found them, and where it runs."""

    module: str
    domains: list[str]
    # The release's folder, which its processes cannot write to.
    folder: str
    values: dict[str, Any]
    explicit: list[str] = field(default_factory=list)
    follow: list[str] = field(default_factory=list)
    compared: bool = True
    classes: list[str] = field(default_factory=list)

    def is_fixed(self, name: str) -> bool:
        return name not in self.follow

    def get(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def configuration(self) -> str:
        """The class of django-configurations that the settings are, or ""."""
        return os.environ.get("DJANGO_CONFIGURATION", "") if self.classes else ""

    def own(self, name: str) -> str:
        """Return the expression for the project's own value, or None."""
        holder = f"project.{self.configuration}" if self.configuration else "project"
        return f'environment.own({holder}, "{name}")'

    def is_inside(self, path: str) -> bool:
        """Return whether a path is in the release's folder, or relative to it."""
        return Path(self.folder, path).resolve().is_relative_to(Path(self.folder).resolve())

    def is_out_of_reach(self, path: str) -> bool:
        """Return whether the processes cannot write to a path: it is inside the release, or forbidden."""
        full = Path(self.folder, path)
        existing = next(place for place in (full, *full.parents) if place.exists())
        return self.is_inside(path) or not os.access(existing, os.W_OK)


def settings_overlay(
    mode: str, module: str, wsgi: str, celery: str, domains: list[str], folder: str, variables: list[str]
) -> dict[str, Any]:
    """Return the text of the module ("" where none is needed), the settings in it, problems and warnings.

    `mode` is auto (what the project hard-codes), always (also what it reads from elsewhere: RULES without OF_PACKAGES),
    or never. Problems are sentences that refuse the release. Settings that cannot be loaded are left to
    Django's check, which says why.
    """
    found = probe(celery, variables)
    nothing = {"text": "", "names": [], "problems": [], "warnings": []}
    if NO_CONFIGURATION in found.get("error", ""):
        return nothing | {"problems": [CHOOSE_CONFIGURATION.format(module=module)]}
    if "error" in found:
        return nothing
    project = Project(module, domains, folder, **found)
    lines, warnings = {}, []
    if mode != "never" and not project.compared:
        warnings.append(
            f"{module} accepts no other values of its environment variables, so what it hard-codes is unknown and "
            "app_settings_overlay has no effect."
        )
    elif mode != "never":
        lines = overridden(project, everything=mode == "always")
        warnings += left_alone(project, lines)
    problems = [*problems_of(project, lines), *(assignments(module, wsgi, celery) if lines else [])]
    if mode == "auto" and "DATABASES" in lines:
        problems += other_database(project)
    text = render(project, lines) if lines else ""
    return {"text": text, "names": list(lines), "problems": problems, "warnings": warnings}


# --- What to set ---------------------------------------------------------------------------------------------------


def overridden(project: Project, *, everything: bool = False) -> dict[str, str]:
    """Return the settings to take from the environment, each with its line of the module.

    Some alone are no reason for a module: companions, which a site behind nginx needs as well.
    """
    always = set(RULES) - OF_PACKAGES if everything else set()
    names = {name: line for name, (needs, line) in RULES.items() if name in always or needs(project)}
    caches = local_caches(project)
    aliases = {"caches": sorted({*caches, "default"}) if everything else caches, "layers": local_layers(project)}
    lines = {name: line.format(name=name, own=project.own(name), **aliases) for name, line in names.items()}
    lines |= celery_lines(project)
    if handlers := file_handlers(project):
        lines["LOGGING"] = f"LOGGING = environment.logging_to_stderr({project.own('LOGGING')}, {handlers!r})"
    if (manifest := project.get("manifest")) and os.environ.get("RELEASE_ID", "") not in manifest:
        lines["STORAGES"] = f"STORAGES = environment.storages({project.own('STORAGES')})"
    if not lines:
        return {}
    companions = {
        name: line.format(name=name, own=project.own(name))
        for name, (needs, line) in COMPANIONS.items()
        if needs(project)
    }
    return lines | {name: line for name, line in companions.items() if name not in lines}


def local_database(project: Project) -> bool:
    """Return whether the database is a file, none, or one of the developer's machine."""
    default = (project.get("DATABASES") or {}).get("default") or {}
    engine, host = default.get("ENGINE", ""), str(default.get("HOST", ""))
    is_other = {"HOST", "NAME", "USER", "PASSWORD"} & {
        name
        for name, value in environment.database(os.environ["DATABASE_URL"]).items()
        if str(default.get(name, "")) != str(value)
    }
    is_local = not environment.is_postgresql(engine) or is_of_developer(host)
    return project.is_fixed("DATABASES") and is_local and bool(is_other)


def is_of_developer(host: str) -> bool:
    """Return whether a host is this machine, a socket, or a service of docker compose: a name without a dot."""
    return host in LOCAL_HOSTS or host.startswith("/") or not re.search("[.:]", host)


def host_of(address: str) -> str:
    """Return the host of an address with or without scheme, login and port; "" for a socket."""
    place = (address.partition("://")[2] or address).rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else re.split("[:/?]", place)[0]


def local_caches(project: Project) -> list[str]:
    """Return the aliases of caches in a Redis or memcached of the developer's machine, or in files."""
    caches = project.get("CACHES") or {}
    return [alias for alias, cache in caches.items() if project.is_fixed(f"CACHES.{alias}") and is_local_cache(cache)]


def is_local_cache(cache: dict[str, Any]) -> bool:
    backend, location = cache.get("BACKEND", "").lower(), cache.get("LOCATION") or ""
    if not re.search("redis|memcached", backend):
        return "filebased" in backend
    addresses = re.split("[,;]", location) if isinstance(location, str) else [str(one) for one in location]
    # The inspection on the control machine, which asks, too, has no such variable.
    return addresses != [os.environ.get("CACHE_URL")] and all(is_of_developer(host_of(one)) for one in addresses)


def local_layers(project: Project) -> list[str]:
    """Return the aliases of channel layers in a Redis of the developer's machine, which is channels_redis' default."""
    layers = project.get("CHANNEL_LAYERS") or {}
    return [
        alias
        for alias, layer in layers.items()
        if project.is_fixed(f"CHANNEL_LAYERS.{alias}") and is_local_layer(layer)
    ]


def is_local_layer(layer: dict[str, Any]) -> bool:
    return "redis" in layer.get("BACKEND", "").lower() and all(is_of_developer(host) for host in layer_hosts(layer))


def layer_hosts(layer: dict[str, Any]) -> list[str]:
    """Return the hosts of a channel layer: URLs, [host, port], or options of redis-py."""
    hosts = []
    for entry in (layer.get("CONFIG") or {}).get("hosts") or [""]:
        if isinstance(entry, dict):
            entry = entry.get("address") or entry.get("host") or (entry.get("sentinels") or [""])[0]
        hosts.append(host_of(str((entry or [""])[0] if isinstance(entry, list) else entry)))
    return hosts


def local_constance(project: Project) -> bool:
    """Return whether django-constance is in a Redis of the developer's machine, which is its default."""
    installed = any(name.partition(".")[0] == "constance" for name in project.get("INSTALLED_APPS") or [])
    in_redis = "redisd" in (project.get("CONSTANCE_BACKEND") or "redisd")
    connection = project.get("CONSTANCE_REDIS_CONNECTION") or {}
    host = connection.get("host", "") if isinstance(connection, dict) else host_of(connection)
    return installed and in_redis and project.is_fixed("CONSTANCE_REDIS_CONNECTION") and is_of_developer(host)


def own_key(project: Project) -> bool:
    return project.is_fixed("SECRET_KEY") and project.get("SECRET_KEY") != os.environ["SECRET_KEY"]


def missing_domains(project: Project, hosts: list[str] | None = None) -> list[str]:
    """Return the names of the site that ALLOWED_HOSTS refuses."""
    allowed = (project.get("ALLOWED_HOSTS") or []) if hosts is None else hosts
    return [name for name in project.domains if not is_allowed(name, allowed)]


def is_allowed(name: str, allowed: list[str]) -> bool:
    """As django.http.request.validate_host, which has no promise to stay."""
    host = f"[{name}]" if ":" in name else name.lower()
    patterns = [pattern.lower() for pattern in allowed]
    return any(
        pattern in ("*", host) or (pattern.startswith(".") and (host.endswith(pattern) or host == pattern[1:]))
        for pattern in patterns
    )


def refuses_domains(project: Project) -> bool:
    return project.is_fixed("ALLOWED_HOSTS") and bool(missing_domains(project))


def misplaced_media(project: Project) -> bool:
    """Return whether uploads have a folder that the processes cannot write to, or that is emptied."""
    path = project.get("MEDIA_ROOT")
    fixed = project.is_fixed("MEDIA_ROOT") and path != os.environ["MEDIA_ROOT"]
    return fixed and bool(path) and (project.is_out_of_reach(path) or environment.is_temporary(path))


def misplaced_static(project: Project) -> bool:
    """Return whether collectstatic has no folder, or one outside of the release, which releases would share."""
    path = project.get("STATIC_ROOT")
    if "django.contrib.staticfiles" not in (project.get("INSTALLED_APPS") or []):
        return False
    fixed = project.is_fixed("STATIC_ROOT") and path != os.environ.get("STATIC_ROOT")
    return not path or (fixed and not project.is_inside(path))


def compresses_at_requests(project: Project) -> bool:
    """Return whether django-compressor would write files while it serves pages without a variable that says so."""
    installed = any(name.partition(".")[0] == "compressor" for name in project.get("INSTALLED_APPS") or [])
    enabled = project.get("COMPRESS_ENABLED") in (None, True) and not project.get("COMPRESS_OFFLINE")
    is_local = (project.get("COMPRESS_STORAGE") or "compressor.").startswith("compressor.")
    is_local = is_local and "compressor" not in (project.get("STORAGES") or {})
    is_chosen = not project.is_fixed("COMPRESS_OFFLINE") or "COMPRESS_OFFLINE" in os.environ
    return installed and enabled and is_local and not is_chosen


def own_mail(project: Project) -> bool:
    """Return whether mail goes nowhere: to Django's default server, the console or a file."""
    backend, host = project.get("EMAIL_BACKEND") or "", project.get("EMAIL_HOST") or ""
    fixed = all(project.is_fixed(name) for name in ("EMAIL_BACKEND", "EMAIL_HOST", "EMAIL_FILE_PATH"))
    return fixed and backend.startswith(OWN_MAIL) and host in LOCAL_HOSTS


def unused_mail_server(project: Project) -> bool:
    """Return whether app_email_url names a server that the project does not use."""
    return own_mail(project) and not os.environ["EMAIL_URL"].startswith("file:")


# The settings, in the order of the summary: when is each needed, and its line.
RULES: dict[str, tuple[Callable[[Project], Any], str]] = {
    "DATABASES": (local_database, "{name} = environment.databases({own})"),
    "CACHES": (local_caches, "{name} = environment.caches({own}, {caches})"),
    "CHANNEL_LAYERS": (local_layers, "{name} = environment.channel_layers({own}, {layers})"),
    # Values that staff have set: in the broker's Redis, which keeps them.
    "CONSTANCE_REDIS_CONNECTION": (local_constance, '{name} = os.environ["CELERY_BROKER_URL"]'),
    "SECRET_KEY": (
        own_key,
        '{name} = os.environ["{name}"]\n{name}_FALLBACKS = environment.listed("{name}_FALLBACK")',
    ),
    "ALLOWED_HOSTS": (refuses_domains, '{name} = environment.listed("{name}", {own})'),
    "STATIC_ROOT": (misplaced_static, '{name} = os.environ["{name}"]'),
    "COMPRESS_OFFLINE": (compresses_at_requests, "{name} = True"),
    "MEDIA_ROOT": (misplaced_media, '{name} = os.environ["{name}"]'),
    "DEBUG": (lambda project: bool(project.get("DEBUG")), "{name} = False"),
    "EMAIL": (unused_mail_server, "vars().update(environment.email())"),
}
# Settings of packages: `always` has no effect on them, since a project without the package has no use for them.
OF_PACKAGES = {"CHANNEL_LAYERS", "CONSTANCE_REDIS_CONNECTION", "COMPRESS_OFFLINE"}
COMPANIONS: dict[str, tuple[Callable[[Project], bool], str]] = {
    "SECURE_PROXY_SSL_HEADER": (
        lambda project: not project.get("SECURE_PROXY_SSL_HEADER"),
        '{name} = ("HTTP_X_FORWARDED_PROTO", "https")',
    ),
    "CSRF_TRUSTED_ORIGINS": (
        lambda project: project.is_fixed("CSRF_TRUSTED_ORIGINS"),
        '{name} = environment.listed("{name}", {own})',
    ),
    "EMAIL": (own_mail, "vars().update(environment.email())"),
    "DEFAULT_FROM_EMAIL": (
        lambda project: project.get("DEFAULT_FROM_EMAIL") == "webmaster@localhost",
        '{name} = os.environ["{name}"]',
    ),
}


def celery_lines(project: Project) -> dict[str, str]:
    """Return lines for the broker, the result backend and RedBeat in Django's settings, and for those in code."""
    lines = {}
    for name in project.values:
        if not CELERY_NAME.match(name) or not project.is_fixed(name):
            continue
        value = str(project.get(name) or "")
        if name.endswith("RESULT_BACKEND"):
            if is_local_backend(project, value):
                lines[name] = f"{name} = environment.result_backend()"
        elif value != os.environ["CELERY_BROKER_URL"] and (name.endswith("BROKER_URL") or is_local_redis(value)):
            lines[name] = f'{name} = os.environ["CELERY_BROKER_URL"]'
    in_code = project.is_fixed("celery") and is_local_backend(project, project.get("celery") or "")
    if in_code and not any(name.endswith("RESULT_BACKEND") for name in lines):
        lines["CELERY_RESULT_BACKEND"] = "CELERY_RESULT_BACKEND = environment.result_backend()"
    if project.is_fixed("redbeat") and is_local_redis(project.get("redbeat") or ""):
        # Without a Redis of its own, RedBeat uses that of the broker's setting, or of a broker in the code.
        name = "_".join(filter(None, [project.get("namespace"), "REDBEAT_REDIS_URL"]))
        if not any(line.endswith("BROKER_URL") for line in lines):
            lines[name] = f'{name} = os.environ["CELERY_BROKER_URL"]'
    return lines


def is_local_backend(project: Project, url: str) -> bool:
    """Return whether results would go to the developer's machine, or to a file that the processes cannot write to."""
    file = re.fullmatch(r"(?:(?:db|sqla)\+)?sqlite:///(.*)|file(?:system)?://(.*)", url)
    if file:
        return project.is_out_of_reach(file[1] if file[1] is not None else file[2])
    return is_local_redis(url)


def is_local_redis(url: str) -> bool:
    """Return whether a URL names a Redis of the developer's machine (or another broker, as a result backend)."""
    scheme = url.partition("://")[0]
    is_other = url != os.environ["CELERY_BROKER_URL"]
    return scheme in ("redis", "rediss", "amqp") and is_other and is_of_developer(host_of(url))


def file_handlers(project: Project) -> list[str]:
    """Return the logging handlers that write to files which the processes cannot write to."""
    handlers = (project.get("LOGGING") or {}).get("handlers") or {}
    return [
        name
        for name, handler in handlers.items()
        if isinstance(handler, dict) and handler.get("filename") and project.is_out_of_reach(handler["filename"])
    ]


def left_alone(project: Project, lines: dict[str, str]) -> Iterator[str]:
    """Yield warnings of what is hard-coded and stays, since it may be meant."""
    default = (project.get("DATABASES") or {}).get("default") or {}
    host = str(default.get("HOST", ""))
    known = str(environment.database(os.environ["DATABASE_URL"])["HOST"])
    stays = project.is_fixed("DATABASES") and "DATABASES" in project.explicit and "DATABASES" not in lines
    if stays and host not in ("", known):
        yield (
            f"DATABASES in {project.module} names the server {host}, which is not that of DATABASE_URL. It is used as "
            "it is: set app_database_url in group_vars/ENV/app.yml to its URL, or read DATABASE_URL there."
        )


# --- What is refused -----------------------------------------------------------------------------------------------


def problems_of(project: Project, lines: dict[str, str]) -> Iterator[str]:
    """Yield what must not go live, with the line to write; what the module corrects is none."""
    module = project.module
    if project.get("DEBUG") and "DEBUG" not in lines:
        yield (
            f"DEBUG is True in {module}: errors would show settings and code to visitors. Write there: "
            'DEBUG = os.environ.get("DEBUG") == "1"'
        )
    key = project.get("SECRET_KEY") or ""
    if "SECRET_KEY" not in lines and (not key or key.startswith(INSECURE_KEY)):
        what = f"is the insecure one of startproject ({INSECURE_KEY}...)" if key else "is missing or empty"
        yield f'SECRET_KEY {what} in {module}. Write there: SECRET_KEY = os.environ["SECRET_KEY"]'
    missing = missing_domains(project)
    if missing and "ALLOWED_HOSTS" not in lines:
        yield (
            f"ALLOWED_HOSTS in {module} does not contain {', '.join(missing)}, so visitors would get 400. Write there: "
            'ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",")'
        )


def other_database(project: Project) -> Iterator[str]:
    """Yield a problem for a database of another server, whose data an empty PostgreSQL would not have."""
    engine = ((project.get("DATABASES") or {}).get("default") or {}).get("ENGINE", "")
    if environment.is_of_another_server(engine):
        yield (
            f"DATABASES in {project.module} is for another server ({engine}), and a release uses PostgreSQL, whose "
            "database is empty at first: the site would start without its data. Write "
            'DATABASES = {"default": dj_database_url.config()} there and have dj-database-url in the requirements. Or '
            "write app_settings_overlay: always into group_vars/ENV/app.yml, which replaces DATABASES: then copy the "
            "data after the first deployment, for instance with pgloader."
        )


def assignments(module: str, *others: str) -> Iterator[str]:
    """Yield a problem for each of the project's files that would replace the generated module."""
    names = [other.partition(":")[0].replace(".", "/") for other in others if other]
    files = ["manage.py", *(f"{name}{end}" for name in names for end in (".py", "/__init__.py", "/celery.py"))]
    for name in dict.fromkeys(files):
        places = [path for folder in sys.path if (path := Path(folder, name)).is_file()]
        if places and ASSIGNMENT.search(places[0].read_text(errors="replace")):
            yield (
                f"{name} assigns DJANGO_SETTINGS_MODULE, so what app_settings_overlay takes from the environment would "
                f'have no effect. Write there: os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{module}")'
            )


def render(project: Project, lines: dict[str, str]) -> str:
    """Return the text of the module."""
    header, body = HEADER.format(settings=project.module), "\n".join(lines.values())
    if name := project.configuration:
        return header + CLASS_TEXT.format(name=name, body=textwrap.indent(body, "    "))
    names = [name for name in lines if name != "EMAIL"]
    return header + MODULE_TEXT.format(body=body, names=json.dumps(names))
