"""Settings of Django from environment variables, for the settings module that in_app/overlay.py generates.

The generated module imports this in every process of a release. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

POSTGRESQL = "django.db.backends.postgresql"
POSTGIS = "django.contrib.gis.db.backends.postgis"
REDIS_CACHE = "django.core.cache.backends.redis.RedisCache"
# What a PostgreSQL database may keep of a project's settings for another one. OPTIONS are those of a driver.
KEPT = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS", "TEST")
# Folders whose files are lost when a process or the host restarts. (Each process has a /tmp of its own.)
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run")
# What a logging handler on stderr may keep.
HANDLER_KEPT = ("level", "formatter", "filters")


def own(holder: Any, name: str) -> Any:
    """Return the project's own value of a setting, or None: of its module, or of a class of django-configurations."""
    if not isinstance(holder, type):
        return getattr(holder, name, None)
    value = getattr(holder(), name, None)
    if callable(value):
        value = value()
    # A value that is read from the environment when the class is set up.
    return value.setup(name) if hasattr(value, "setup") else value


def databases(own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return DATABASES with `default` from DATABASE_URL; it keeps the project's options that suit PostgreSQL."""
    own = own or {}
    default = dict(own.get("default") or {})
    kept = {name: default[name] for name in KEPT if name in default}
    if is_postgresql(engine := default.get("ENGINE", "")):
        kept["OPTIONS"] = dict(default.get("OPTIONS") or {})
    else:
        engine = POSTGIS if "spatialite" in engine or ".gis." in engine else POSTGRESQL
    return {**own, "default": kept | database(os.environ["DATABASE_URL"], engine, kept.get("OPTIONS", {}))}


def is_postgresql(engine: str) -> bool:
    return engine.rpartition(".")[2] in ("postgresql", "postgresql_psycopg2", "postgis")


def is_of_another_server(engine: str) -> bool:
    """Return whether an engine is for another server than PostgreSQL, such as MySQL; not for a file, or none."""
    return bool(engine) and not re.search(r"postg|psql|timescale|sqlite|spatialite|\bdummy$", engine)


def database(url: str, engine: str = POSTGRESQL, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of a database from its URL, whose query holds options of the driver, such as sslmode."""
    parts = urlsplit(url)
    found = {
        "ENGINE": engine,
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": parts.port or "",
    }
    if options := dict(options or {}) | dict(parse_qsl(parts.query)):
        found["OPTIONS"] = options
    return found


def is_temporary(path: str) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in TEMPORARY)


def caches(own: Mapping[str, Any] | None, aliases: Iterable[str] = ("default",)) -> dict[str, Any]:
    """Return CACHES with these aliases in the Redis of CACHE_URL, each with keys of its own; clear() empties all."""
    found = {alias: dict(cache or {}) for alias, cache in (own or {}).items()}
    return found | {alias: redis_cache(found, alias) for alias in aliases}


def redis_cache(caches: Mapping[str, Mapping[str, Any]], alias: str) -> dict[str, Any]:
    """Return the settings of a cache in the Redis of CACHE_URL; version and timeout stay, and the key prefix if unique.

    Aliases that had one address share their keys, as before.
    """
    own = caches.get(alias, {})
    kept = {name: own[name] for name in ("KEY_PREFIX", "VERSION", "TIMEOUT", "KEY_FUNCTION") if name in own}
    prefix, location = own.get("KEY_PREFIX", ""), own.get("LOCATION")
    first = next((name for name, other in caches.items() if other.get("LOCATION") == location), alias)
    elsewhere = [other.get("KEY_PREFIX", "") for other in caches.values() if other.get("LOCATION") != location]
    if first != "default" and prefix in elsewhere:
        kept["KEY_PREFIX"] = f"{prefix}{first}"
    backend = own.get("BACKEND", "")
    if not backend.endswith(".RedisCache"):
        backend = REDIS_CACHE
    elif options := {
        name: value
        for name, value in (own.get("OPTIONS") or {}).items()
        if name.lower() not in ("password", "username", "db")
    }:
        kept["OPTIONS"] = options
    return kept | {"BACKEND": backend, "LOCATION": os.environ["CACHE_URL"]}


def channel_layers(own: Mapping[str, Any] | None, aliases: Iterable[str]) -> dict[str, Any]:
    """Return CHANNEL_LAYERS with these aliases in the Redis of CACHE_URL, each with keys of its own."""
    found = dict(own or {})
    for alias in aliases:
        config = dict(found[alias].get("CONFIG") or {}) | {"hosts": [os.environ["CACHE_URL"]]}
        if alias != "default":
            config.setdefault("prefix", f"asgi-{alias}")
        found[alias] = {**found[alias], "CONFIG": config}
    return found


def listed(variable: str, own: Any = None) -> list[str]:
    """Return the values of a variable, separated by commas, and the project's own."""
    values = [value.strip() for value in os.environ.get(variable, "").split(",")]
    return list(dict.fromkeys([*filter(None, values), *(own or ())]))


def email() -> dict[str, Any]:
    """Return the EMAIL_ settings from EMAIL_URL: smtp://user:password@host:port/?tls=true, or file:///folder."""
    parts = urlsplit(os.environ["EMAIL_URL"])
    backends = "django.core.mail.backends"
    if not parts.scheme.startswith(("smtp", "submission")):
        known = {"file": "filebased", "console": "console", "dummy": "dummy", "memory": "locmem"}
        found = {"EMAIL_BACKEND": f"{backends}.{known.get(parts.scheme, 'filebased')}.EmailBackend"}
        return found | ({"EMAIL_FILE_PATH": unquote(parts.path)} if parts.scheme == "file" else {})
    query = {name.lower(): value.lower() in ("1", "true", "yes", "on") for name, value in parse_qsl(parts.query)}
    ssl = query.get("ssl", parts.scheme == "smtp+ssl" or parts.port == 465)
    tls = query.get("tls", parts.scheme in ("smtps", "smtp+tls", "submission")) and not ssl
    return {
        "EMAIL_BACKEND": f"{backends}.smtp.EmailBackend",
        "EMAIL_HOST": unquote(parts.hostname or "localhost"),
        "EMAIL_PORT": parts.port or (465 if ssl else 587 if tls else 25),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_TLS": tls,
        "EMAIL_USE_SSL": ssl,
    }


def result_backend() -> str:
    """Keep results of tasks in the broker's Redis, also where the code of the project names another one."""
    # Celery prefers this variable to its settings, and CELERY_BROKER_URL to broker_url.
    return os.environ.setdefault("CELERY_RESULT_BACKEND", os.environ["CELERY_BROKER_URL"])


def storages(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return STORAGES with a manifest of static files for each release."""
    static = own["staticfiles"]
    options = {**static.get("OPTIONS", {}), "storage_class": static["BACKEND"]}
    return {**own, "staticfiles": {**static, "BACKEND": f"{__name__}.release_storage", "OPTIONS": options}}


def release_storage(storage_class: str, **options: Any) -> Any:
    """Return a storage of a class with the release's ID in the name of its manifest."""
    from django.utils.module_loading import import_string

    base = import_string(storage_class)
    stem, dot, end = base.manifest_name.rpartition(".")
    name = f"{stem or end}-{os.environ['RELEASE_ID']}{dot}{end if dot else ''}"
    return type(base.__name__, (base,), {"__module__": base.__module__, "manifest_name": name})(**options)


def logging_to_stderr(own: Mapping[str, Any], handlers: list[str]) -> dict[str, Any]:
    """Return LOGGING with these handlers, which write to files, on stderr."""
    found = dict(own["handlers"])
    for name in handlers:
        kept = {key: value for key, value in found[name].items() if key in HANDLER_KEPT}
        found[name] = kept | {"class": "logging.StreamHandler"}
    return {**own, "handlers": found}
