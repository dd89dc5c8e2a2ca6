from __future__ import annotations

import os
import time

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from shop.health import healthz

from ledger.models import Effect

LONGEST = 30
# Longer than any health check waits.
HANG_SECONDS = 8


@never_cache
def slow(request: HttpRequest) -> JsonResponse:
    """Answer after ?seconds=."""
    seconds = min(float(request.GET.get("seconds", "1")), LONGEST)
    time.sleep(seconds)
    return JsonResponse({"release": settings.RELEASE_ID, "seconds": seconds})


@never_cache
def effects(request: HttpRequest) -> JsonResponse:
    """How many effects there are: a page that reads the table which the versions' migrations change."""
    return JsonResponse({"release": settings.RELEASE_ID, "effects": Effect.objects.count()})


@never_cache
def health(request: HttpRequest) -> JsonResponse:
    """The project's own health check, unless this version's is broken on purpose."""
    broken = settings.LEDGER_HEALTH
    if broken == "500 once current" and os.path.realpath(settings.BASE_DIR.parents[1] / "current") == str(
        settings.BASE_DIR
    ):
        broken = "500"
    if broken == "500":
        return JsonResponse({"status": "broken", "release": settings.RELEASE_ID}, status=500)
    if broken == "hangs":
        time.sleep(HANG_SECONDS)
    if broken == "names another":
        return JsonResponse({"status": "ok", "release": "0123456789ab-cdef01"})
    return healthz(request)
