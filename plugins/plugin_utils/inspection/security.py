"""What the settings hard-code that a release needs from its environment: keys, names, debug, folders, mail, logging."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from hostctl.in_app.environment import is_temporary

from .project import Project, django_version
from .report import FILE
from .values import UNKNOWN, plain, text_of, truth

ASSIGNMENT = re.compile(r"""^[ \t]*[\w.]*environ\[["']DJANGO_SETTINGS_MODULE["']\]\s*=[^=]""", re.M)
REPLACED = "the release's generated settings module replaces it"


def replaces(project: Project) -> bool:
    return str(project.given.get("app_settings_overlay", "auto")) != "never"


def is_generated(project: Project) -> bool:
    """Return whether the release certainly has a generated settings module, as far as the findings before tell."""
    always = project.given.get("app_settings_overlay") == "always"
    found = any(one.setting == "app_settings_overlay" for one in project.report.findings)
    return replaces(project) and (always or found)


def unreadable(project: Project) -> None:
    """Add the finding about settings that cannot be followed here. That the module is missing is said before."""
    layout, checked = project.layout, "the host checks them before anything migrates"
    error = project.tree.syntax_error(layout.settings_file) if layout.settings_file else None
    if error:
        text = (
            f"Warning: {layout.settings_file}:{error.lineno} is no valid Python for the version of this machine "
            f"({error.msg}), so the settings are not inspected; {checked}."
        )
        project.report.decided("settings", text)
    elif layout.settings_file:
        project.report.fine("settings", f"{layout.settings_module} computes its settings; {checked}.")


def report_security(project: Project) -> None:
    """Add findings about SECRET_KEY, DEBUG, ALLOWED_HOSTS, and folders and logs of the release."""
    if project.layout.is_package:
        return
    if not project.settings.is_readable:
        unreadable(project)
        return
    secret_key(project)
    debug(project)
    hosts(project)
    origins(project)
    cookies(project)
    media(project)
    logging(project)


def hard_coded(project: Project, subject: str, name: str, what: str, remedy: str) -> None:
    """Report a setting that the environment must decide."""
    where = project.settings.where(name.partition("[")[0])
    if replaces(project):
        project.report.decided(subject, f"{name} is {what} ({where}): {REPLACED}.", "app_settings_overlay")
    else:
        text = f"{name} is {what} ({where}), and app_settings_overlay is never: {remedy}"
        project.report.needs(subject, text, "app_settings_overlay")


def secret_key(project: Project) -> None:
    settings, name = project.settings, "SECRET_KEY"
    variables = settings.variables(name)
    if name in variables or variables & set(project.given.get("app_environment") or {}):
        project.report.fine("secret key", f"SECRET_KEY is read from {', '.join(sorted(variables))}.")
    elif len(variables) == 1:
        (variable,) = variables
        value, text = "{{ secret_django_key }}", f"SECRET_KEY is read from {variable}, which gets the generated key."
        project.add_variable("secret key", variable, value, text, "inspected-" * 6)
    else:
        what = "written into the code" if text_of(settings.get(name)) else "computed" if name in settings else "missing"
        hard_coded(project, "secret key", name, what, 'write SECRET_KEY = os.environ["SECRET_KEY"].')


def debug(project: Project) -> None:
    settings = project.settings
    value, variables = settings.get("DEBUG"), settings.variables("DEBUG")
    if "DEBUG" not in settings or truth(value) is False:
        project.report.fine("debug", "DEBUG is off in a release.")
        return
    for variable in sorted(variables) if len(variables) <= 3 else []:
        stages = () if "DEBUG" in variable else ("production", "prod", "live")
        for word in (*stages, "false", "False", "0", ""):
            if truth(project.evaluate(**{variable: word}).get("DEBUG")) is False:
                text = (
                    f"DEBUG is on unless {variable} says otherwise ({settings.where('DEBUG')}): it is set to {word!r}."
                )
                project.add_variable("debug", variable, word, text, word)
                return
    if truth(value):
        hard_coded(project, "debug", "DEBUG", "True", "write DEBUG = False.")


def accepts(project: Project, setting: str, variable: str, text: str, wanted: list[str]) -> bool:
    value = plain(project.evaluate(**{variable: text}).get(setting))
    return isinstance(value, list | tuple) and not set(wanted) - {text_of(item) for item in value}


def is_separated_by_commas(project: Project, setting: str, value: str) -> bool:
    """Return whether a setting takes what Seedbed gives the variable of its name: all values, with commas."""
    values = [value, value.replace("inspected", "other")]
    return accepts(project, setting, setting, ",".join(values), values)


def listed(project: Project, subject: str, setting: str, value: str, template: str, part: str = "") -> bool:
    """Propose the variable that a list is read from, with the separator that it needs. Returns whether it is read.

    `part` is what the variable has of a value, such as the host of an origin; by default all of it.
    """
    other = value.replace("inspected", "other")
    part = part or value
    parts = [part, part.replace("inspected", "other")]
    forms = {f"join('{separator}')": separator.join(parts) for separator in (",", " ", ";", "|")}
    forms["to_json"] = json.dumps(parts)
    for variable in sorted(project.settings.variables(setting)):
        if variable in (project.given.get("app_environment") or {}):
            return True
        for form, text in forms.items():
            if accepts(project, setting, variable, text, [value, other]):
                reason = f"{setting} is read from {variable}."
                project.add_variable(subject, variable, f"{{{{ {template} | {form} }}}}", reason, text)
                return True
        if accepts(project, setting, variable, part, [value]):
            reason = f"{setting} has the one name of {variable}."
            project.add_variable(subject, variable, f"{{{{ {template} | first }}}}", reason, part)
            return True
    return False


def hosts(project: Project) -> None:
    settings, name, value = project.settings, "ALLOWED_HOSTS", "inspected.example.org"
    items = settings.items(name)
    variables = settings.variables(name)
    if is_separated_by_commas(project, name, value) if name in variables else value in items:
        project.report.fine("hosts", "ALLOWED_HOSTS has the names of the site.")
    elif "*" in items:
        text = f"ALLOWED_HOSTS has * ({settings.where(name)}): nginx alone refuses other names."
        project.report.fine("hosts", text)
    elif listed(project, "hosts", name, value, "certificate_domains"):
        return
    elif name in variables:
        project.report.fine("hosts", "ALLOWED_HOSTS is read from the environment.")
    else:
        what = f"{items!r}" if name in settings and len(str(items)) < 80 else "without the names of the site"
        hard_coded(project, "hosts", name, what, 'write ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",").')


def cookies(project: Project) -> None:
    """Report cookies for another domain than the site's, which browsers do not keep."""
    domains = [str(project.given.get("app_domain") or ""), *(project.given.get("app_domain_aliases") or [])]
    for name in ("SESSION_COOKIE_DOMAIN", "CSRF_COOKIE_DOMAIN") if domains[0] else ():
        wanted = text_of(project.settings.get(name)).lstrip(".") if project.settings.is_fixed(name) else ""
        if wanted and not any(f".{domain}".endswith(f".{wanted}") for domain in domains):
            project.report.needs(
                "cookies",
                f"{name} is {wanted} ({project.settings.where(name)}), and the site is {domains[0]}: browsers reject "
                "such cookies, so logins fail. Remove it from the settings, or read it from the environment.",
            )


def origins(project: Project) -> None:
    settings, name, host = project.settings, "CSRF_TRUSTED_ORIGINS", "inspected.example.org"
    # Before version 4, Django takes names without https://.
    old = () < django_version(project.requirements) < (4,)
    value = host if old else f"https://{host}"
    variables = settings.variables(name)
    if name in variables and (old or is_separated_by_commas(project, name, value)):
        return
    if not variables or (name not in variables and value in settings.items(name)):
        return
    if old or not listed(project, "hosts", name, value, "app_origins"):
        listed(project, "hosts", name, value, "certificate_domains", host)


def in_project(project: Project, path: str) -> bool:
    """Return whether a path is inside the release, which its processes cannot write to."""
    return bool(path) and (not path.startswith("/") or PurePosixPath(path).is_relative_to(str(project.tree.folder)))


def storage(project: Project) -> str:
    """Return the class that stores uploads."""
    storages = project.settings.plain("STORAGES")
    default = plain(storages.get("default", {})) if isinstance(storages, dict) else {}
    named = text_of(default.get("BACKEND", "")) if isinstance(default, dict) else ""
    return named or text_of(project.settings.get("DEFAULT_FILE_STORAGE")) or "FileSystemStorage"


def media(project: Project) -> None:
    settings, name = project.settings, "MEDIA_ROOT"
    if "FileSystemStorage" not in storage(project):
        project.report.fine("media", f"Uploads are stored by {storage(project)}.")
        return
    variables, path = settings.variables(name), text_of(settings.get(name))
    if name in variables or path.startswith("/srv/inspected/"):
        project.report.fine("media", "MEDIA_ROOT is read from the environment.")
    elif given := sorted(variables & set(project.given.get("app_environment") or {})):
        if path and (in_project(project, path) or is_temporary(path) or not is_writable(project, path)):
            text = (
                f"MEDIA_ROOT is {path} by {', '.join(given)}, where uploads cannot be written or get lost. Set it to "
            )
            text += f"{{{{ app_root }}}}/shared/media in app_environment in {FILE}."
            project.report.needs("media", text, "app_environment")
    elif (
        variables
        and len(variables) == 1
        and text_of(project.evaluate(**{next(iter(variables)): "/inspected"}).get(name)) == "/inspected"
    ):
        (variable,) = variables
        text = f"MEDIA_ROOT is read from {variable}, which is set to the folder that releases share."
        project.add_variable("media", variable, "{{ app_root }}/shared/media", text, "/srv/inspected/shared/media")
    elif in_project(project, path):
        hard_coded(
            project, "media", name, "a folder inside the release", 'write MEDIA_ROOT = os.environ["MEDIA_ROOT"].'
        )
    elif is_temporary(path):
        hard_coded(project, "media", name, f"{path}, where files get lost at a restart", "read it from MEDIA_ROOT.")
    elif path and not is_writable(project, path):
        hard_coded(project, "media", name, f"{path}, where the processes may not write", "read it from MEDIA_ROOT.")
    elif name not in settings or settings.plain(name) == "":
        without_media(project)


def without_media(project: Project) -> None:
    """Warn of models that store files in a project without MEDIA_ROOT."""
    file = next(project.tree.grep(r"\bmodels\.(File|Image)Field\(", project.tree.python, "Field("), "")
    if file:
        text = f"Warning: {file} stores uploads, and MEDIA_ROOT is not set: they would go into the release, which is "
        text += 'read-only. Write into the settings: MEDIA_ROOT = os.environ["MEDIA_ROOT"] and MEDIA_URL = "/media/".'
        project.report.decided("media", text)


def is_writable(project: Project, path: str) -> bool:
    folders = [*(project.given.get("app_sandbox") or {}).get("read_write_paths", [])]
    if name := project.given.get("app_name"):
        folders.append(f"/srv/{name}/shared/media")
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def logging(project: Project) -> None:
    """Report handlers that log to files."""
    for value in project.settings.possible("LOGGING"):
        handlers = plain(value.get("handlers")) if isinstance(value, dict) else None
        for name, handler in handlers.items() if isinstance(handlers, dict) else []:
            handler = plain(handler)
            path = text_of(handler.get("filename", UNKNOWN)) if isinstance(handler, dict) else ""
            if path:
                log_file(project, str(name), path)


def log_file(project: Project, handler: str, path: str) -> None:
    where = project.settings.where("LOGGING")
    if in_project(project, path):
        shown = path.removeprefix(f"{project.tree.folder}/")
        text = f"LOGGING's handler {handler} writes to {shown} inside the release ({where})"
        if replaces(project):
            project.report.decided("logging", f"{text}: it writes to stderr instead, which the journal keeps.")
        else:
            project.report.needs("logging", f"{text}, which is read-only: log to stderr (logging.StreamHandler).")
        return
    folder = str(PurePosixPath(path).parent)
    paths = (project.given.get("app_sandbox") or {}).get("read_write_paths", [])
    if not any(PurePosixPath(folder).is_relative_to(place) for place in paths) and not folder.startswith("/tmp"):
        text = f"LOGGING's handler {handler} writes to {path} ({where}), where the processes may not write"
        if replaces(project):
            project.report.decided("logging", f"{text}: it writes to stderr instead, which the journal keeps.")
            return
        remedy = f"Log to stderr, or make the folder and add it to read_write_paths of app_sandbox in {FILE}."
        project.report.needs("logging", f"{text}. {remedy}", "app_sandbox")


def report_overlay(project: Project) -> None:
    """Add findings that depend on whether the release has a generated settings module, after those that tell it."""
    if not project.layout.is_package and project.settings.is_readable:
        assignments(project)


def assignments(project: Project) -> None:
    """Report files that overwrite DJANGO_SETTINGS_MODULE, where a release has a settings module of its own."""
    if not is_generated(project):
        return
    for file in project.tree.named("manage.py", "wsgi.py", "asgi.py", "celery.py"):
        if match := ASSIGNMENT.search(project.tree.read(file)):
            line = project.tree.read(file).count("\n", 0, match.start()) + 1
            text = f"{file}:{line} overwrites DJANGO_SETTINGS_MODULE, and the release has a settings module of its own."
            remedy = 'Write os.environ.setdefault("DJANGO_SETTINGS_MODULE", …) there.'
            project.report.needs("settings", f"{text} {remedy}")
