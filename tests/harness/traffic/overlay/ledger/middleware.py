from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from ledger.version import VERSION


def name_release(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Every answer says which release gave it."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Release"], response["X-Version"] = settings.RELEASE_ID, VERSION
        return response

    return answer
