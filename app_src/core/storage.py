"""Where collected static files go."""

from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, StaticFilesStorage


class ReleaseStaticFilesStorage(ManifestStaticFilesStorage):
    """Content-hashed names in STATIC_ROOT, with the manifest of them in STATIC_MANIFEST_ROOT.

    Releases share STATIC_ROOT, so that a page of the old one keeps its assets; each has its own manifest, so that
    collecting a new release does not change what the running one links to.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        manifest_storage = StaticFilesStorage(location=settings.STATIC_MANIFEST_ROOT)
        super().__init__(*args, manifest_storage=manifest_storage, **kwargs)
