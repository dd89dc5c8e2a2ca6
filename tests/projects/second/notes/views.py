from django.http import HttpResponse, JsonResponse

from .models import Note
from .tasks import write

VERSION = "two"


def up(request):
    return HttpResponse("ok")


def index(request):
    return JsonResponse({"version": VERSION, "notes": list(Note.objects.values_list("text", flat=True))})


def add(request):
    write.delay(request.GET.get("text", "x"))
    return HttpResponse("sent")
