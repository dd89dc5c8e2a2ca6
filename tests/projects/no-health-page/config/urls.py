from django.contrib import admin
from django.urls import path
from notes import letters, processes, views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", views.index),
    path("who", views.who),
    path("letter", letters.letter),
    path("loaded", processes.loaded),
    path("slow", processes.slow),
    path("export/slow", processes.slow),
]
