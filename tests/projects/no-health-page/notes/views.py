from django.http import JsonResponse

from .models import Note


def index(request):
    return JsonResponse({"notes": list(Note.objects.values_list("text", flat=True))})


def who(request):
    return JsonResponse({"address": request.META["REMOTE_ADDR"], "forwarded": request.META["HTTP_X_FORWARDED_FOR"]})
