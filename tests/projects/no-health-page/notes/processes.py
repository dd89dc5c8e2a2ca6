import os
import time

from django.http import HttpResponse, JsonResponse

LOADED_BY = os.getpid()


def loaded(request):
    return JsonResponse({"process": os.getpid(), "loaded_by": LOADED_BY})


def slow(request):
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("late")
