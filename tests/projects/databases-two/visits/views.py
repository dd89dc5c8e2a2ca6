from django.http import JsonResponse

from .models import Visit


def visit(request):
    Visit.objects.create(page=request.GET["page"], browser="lynx")
    return JsonResponse({"visits": list(Visit.objects.order_by("pk").values_list("page", "browser"))})
