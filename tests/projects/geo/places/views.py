from django.contrib.gis.db.models.functions import Distance
from django.contrib.gis.geos import Point
from django.http import JsonResponse

from .models import Place


def near(request):
    """Store a point; answer every point, and its distance in kilometers to the one that was stored."""
    point = Point(float(request.GET["x"]), float(request.GET["y"]), srid=4326)
    Place.objects.create(point=point)
    found = Place.objects.annotate(distance=Distance("point", point)).order_by("pk")
    return JsonResponse({"places": [[*place.point.coords, round(place.distance.km)] for place in found]})
