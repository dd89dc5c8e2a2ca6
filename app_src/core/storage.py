"""The storage of collected static files."""

from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, StaticFilesStorage


class ReleaseStaticFilesStorage(ManifestStaticFilesStorage):
    """Content-hashed file names in STATIC_ROOT, with their manifest in STATIC_MANIFEST_ROOT.

    Releases share STATIC_ROOT, so that pages of the previous release keep their assets. Each has its own manifest, so
    that collecting the files of a new release does not change the links of the running one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        manifest_storage = StaticFilesStorage(location=settings.STATIC_MANIFEST_ROOT)
        super().__init__(*args, manifest_storage=manifest_storage, **kwargs)
