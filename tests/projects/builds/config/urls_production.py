import private_mail
import private_units
from config.urls import urlpatterns
from django.conf import settings
from django.http import JsonResponse
from django.urls import path
from notes.models import Note


def built(request):
    greetings = [settings.GREETING, private_mail.GREETING, private_units.GREETING]
    return JsonResponse({"greetings": greetings, "key": settings.PRIVATE_KEY})


def find(request):
    return JsonResponse({"found": list(Note.objects.filter(text=request.GET["text"]).values_list("text", flat=True))})


urlpatterns = [*urlpatterns, path("built", built), path("find", find)]
