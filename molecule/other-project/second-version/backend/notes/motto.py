import os

from django.http import HttpRequest, JsonResponse


def motto(request: HttpRequest) -> JsonResponse:
    """What the environment says, to the letter."""
    return JsonResponse({name: os.environ[name] for name in ("MOTTO", "NUMBER", "EMPTY")})
