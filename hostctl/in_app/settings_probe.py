"""Load a project's settings, and see which of them follow the environment.

Each load is a forked process, so that none has an effect on another. A setting whose value is the same with other
variables does not come from the environment. Nothing but the settings module, and the Celery application's, is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

NAMES = (
    *("DATABASES", "CACHES", "SECRET_KEY", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", "SECURE_PROXY_SSL_HEADER"),
    *("STATIC_ROOT", "MEDIA_ROOT", "DEBUG", "LOGGING", "INSTALLED_APPS", "DEFAULT_FROM_EMAIL"),
    *("EMAIL_BACKEND", "EMAIL_HOST", "EMAIL_FILE_PATH"),
    *("CHANNEL_LAYERS", "CONSTANCE_BACKEND", "CONSTANCE_REDIS_CONNECTION"),
    *("COMPRESS_ENABLED", "COMPRESS_OFFLINE", "COMPRESS_STORAGE", "STORAGES"),
)
# Settings of Celery and RedBeat in Django's, in any namespace, and their old names.
CELERY_NAME = re.compile(r"^([A-Z]+_)?(BROKER_URL|RESULT_BACKEND|REDBEAT_REDIS_URL)$")
# Variables that decide which settings are loaded, or that are no settings.
FIXED = {"DJANGO_SETTINGS_MODULE", "DJANGO_CONFIGURATION", "PATH", "HOME", "LANG", "PYTHONPATH", "PYTHONUNBUFFERED"}
# The variables that Seedbed gives to every project.
OWN = {
    *("SECRET_KEY", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", "DATABASE_URL", "CELERY_BROKER_URL", "CACHE_URL"),
    *("EMAIL_URL", "DEFAULT_FROM_EMAIL", "STATIC_ROOT", "MEDIA_ROOT"),
}


def probe(celery: str, variables: list[str]) -> dict[str, Any]:
    """Load the settings with the environment, and with other values of `variables`.

    Returns their `values`, the names of those that are `explicit` (not Django's defaults), and of those that `follow`
    the environment (also NAME.KEY, in a dictionary); `compared` is false where the settings accept no other values.
    Returns {"error": traceback} when they cannot be loaded.
    """
    # Not of the project: once for all loads.
    for name in ("django.conf", "celery"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    found = load(celery, {})
    if "error" in found:
        return found
    names = set(variables) - FIXED
    for varied in (names, names & OWN):
        other = load(celery, {name: changed(os.environ[name]) for name in varied if name in os.environ})
        if "error" not in other:
            break
    follow = sorted(differing(found["values"], other.get("values", {})))
    return found | {"follow": follow, "compared": "error" not in other}


def differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names whose values differ; of those that are dictionaries also NAME.KEY, such as CACHES.default."""
    for name in values.keys() & others.keys():
        value, other = values[name], others[name]
        if value != other:
            yield name
            if isinstance(value, dict) and isinstance(other, dict):
                yield from (f"{name}.{key}" for key in value if value[key] != other.get(key))


def changed(value: str) -> str:
    """Return another value of the same kind."""
    if "://" in value:
        # Another host, database or folder, and another password.
        scheme, _, rest = value.partition("://")
        login, at, place = rest.rpartition("@")
        host, slash, path = place.partition("/")
        host = f"[::99]{host.partition(']')[2]}" if host.startswith("[") else f"x{host}"
        number = re.fullmatch(r"/?\d+(\?.*)?", path)
        name = path if number or not path else re.sub(r"^[^?]+", lambda match: f"{match[0]}x", path)
        if scheme == "file":
            return f"smtp://probe.invalid{slash}"
        return f"{scheme}://{f'{login}x' if login else ''}{at}{host}{slash}{name}"
    if re.fullmatch(r"\d+", value):
        return str(int(value) + 1)
    if value.lower() in ("", "true", "false", "yes", "no", "on", "off", "none"):
        return value
    return f"{value}x"


def load(celery: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings as a new process with these environment variables loads them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.environ.update(variables)
        try:
            answer = read_settings(celery)
        except BaseException:  # Also SystemExit: the project decides what it raises.
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as stream:
            json.dump(answer, stream)
        sys.stderr.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "The process that loaded the settings was killed."}


def read_settings(celery: str) -> dict[str, Any]:
    if os.environ.get("DJANGO_CONFIGURATION"):
        from configurations import importer

        importer.install()
    from django.conf import settings

    names = [name for name in dir(settings) if name in NAMES or CELERY_NAME.match(name)]
    values = {name: plain(getattr(settings, name)) for name in names}
    explicit = [name for name in names if settings.is_overridden(name)]
    values |= celery_values(celery) | {"manifest": shared_manifest(settings)}
    return {"values": values, "explicit": explicit, "classes": configuration_classes(settings)}


def celery_values(celery: str) -> dict[str, str]:
    """Return what the Celery application uses, however it is set: the result backend, the Redis of RedBeat.

    `namespace` is that of its settings in Django's. Nothing where there is none, or it cannot be imported yet.
    """
    if not celery:
        return {}
    try:
        from celery.app.utils import find_app

        application = find_app(celery)
        found = {"celery": str(application.conf.result_backend or ""), "namespace": application.namespace or ""}
        if importlib.util.find_spec("redbeat"):
            # As RedBeat does. It does not see that the variable CELERY_BROKER_URL replaces a broker in the code.
            url = application.conf.first("redbeat_redis_url", "REDBEAT_REDIS_URL") or application.conf["BROKER_URL"]
            found["redbeat"] = str(url or "")
        return found
    except Exception:  # The check that follows imports it, and reports why it cannot.
        return {}


def shared_manifest(settings: Any) -> str:
    """Return the name of the manifest of static files if their storage keeps it elsewhere, such as on S3; else ""."""
    storage = (getattr(settings, "STORAGES", None) or {}).get("staticfiles") or {}
    if "django.contrib.staticfiles" not in settings.INSTALLED_APPS or "manifest_storage" in storage.get("OPTIONS", {}):
        return ""
    try:
        from django.contrib.staticfiles.storage import ManifestFilesMixin
        from django.core.files.storage import FileSystemStorage
        from django.utils.module_loading import import_string

        found = import_string(storage["BACKEND"])
        elsewhere = issubclass(found, ManifestFilesMixin) and not issubclass(found, FileSystemStorage)
        return found.manifest_name if elsewhere else ""
    except Exception:  # The collecting that follows imports it, and reports why it cannot.
        return ""


def configuration_classes(settings: Any) -> list[str]:
    """Return the names of the classes of django-configurations in the settings module."""
    if "configurations" not in sys.modules:
        return []
    from configurations import Configuration

    found = vars(sys.modules[os.environ["DJANGO_SETTINGS_MODULE"]]).items()
    return [name for name, value in found if isinstance(value, type) and issubclass(value, Configuration)
            and value is not Configuration]  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it; paths become text, objects the name of their class."""
    if value is None or isinstance(value, str | int | float | bool):
        return value if type(value) in (str, int, float, bool, type(None)) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(str(plain(one)) for one in value)
    return f"<{type(value).__name__}>"
