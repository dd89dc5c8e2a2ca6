from config.urls import urlpatterns
from django.urls import path
from notes import limits

urlpatterns = [*urlpatterns, path("limit", limits.page)]
