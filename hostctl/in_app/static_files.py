"""Where the project collects its static files, and the collecting; see hostctl/deploy/static.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def static_files() -> dict[str, Any]:
    """Return the `folders` that files are collected into, the `path` of their URL, and `problems`: refuse the release.

    Without folders, the storage is not on this host (S3). `missing` says why nothing is collected, or is "". `absent`
    are folders of STATICFILES_DIRS that do not exist, which Django skips silently.
    """
    from django.apps import apps
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    nothing = {"folders": [], "path": "", "problems": problems()}
    if not apps.is_installed("django.contrib.staticfiles"):
        return nothing | {"missing": "django.contrib.staticfiles is not in INSTALLED_APPS"}
    from django.contrib.staticfiles.storage import staticfiles_storage

    try:
        folders = [] if is_remote(staticfiles_storage) else [staticfiles_storage.path("")]
    except ImproperlyConfigured:
        return nothing | {"missing": "STATIC_ROOT is not set"}
    # What is served (whitenoise) or compressed (django-compressor) is in these, mostly the same folder.
    names = ["STATIC_ROOT", *(["COMPRESS_ROOT"] if apps.is_installed("compressor") else [])]
    folders += [folder for name in names if folders and (folder := setting(name))]
    paths = dict.fromkeys(str(Path(folder).absolute()) for folder in folders)
    found = {"folders": list(paths), "path": url_path(settings.STATIC_URL), "absent": absent_folders()}
    return found | {"missing": "", "problems": [*problems(), *shared_manifest(staticfiles_storage)]}


def absent_folders() -> list[str]:
    from django.conf import settings

    # An item may be (prefix, folder).
    folders = [str(item[1] if isinstance(item, list | tuple) else item) for item in settings.STATICFILES_DIRS]
    return [folder for folder in folders if not Path(folder).is_dir()]


def media_files() -> dict[str, Any]:
    """Return the `path` of MEDIA_URL, "" for another site (a CDN, S3), and the `folder` of uploads, "" for none.

    `fields` are the fields of models by the folder that each stores its files in, where that is another one. `written`
    are the folders that other settings have processes write to, by the setting.
    """
    from django.apps import apps
    from django.conf import settings
    from django.db.models import FileField

    url = settings.MEDIA_URL or ""
    folder = media_folder()
    fields: dict[str, str] = {}
    for model in apps.get_models():
        for field in model._meta.get_fields():
            if isinstance(field, FileField) and (place := folder_of(field.storage)) not in ("", folder):
                fields.setdefault(place, f"{model._meta.label}.{field.name}")
    return {
        "path": "" if urlsplit(url).netloc else url_path(url, "MEDIA_URL"),
        "folder": folder,
        "fields": fields,
        "written": {name: str(Path(path).absolute()) for name, path in written_folders(settings).items() if path},
    }


def written_folders(settings: Any) -> dict[str, Any]:
    """Return the folders that settings have processes write to while they run, by the setting; without uploads."""
    found = {"FILE_UPLOAD_TEMP_DIR": settings.FILE_UPLOAD_TEMP_DIR}
    if str(settings.EMAIL_BACKEND).endswith("filebased.EmailBackend"):
        found["EMAIL_FILE_PATH"] = getattr(settings, "EMAIL_FILE_PATH", "")
    if str(settings.SESSION_ENGINE).endswith("backends.file"):
        found["SESSION_FILE_PATH"] = settings.SESSION_FILE_PATH
    for alias, cache in settings.CACHES.items():
        if (cache or {}).get("BACKEND", "").endswith("FileBasedCache"):
            found[f'CACHES["{alias}"]["LOCATION"]'] = cache.get("LOCATION")
    for alias, index in (getattr(settings, "HAYSTACK_CONNECTIONS", None) or {}).items():
        # Whoosh and Xapian write files; Whoosh may also be in memory.
        if re.search("whoosh|xapian", str(index.get("ENGINE"))) and index.get("STORAGE") != "ram":
            found[f'HAYSTACK_CONNECTIONS["{alias}"]["PATH"]'] = index.get("PATH")
    return found


def media_folder() -> str:
    """Return the folder of the default storage; "" without any, where Django would use the working directory."""
    from django.conf import settings
    from django.core.files.storage import default_storage

    try:
        is_set = getattr(default_storage, "base_location", settings.MEDIA_ROOT)
    except Exception:  # It cannot be made. The first upload reports it.
        return ""
    return folder_of(default_storage) if is_set else ""


def folder_of(storage: Any) -> str:
    """Return the absolute folder of a storage; "" for one whose files are not on this host, or that has problems."""
    try:
        return str(Path(storage.path("")).absolute())
    except Exception:  # The first upload reports it.
        return ""


def url_path(url: str | None, name: str = "STATIC_URL") -> str:
    """Return the path of STATIC_URL or MEDIA_URL without slashes around it; a CDN asks for the same path."""
    parts = [part for part in urlsplit(url or "").path.split("/") if part]
    if ".." in parts:
        example = f"/{name.partition('_')[0].lower()}/"
        raise ValueError(f"{name} is {url!r}: write a path without '..', such as {example!r}.")
    return "/".join(parts)


def is_remote(storage: Any) -> bool:
    """Return whether a storage has no files on this host, as collectstatic asks it."""
    try:
        storage.path("")
    except NotImplementedError:
        return True
    return False


def problems() -> list[str]:
    """Return a sentence for each reason to refuse the release."""
    if not compresses() or setting("COMPRESS_OFFLINE"):
        return []
    from compressor.storage import default_storage

    if is_remote(default_storage):
        return []
    return [
        "django-compressor is to write files while it serves pages, which a release does not allow: pages with "
        "{% compress %} would answer 500. Write COMPRESS_OFFLINE = True into the settings."
    ]


def shared_manifest(storage: Any) -> Iterator[str]:
    """Yield a problem if a storage keeps its manifest elsewhere, by one name for all releases."""
    from django.contrib.staticfiles.storage import ManifestFilesMixin

    if not isinstance(storage, ManifestFilesMixin) or not is_remote(storage.manifest_storage):
        return
    name = storage.manifest_name
    if os.environ.get("RELEASE_ID", "") not in name:
        yield (
            f"The releases share the manifest of static files {name}, which is not on this host: one that fails or is "
            "rolled back would leave its names to the live one. Write a class for the storage with the line "
            "manifest_name = f\"staticfiles-{os.environ['RELEASE_ID']}.json\""
        )


def collect_static() -> dict[str, Any]:
    """Collect the static files; compress them where django-compressor is to find them compressed."""
    from django.core.management import call_command

    call_command("collectstatic", "--noinput", verbosity=0)
    if compresses() and setting("COMPRESS_OFFLINE") and not offline_manifest().exists():
        return {"compressed": compress()}
    return {"compressed": False}


def compress() -> bool:
    """Run django-compressor's command; return whether there was something to compress."""
    from compressor.exceptions import OfflineGenerationError
    from django.core.management import call_command

    try:
        call_command("compress", verbosity=0)
    except OfflineGenerationError as error:
        # No templates, or none with {% compress %}: pages ask for nothing, either.
        if not re.match(r"No .*\bfound\b", str(error)):
            raise
        return False
    return True


def compresses() -> bool:
    from django.apps import apps

    return apps.is_installed("compressor") and bool(setting("COMPRESS_ENABLED"))


def offline_manifest() -> Path:
    """Return the file in which django-compressor looks up compressed files; build commands may have written it."""
    return Path(setting("COMPRESS_ROOT"), setting("COMPRESS_OUTPUT_DIR"), setting("COMPRESS_OFFLINE_MANIFEST"))


def setting(name: str) -> Any:
    """Return a setting, or "". (django-compressor sets its defaults in Django's settings.)"""
    from django.conf import settings

    return getattr(settings, name, "")
