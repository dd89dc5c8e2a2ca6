from django.urls import path
from notes import motto, views

urlpatterns = [
    path("", views.home),
    path("up", views.up),
    path("notes/", views.add),
    path("notes/<int:number>/", views.show),
    path("ticks/", views.ticks),
    path("motto/", motto.motto),
]
