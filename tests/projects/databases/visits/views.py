from django.http import JsonResponse

from .models import Visit


def visit(request):
    Visit.objects.create(page=request.GET["page"])
    return JsonResponse({"visits": list(Visit.objects.order_by("pk").values_list("page", flat=True))})
