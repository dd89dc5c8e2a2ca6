"""Database, broker and cache: which variables the settings read for them, and the drivers that they need."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlparse

from hostctl.in_app import overlay
from hostctl.in_app.environment import is_of_another_server

from .project import BROKER_URL, CACHE_URL, DATABASE_URL, Project, django_version
from .report import FILE
from .security import hard_coded, is_generated, replaces
from .values import UNKNOWN, names_of, plain, possibilities, text_of, walk
from .web import find_asgi

ENGINES = {"sqlite": "SQLite", "spatialite": "SpatiaLite", "mysql": "MySQL", "oracle": "Oracle", "mssql": "SQL Server"}
# The default of app_web.processes (group_vars/all/defaults.yml).
WEB_PROCESSES = 2
# Where messages go with the backends of a project that has no mail server.
OWN_MAIL = "django.core.mail.backends."
MAIL_FOLDER = "/srv/NAME/shared/mail"
MAIL = {
    "smtp": "are sent to port 25 of the server itself, where no mail server is installed",
    "console": "are printed to the log",
    "filebased": "become files",
    "locmem": "are dropped",
    "dummy": "are dropped",
}
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
REDIS_CACHE = "django.core.cache.backends.redis.RedisCache"
ENGINE_WORDS = ("postgres", "postgresql", "django.db.backends.postgresql", "pg", "pgsql", "psql", "true", "1")
POSTGRESQL = re.compile(r"\.(postgresql(_psycopg2)?|postgis)$|^psqlextra\.")
# Keys of DATABASES: the value in a release's environment, and in that of its migrations.
PARTS: dict[str, tuple[str, str, str]] = {
    "ENGINE": ("django.db.backends.postgresql", "", "django.db.backends.postgresql"),
    "NAME": ("{{ app_name }}", "", "inspected"),
    "USER": ("{{ app_database_login }}", "{{ app_name }}_owner", "inspected"),
    "PASSWORD": ("{{ secret_database_password }}", "{{ secret_database_owner_password }}", "secret"),
    "HOST": ("{{ app_database_address }}", "", "127.0.0.1"),
    "PORT": ("{{ app_ports.postgresql }}", "", "5432"),
}


def report_database(project: Project) -> None:
    if not project.settings.is_readable:
        return
    databases = [value for value in project.settings.possible("DATABASES") if isinstance(value, dict)]
    if "DATABASES" not in project.settings or (databases and not any("default" in value for value in databases)):
        hard_coded(project, "database", "DATABASES", "missing", "read DATABASE_URL, for instance with dj-database-url.")
    elif databases:
        default_database(project, databases[0].get("default", UNKNOWN))
        other_databases(project, databases[0])
    geodjango(project)
    driver(project)


def default_database(project: Project, value: Any) -> None:
    known = set(project.given.get("app_environment") or {}) | {"DATABASE_URL"}
    variables = names_of(value)
    parts = plain(value)
    engine = engine_of(parts)
    if variables & known and (not engine or "postg" in engine):
        project.report.fine("database", f"DATABASES is read from {', '.join(sorted(variables & known))}.")
    elif len(variables) == 1 and url_of(project, *variables):
        (name,) = variables
        text = f"DATABASES is read from {name}, which gets the database's URL, in migrations that of the tables' owner."
        project.add_variable("database", name, "{{ app_database_url_runtime }}", text, DATABASE_URL)
        project.report.require("database", text, "app_migration_environment", {name: "{{ app_database_url_owner }}"})
    elif isinstance(parts, dict) and map_parts(project, parts):
        return
    elif variables & known:
        other_engine(project, engine)
    elif project.settings.variables("DATABASES"):
        select_engine(project, engine)
    else:
        written_in_code(project, parts, engine)


def engine_of(parts: Any) -> str:
    found = possibilities(parts.get("ENGINE", UNKNOWN)) if isinstance(parts, dict) else []
    return str(found[0]) if found else ""


def url_of(project: Project, name: str, alias: str = "default") -> bool:
    """Return whether a variable holds the URL of a database."""
    found = project.evaluate(**{name: DATABASE_URL}).get("DATABASES")
    value = plain(plain(found).get(alias, UNKNOWN)) if isinstance(plain(found), dict) else None
    return isinstance(value, dict) and plain(value.get("USER", UNKNOWN)) == "inspected"


def map_parts(project: Project, parts: dict[str, Any]) -> bool:
    """Propose the variables that hold the parts of the database's address. Returns whether there are any."""
    own = project.given.get("app_environment") or {}
    read = {key: names_of(parts.get(key, UNKNOWN)) for key in PARTS}
    engine = engine_of(parts)
    if any(read.values()) and "postg" not in engine and (engine or read["ENGINE"]):
        select_engine(project, engine)
        return True
    single = {key: next(iter(names)) for key, names in read.items() if len(names) == 1}
    # A variable of several parts is one of another form.
    single = {key: name for key, name in single.items() if list(single.values()).count(name) == 1}
    single.pop("ENGINE", None)
    wanted = {name: PARTS[key][0] for key, name in single.items() if name not in own}
    owner = {name: PARTS[key][1] for key, name in single.items() if PARTS[key][1]}
    project.proposed |= {name: PARTS[key][2] for key, name in single.items()}
    fixed = [key for key in ("NAME", "USER", "PASSWORD") if text_of(parts.get(key, UNKNOWN)) and not read[key]]
    if single:
        text = f"DATABASES gets the parts of the database's address from {', '.join(single.values())}."
        project.report.require("database", text, "app_environment", wanted)
        text = "Migrations connect as the owner of the tables."
        project.report.require("database", text, "app_migration_environment", owner)
    if single and fixed and not server_of(parts):
        always(project, "database", "DATABASES", frozenset(single.values()))
    return any(read.values())


