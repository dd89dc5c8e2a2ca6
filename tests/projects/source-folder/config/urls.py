from django.contrib import admin
from django.urls import path
from django.views.generic import TemplateView
from notes import views
from places.views import near
from visits.views import visit

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", views.index),
    path("up", views.up),
    path("add", views.add),
    path("page", TemplateView.as_view(template_name="page.html")),
    path("visit", visit),
    path("near", near),
]
