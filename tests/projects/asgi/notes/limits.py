from django.db import connection
from django.http import JsonResponse


def statement_timeout():
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        return cursor.fetchone()[0]


def page(request):
    return JsonResponse({"limit": statement_timeout()})