def select_engine(project: Project, engine: str) -> None:
    """Report a project that chooses its engine by a variable, as `if os.environ["DB"] == "postgres"`.

    The variable may also be the engine, or the last part of its name.
    """
    reads = {read.name: read for read in project.settings.evaluator.environment.reads}
    for read in reads.values():
        for word in ENGINE_WORDS if re.search(r"DB|DATABASE|ENGINE|POSTGRES", read.name) else ():
            found = plain(project.evaluate(**{read.name: word}).get("DATABASES"))
            default = plain(found.get("default", UNKNOWN)) if isinstance(found, dict) else None
            if POSTGRESQL.search(chosen := engine_of(default)) and chosen.count("backends") < 2:
                text = f"The settings use PostgreSQL where {read.name} is {word!r}."
                project.add_variable("database", read.name, word, text, word)
                project.forget()
                map_parts(project, default)
                return
    if "postg" in engine or not engine:
        always(project, "database", "DATABASES", project.settings.variables("DATABASES"))
    elif not is_of_another_server(engine):
        hard_coded(project, "database", "DATABASES", "a SQLite file", "read DATABASE_URL.")
    else:
        other_engine(project, engine)


def other_engine(project: Project, engine: str) -> None:
    name = next((text for word, text in ENGINES.items() if word in engine), engine)
    if replaces(project):
        text = f"DATABASES is for {name} ({project.settings.where('DATABASES')}), and releases use PostgreSQL, whose "
        text += "database is empty at first"
        copy = "copy the data into it after the first deployment, for instance with pgloader"
        if project.given.get("app_settings_overlay") == "always":
            project.report.decided("database", f"Warning: {text}: {copy}.", "app_settings_overlay")
        else:
            text += ". Use django.db.backends.postgresql there and read DATABASE_URL, for instance with dj-database-url"
            text += f"; or set app_settings_overlay: always in {FILE}, which replaces DATABASES, and {copy}."
            project.report.needs("database", text, "app_settings_overlay")
        return
    hard_coded(
        project, "database", "DATABASES", f"for {name}", "use django.db.backends.postgresql and read DATABASE_URL."
    )


