"""Values that every template can use."""

from django.conf import settings
from django.http import HttpRequest


def release(request: HttpRequest) -> dict[str, str]:
    """`release_id`: the running release, for the footer."""
    return {"release_id": settings.RELEASE_ID}
