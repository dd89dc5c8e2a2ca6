from django.http import JsonResponse


def index(request):
    return JsonResponse({"notes": request.settings_of_an_earlier_version})


def who(request):
    return JsonResponse({})