def written_in_code(project: Project, parts: Any, engine: str) -> None:
    host = server_of(parts)
    if "postg" in engine and host:
        project.report.decided(
            "database",
            f"DATABASES names the server {host} ({project.settings.where('DATABASES')}): it is used as it is. Read "
            f"DATABASE_URL instead, and set app_database_url in {FILE} to its URL.",
            "app_database_url",
        )
    elif is_of_another_server(engine):
        other_engine(project, engine)
    else:
        what = "a SQLite file" if "sqlite" in engine or "spatialite" in engine else "written into the code"
        hard_coded(project, "database", "DATABASES", what, "read DATABASE_URL, for instance with dj-database-url.")


def server_of(parts: Any) -> str:
    """Return the server that a database's settings name in the code; "" for one of a developer's machine."""
    host = str(plain(parts.get("HOST", ""))) if isinstance(parts, dict) else ""
    return "" if "." not in host or re.fullmatch(r"127\.\d+\.\d+\.\d+|0\.0\.0\.0", host) else host


def other_databases(project: Project, databases: dict[str, Any]) -> None:
    """Report further databases: those whose URL is read from a variable are created and migrated."""
    for alias, value in databases.items():
        if alias == "default" or "MIRROR" in str(value):
            continue
        names = sorted(names_of(value) - {"DATABASE_URL"})
        if (names_of(value) and not names) or set(names) & set(project.given.get("app_environment") or {}):
            continue
        place = f"DATABASES has a further database, {alias} ({project.settings.where('DATABASES')})"
        if not names and (host := server_of(plain(value))):
            text = f"{place}, on {host}: it is used as it is, neither created nor migrated."
            project.report.decided("database", text)
        elif len(names) == 1 and re.fullmatch("[a-z][a-z0-9_]{0,31}", alias) and url_of(project, names[0], alias):
            further_database(project, alias, names[0], place)
        else:
            variable = f"{re.sub('[^A-Z0-9]', '_', alias.upper())}_URL"
            project.report.needs(
                "database",
                f"{place}. Read its URL from one variable, such as {variable}, for instance with dj-database-url, and "
                f"write into {FILE}: app_databases: [{{name: {alias}, environment: {variable}}}].",
                "app_databases",
            )


def further_database(project: Project, alias: str, variable: str, place: str) -> None:
    """Propose an entry of app_databases, unless the user's has the database."""
    project.proposed[variable] = DATABASE_URL
    if any(one.get("name") == alias for one in project.given.get("app_databases") or []):
        project.report.fine("database", f"The database {alias} is read from {variable}.", "app_databases")
        return
    if project.report.writes:
        project.report.propose("app_databases", [{"name": alias, "environment": variable}], f"{place}.")
        text = f"{place}, read from {variable}: it is created on the same server, and migrated."
        project.report.decided("database", text, "app_databases")
    else:
        project.report.needs(
            "database",
            f"{place}. Add {{name: {alias}, environment: {variable}}} to app_databases in {FILE}; where others migrate "
            f"it, set {variable} in app_environment instead.",
            "app_databases",
        )


def geodjango(project: Project) -> None:
    engines = [
        engine
        for part in walk(project.settings.get("DATABASES"))
        if isinstance(part, dict) and (engine := engine_of(part))
    ]
    spatial = any("gis" in engine for engine in engines)
    if not spatial and not project.has_app("django.contrib.gis"):
        return
    text = "GeoDjango needs the extension postgis."
    if project.given.get("app_database_url"):
        project.report.fine("database", f"{text} Create it in the managed database of app_database_url.")
    else:
        project.report.require("database", text, "app_database_extensions", ["postgis"])
    if project.has_app("django.contrib.gis") and engines and not spatial:
        project.report.needs(
            "database",
            "django.contrib.gis is installed, and DATABASES has an engine without it: set ENGINE to "
            "django.contrib.gis.db.backends.postgis (with dj-database-url: engine=…).",
        )


def driver(project: Project) -> None:
    """Report a missing driver of PostgreSQL."""
    requirements = project.requirements
    if not requirements.packages or any(
        name in requirements for name in ("psycopg", "psycopg2", "psycopg2-binary", "psycopg-binary", "psycopg-c")
    ):
        return
    version = django_version(requirements)
    old = bool(version) and version < (4, 2) and not requirements.packages["django"].version.startswith(">")
    package = "psycopg2-binary>=2.9,<3" if old else "psycopg[binary]>=3.1,<4"
    text = "The requirements have no driver of PostgreSQL."
    project.report.require("requirements", text, "app_extra_requirements", [package])


