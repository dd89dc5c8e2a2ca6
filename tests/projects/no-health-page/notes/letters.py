from django.http import HttpResponse


def letter(request):
    return HttpResponse(headers={"X-Accel-Redirect": "/_private/letter.txt", "Content-Type": "text/plain"})
