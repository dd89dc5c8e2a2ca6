from django.contrib import admin
from django.urls import path
from notes import views
from places.views import near

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", views.index),
    path("up", views.up),
    path("add", views.add),
    path("near", near),
]