# --- Broker and cache ----------------------------------------------------------------------------------------------


def report_broker(project: Project, setting: str) -> None:
    """Add findings about the broker; `setting` is its name in Django's settings, or "" for none."""
    if not project.settings.is_readable:
        return
    known = {"CELERY_BROKER_URL"} | set(project.given.get("app_environment") or {})
    variables = project.settings.variables(setting) if setting else frozenset()
    if not setting or variables & known:
        project.report.fine("broker", "Celery reads its broker from CELERY_BROKER_URL.")
    elif not url_variable(project, "broker", setting, variables, BROKER_URL, "{{ app_broker_url_runtime }}"):
        text = "Celery takes its broker from the variable CELERY_BROKER_URL, which it prefers to the setting"
        text = f"{text} {setting} ({project.settings.where(setting)})."
        url = urlparse(text_of(project.settings.get(setting)))
        if url.scheme and not url.scheme.startswith("redis"):
            text = f"Warning: {text} So Redis is the broker, not {url.scheme}: what others send there is not read."
        elif "." in (url.hostname or "") and url.hostname != "127.0.0.1":
            text = f"Warning: {text} To use {url.hostname}, set app_broker_url in {FILE}."
        project.report.decided("broker", text)


def report_results(project: Project, setting: str, value: Any) -> None:
    """Add a finding about results that are written to a file of the release; `setting` is the name in the settings."""
    file = re.match(r"((db|sqla)\+)?sqlite:///(?!/)|file(system)?://(?!/)", value) if isinstance(value, str) else None
    if file and setting:
        hard_coded(project, "results", setting, "a file in the release", "read CELERY_RESULT_BACKEND.")


def always(project: Project, subject: str, setting: str, variables: frozenset[str]) -> None:
    """Propose to take settings that are read from several variables from the environment that Seedbed sets."""
    if project.given.get("app_settings_overlay") == "always":
        return
    text = f"{setting} is put together from {', '.join(sorted(variables))} ({project.settings.where(setting)})"
    text = f"{text}: a generated settings module replaces it."
    project.report.choose(subject, text, "app_settings_overlay", "always")


def url_variable(
    project: Project, subject: str, setting: str, variables: frozenset[str], url: str, template: str
) -> bool:
    """Propose the variable that a URL is read from. Returns whether there is one."""
    for name in sorted(variables):
        if same_url(plain(project.evaluate(**{name: url}).get(setting)), url):
            text = f"{setting} is read from {name}, which gets the URL of the {subject}."
            project.add_variable(subject, name, template, text, url)
            project.forget()
            return True
    return False


def same_url(value: Any, url: str) -> bool:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = plain(value[0])
    if not isinstance(value, str) or not value:
        return False
    return urlparse(value)._replace(query="", path="") == urlparse(url)._replace(query="", path="")


def report_cache(project: Project) -> None:
    """Report each alias of CACHES, judged as in_app/overlay.py judges it."""
    caches = project.settings.plain("CACHES")
    caches = caches if isinstance(caches, dict) else {}
    tables = [text_of(plain(one).get("LOCATION", UNKNOWN)) for one in caches.values() if is_database_cache(plain(one))]
    if tables:
        text = (
            f"Warning: CACHES has the table {', '.join(tables)} of the database, which no migration creates. After the "
        )
        text += (
            "first deployment, type on the server: shopctl manage --owner createcachetable (APPctl, by your app_name)."
        )
        project.report.decided("cache", text)
    others = {alias: cache for alias, cache in caches.items() if alias != "default"}
    default_cache(project, caches.get("default", UNKNOWN), names_of(others))
    for alias, cache in fixed_entries(project, "CACHES").items():
        if alias != "default" and overlay.is_local_cache(cache):
            hard_coded(project, "cache", f'CACHES["{alias}"]', "written into the code", "read CACHE_URL.")


def is_database_cache(cache: Any) -> bool:
    return isinstance(cache, dict) and text_of(cache.get("BACKEND", UNKNOWN)).endswith(".DatabaseCache")


def fixed_entries(project: Project, setting: str) -> dict[str, dict[str, Any]]:
    """Return the entries of CACHES or CHANNEL_LAYERS that depend on no environment variable, by alias."""
    found = project.settings.plain(setting)
    if not isinstance(found, dict) or project.settings.variables(setting) - names_of(found):
        return {}
    entries = {alias: as_json(entry) for alias, entry in found.items() if not names_of(entry)}
    return {
        alias: entry
        for alias, entry in entries.items()
        if isinstance(entry, dict) and isinstance(entry.get("BACKEND"), str)
    }


def as_json(value: Any) -> Any:
    """Return a value as in_app/settings_probe.py does: what is unknown is left out."""
    value = plain(value)
    if isinstance(value, dict):
        return {str(key): found for key, one in value.items() if (found := as_json(one)) is not None}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return value if isinstance(value, str | int | float) else text_of(value) or None


def default_cache(project: Project, default: Any, others: frozenset[str]) -> None:
    """Report the cache `default`; `others` are variables that further aliases are read from."""
    parts = plain(default)
    backend = str(parts.get("BACKEND", "")) if isinstance(parts, dict) else ""
    variables = names_of(default)
    if "CACHE_URL" in variables:
        project.report.fine("cache", "The cache is read from CACHE_URL.")
        return
    if not re.search("redis|memcached|filebased", backend, re.I) or not isinstance(parts, dict):
        if "locmem" in backend.lower():
            cache_of_each_process(project)
        return
    location = parts.get("LOCATION", UNKNOWN)
    if own := sorted(names_of(location) & set(project.given.get("app_environment") or {})):
        project.report.fine("cache", f"The cache's address is read from {', '.join(own)}.")
        return
    # The cache of a release is a Redis: another backend does not take its URL.
    for name in sorted(names_of(location)) if "redis" in backend.lower() else ():
        caches = plain(project.evaluate(**{name: CACHE_URL}).get("CACHES"))
        changed = plain(caches.get("default", UNKNOWN)) if isinstance(caches, dict) else {}
        if isinstance(changed, dict) and same_url(plain(changed.get("LOCATION", UNKNOWN)), CACHE_URL):
            if name not in project.proposed:
                text = f"The cache's address is read from {name}."
                project.add_variable("cache", name, "{{ app_cache_url_runtime }}", text, CACHE_URL)
            else:
                project.report.fine(
                    "cache", f"The cache is read from {name}, as the broker is: it uses the broker's Redis."
                )
            return
    if read := variables | (project.settings.variables("CACHES") - others):
        always(project, "cache", "CACHES", read)
    elif overlay.is_local_cache(as_json(parts)):
        hard_coded(project, "cache", "CACHES", "written into the code", "read CACHE_URL.")
    else:
        where, place = project.settings.where("CACHES"), as_json(location)
        addresses = re.split("[,;]", place) if isinstance(place, str) else place
        servers = ", ".join(overlay.host_of(str(address)) for address in addresses)
        project.report.decided("cache", f"CACHES names the server {servers} ({where}): it is used as it is.")


def cache_of_each_process(project: Project) -> None:
    """Report a cache in memory that a variable, which is not set, would replace."""
    for name in sorted({read.name for read in project.settings.evaluator.environment.reads}):
        caches = plain(project.evaluate(**{name: REDIS_CACHE}).get("CACHES")) if "CACHE" in name else None
        changed = plain(caches.get("default", UNKNOWN)) if isinstance(caches, dict) else None
        if isinstance(changed, dict) and "redis" in str(changed.get("BACKEND", "")).lower():
            text = (
                f"Each process keeps a cache in its memory ({project.settings.where('CACHES')}), so limits and locks "
                f"in it hold for one process. Another cache is used where {name} is set: add it to app_environment "
                f'in {FILE}, with what it needs. The URL of Redis is "{{{{ app_cache_url_runtime }}}}".'
            )
            project.report.decided("cache", text, "app_environment")
            return


def report_channels(project: Project) -> None:
    """Report a channel layer that is in one process, or in a Redis of the developer's machine."""
    if "CHANNEL_LAYERS" not in project.settings and project.settings.is_readable and project.has_app("channels"):
        text = "Warning: channels is installed and CHANNEL_LAYERS is not set: messages to groups and between processes"
        project.report.decided("channels", f'{text} fail. Set it to channels_redis with os.environ["CACHE_URL"].')
    in_memory = []
    for alias, layer in fixed_entries(project, "CHANNEL_LAYERS").items():
        name = "CHANNEL_LAYERS" if alias == "default" else f'CHANNEL_LAYERS["{alias}"]'
        if "InMemory" in layer["BACKEND"]:
            in_memory.append(name)
        elif overlay.is_local_layer(layer):
            remedy = 'write "hosts": [os.environ["CACHE_URL"]].'
            hard_coded(project, "channels", name, "in a Redis of the developer's machine", remedy)
    if in_memory:
        where = project.settings.where("CHANNEL_LAYERS")
        channels_in_memory(project, f"{' and '.join(in_memory)} is in the memory of one process ({where})")


def channels_in_memory(project: Project, text: str) -> None:
    """Require one web process where WebSockets are served with a channel layer in the memory of their process."""
    web = project.given.get("app_web") or {}
    remedy = 'Use channels_redis with os.environ["CACHE_URL"].'
    if not all(find_asgi(project)) or web.get("worker") == "gthread":
        project.report.decided("channels", f"Warning: {text}: messages do not reach the others. {remedy}")
    elif int(web.get("processes", WEB_PROCESSES)) == 1:
        text = f"Warning: {text}: those of workers and of a second web host do not reach WebSockets. {remedy}"
        project.report.decided("channels", text)
    elif project.report.writes:
        text = f"{text}: one web process runs, since messages do not reach others. {remedy}"
        project.report.propose("app_web", {"processes": 1}, text)
        project.report.decided("channels", text, "app_web")
    else:
        text = f"{text}, and there are several web processes: messages get lost between them. {remedy}"
        project.report.needs("channels", f"{text} Or set app_web.processes to 1 in {FILE}.", "app_web")


# --- Mail ----------------------------------------------------------------------------------------------------------


def report_mail(project: Project) -> None:
    """Report a project whose messages reach no mail server, and where they go."""
    if project.given.get("app_email_url") or not project.settings.is_readable:
        return
    server = (
        f"Set app_email_url in {FILE} to a mail server, such as smtp://user:password@mail.example.org:587/?tls=true."
    )
    reads = {read.name for read in project.settings.evaluator.environment.reads}
    if "EMAIL_URL" in reads:
        if "EMAIL_URL" not in (project.given.get("app_environment") or {}):
            text = f"No mail server is set: messages become files in {MAIL_FOLDER}. {server}"
            project.report.decided("mail", text, "app_email_url")
    elif place := own_mail(project):
        variables = sorted(project.settings.variables("EMAIL_BACKEND") | project.settings.variables("EMAIL_HOST"))
        remedy = f"Set {' and '.join(variables)} in app_environment in {FILE}." if variables else server
        if not variables and not replaces(project):
            remedy = f"Read EMAIL_URL in the settings. {remedy}"
        elif not variables and is_generated(project):
            place = f"become files in {MAIL_FOLDER}"
        project.report.decided("mail", f"No mail server is set: messages {place}. {remedy}", "app_email_url")


def own_mail(project: Project) -> str:
    """Return where messages go in a project without a mail server; "" where it has one. See in_app/overlay.py."""
    backend, host = (text_of(project.settings.get(name)) for name in ("EMAIL_BACKEND", "EMAIL_HOST"))
    if any(
        name in project.settings and not text for name, text in {"EMAIL_BACKEND": backend, "EMAIL_HOST": host}.items()
    ):
        return ""
    kind = (backend or f"{OWN_MAIL}smtp.EmailBackend").removeprefix(OWN_MAIL).partition(".")[0]
    return MAIL.get(kind, "") if host in LOCAL_HOSTS else ""
